"""The result of a check, and what fixes it."""

from collections.abc import Iterable
from enum import StrEnum

from training_schemas.base import Wire

# The group of the findings of several modules.
BROKER = "broker"


class State(StrEnum):
    """The severity of a finding; only an error keeps jobs from being trained."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(Wire, frozen=True, kw_only=True):
    """The result of one check.

    ``name`` is the same on every host, with the part before the dot for what was checked. ``fix`` is the command or the
    setting that fixes what is not ok.
    """

    group: str
    name: str
    state: State
    found: str
    fix: str | None = None


def of_broker(name: str, state: State, found: str, fix: str | None = None) -> Finding:
    """Return a finding of the group `BROKER`."""
    return Finding(group=BROKER, name=name, state=state, found=found, fix=fix)


def has_error(findings: Iterable[Finding]) -> bool:
    """Return whether any finding keeps jobs from being trained."""
    return any(finding.state is State.ERROR for finding in findings)

"""What a check found, and what fixes it."""

from collections.abc import Iterable
from enum import StrEnum

from training_schemas.base import Wire

# What several modules look at.
BROKER = "broker"


class State(StrEnum):
    """How bad a finding is; only an error keeps jobs from being trained."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(Wire, frozen=True, kw_only=True):
    """One thing that was looked at.

    ``name`` is the same on every host, with the part before the dot for what was looked at. ``fix`` is the command or
    the setting that repairs what is not ok.
    """

    group: str
    name: str
    state: State
    found: str
    fix: str | None = None


def of_broker(name: str, state: State, found: str, fix: str | None = None) -> Finding:
    """A finding of the group `BROKER`."""
    return Finding(group=BROKER, name=name, state=state, found=found, fix=fix)


def has_error(findings: Iterable[Finding]) -> bool:
    """Whether any of them keeps jobs from being trained."""
    return any(finding.state is State.ERROR for finding in findings)

"""The patterns of the broker's users, and the place where operators find them."""

import re
from pathlib import Path

import pytest

from training_worker.broker.names import Names
from training_worker.broker.permissions import Role, command_lines, rights_of

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"


@pytest.mark.parametrize("role", Role)
def test_the_commands_in_the_documentation_are_these(role: Role) -> None:
    """To be pasted as they are."""
    text = OPERATIONS.read_text()

    assert "\n".join(command_lines(role, Names(), user=str(role))) in text


def test_a_prefix_is_no_pattern() -> None:
    """A dot in it is a dot, and nothing that only begins like it is meant."""
    pattern = rights_of(Role.WORKER, Names("a.b")).configure

    assert re.match(pattern, "a.b.tier.flux.24gb")
    assert re.match(pattern, "a.b.events.log")
    assert not re.match(pattern, "axb.jobs")
    assert not re.match(pattern, "a.b.c.jobs")
    assert not re.match(pattern, "other")

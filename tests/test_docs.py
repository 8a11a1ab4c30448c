"""The documents say what the code does."""

import json
from pathlib import Path

import pytest

from training_schemas.events import EVENTS
from training_schemas.jobs import TrainingJob
from training_schemas.spec import FluxLoraParameters
from training_schemas.validation import decode_strictly

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "schemas" / "golden" / "events"


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a document in one language."""
    text = (ROOT / document).read_text()
    return [block.partition("```")[0] for block in text.split(f"```{language}\n")[1:]]


@pytest.mark.parametrize("kind", EVENTS)
def test_each_event_is_shown_as_it_is_on_the_wire(kind: str) -> None:
    """docs/events.md has each golden event, whole; README names it."""
    shown = [json.loads(block) for block in blocks("docs/events.md", "json")]

    assert json.loads((GOLDEN / f"{kind}.json").read_bytes()) in shown
    assert f"`{kind}`" in (ROOT / "README.md").read_text()


def test_the_readmes_job_is_a_job() -> None:
    """What a reader copies is accepted."""
    job = decode_strictly(blocks("README.md", "json")[0].encode(), TrainingJob)

    assert job.job_id == "user_portrait"


def test_the_readmes_event_is_the_golden_one() -> None:
    """The example is not made up."""
    golden = json.loads((GOLDEN / "training.job.progress.v1.json").read_bytes())

    assert json.loads(blocks("README.md", "json")[1]) == golden


def test_the_readmes_python_makes_a_job() -> None:
    """The lines up to the broker run as they stand."""
    code = blocks("README.md", "python")[0].partition("api =")[0]
    names: dict[str, object] = {}

    exec(code, names)

    assert isinstance(names["job"], TrainingJob)


def test_every_setting_of_the_trainer_is_documented() -> None:
    """docs/trainer.md has a row for each parameter."""
    text = (ROOT / "docs" / "trainer.md").read_text()

    assert [name for name in FluxLoraParameters.__struct_encode_fields__ if f"`{name}`" not in text] == []

"""The golden messages: what was once on the wire is read for ever, and written the same as long as its version lives.

The files are never changed. A change of the schema that breaks one of them needs a new version, and a new file; fields
that come later are in a file of their own, named by them after the event's type.
"""

import json
import re
from pathlib import Path

import msgspec
import pytest

from training_schemas import commands, events, ledger, progress
from training_schemas.jobs import JOB_TYPE, TrainingJob
from training_schemas.validation import decode_strictly

GOLDEN = Path(__file__).parent / "golden"


def golden(folder: str) -> list[Path]:
    """The files of one kind."""
    return sorted((GOLDEN / folder).glob("*.json"))


def normal(body: bytes) -> object:
    """JSON without its spelling."""
    return json.loads(body)


@pytest.mark.parametrize("path", golden("events"), ids=lambda path: path.stem)
def test_an_event_is_read_and_written_as_ever(path: Path) -> None:
    """Reading a golden event and writing it again gives the same bytes."""
    body = path.read_bytes().rstrip(b"\n")
    envelope = events.decode_event(body)
    event = envelope.read()

    assert envelope.type == event.TYPE
    assert path.stem.startswith(event.TYPE)
    again = events.wrap(event, event_id=envelope.id, time=envelope.time.timestamp())
    assert events.encode_event(again) == body


@pytest.mark.parametrize("path", golden("ledger"), ids=lambda path: path.stem)
def test_a_ledger_entry_is_read_and_written_as_ever(path: Path) -> None:
    """Entries live for thirty days, through upgrades of the fleet."""
    body = path.read_bytes().rstrip(b"\n")

    assert msgspec.json.encode(ledger.decode_entry(body)) == body


@pytest.mark.parametrize("path", golden("progress"), ids=lambda path: path.stem)
def test_a_progress_record_is_read_and_written_as_ever(path: Path) -> None:
    """A trainer may be of another version than the daemon that re-attaches to it."""
    body = path.read_bytes().rstrip(b"\n")

    assert msgspec.json.encode(progress.decode_record(body)) == body


@pytest.mark.parametrize("path", golden("commands"), ids=lambda path: path.stem)
def test_a_command_is_read_and_written_as_ever(path: Path) -> None:
    """Commands come from dashboards that are not upgraded with the fleet."""
    body = path.read_bytes().rstrip(b"\n")
    decode = commands.decode_worker_command if ".worker." in path.stem else commands.decode_job_command

    assert msgspec.json.encode(decode(body)) == body


@pytest.mark.parametrize("path", golden("jobs"), ids=lambda path: path.stem)
def test_a_job_is_read_as_ever(path: Path) -> None:
    """Reading a golden job and writing it again gives the same JSON."""
    assert path.stem.startswith(JOB_TYPE)
    job = decode_strictly(path.read_bytes(), TrainingJob)

    assert normal(msgspec.json.encode(job)) == normal(path.read_bytes())


def test_every_kind_of_message_has_a_golden_file() -> None:
    """A new event, entry, record or command comes with its bytes."""
    variants = re.compile(r"\.(rates|tiers|kernels|choices)$")
    assert {variants.sub("", path.stem) for path in golden("events")} == set(events.EVENTS)
    for folder, union in (("ledger", ledger.AnyEntry), ("progress", progress.AnyRecord)):
        tags = {kind.__struct_config__.tag for kind in union.__args__}
        assert {path.stem for path in golden(folder)} == tags
    both = (*commands.JobCommand.__args__, *commands.WorkerCommand.__args__)
    assert {path.stem for path in golden("commands")} == {kind.__struct_config__.tag for kind in both}


def test_a_reader_passes_over_fields_of_a_later_minor_version() -> None:
    """Adding optional fields is compatible: old dashboards keep reading."""
    body = json.loads((GOLDEN / "events" / "training.job.checkpoint.v1.json").read_bytes())
    body["data"]["addedLater"] = 1
    body["extension"] = "x"

    assert (
        events.decode_event(json.dumps(body).encode()).read()
        == events.decode_event((GOLDEN / "events" / "training.job.checkpoint.v1.json").read_bytes()).read()
    )


def test_an_event_of_an_unknown_version_is_named_not_guessed() -> None:
    """A later version of an event is another type."""
    body = json.loads((GOLDEN / "events" / "training.job.checkpoint.v1.json").read_bytes())
    body["type"] = "training.job.checkpoint.v2"

    with pytest.raises(events.UnknownEventError, match=r"training\.job\.checkpoint\.v2"):
        events.decode_event(json.dumps(body).encode()).read()


def test_an_event_has_every_attribute_that_cloudevents_requires() -> None:
    """id, source, specversion and type are there, and every attribute's name is lower-case characters and digits."""
    for path in golden("events"):
        attributes = json.loads(path.read_bytes())
        assert attributes["specversion"] == "1.0"
        assert attributes.keys() >= {"id", "source", "type", "time", "subject", "datacontenttype"}
        assert all(name.isalnum() and name.islower() for name in attributes)

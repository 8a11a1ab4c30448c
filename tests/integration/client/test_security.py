"""What strangers send: it is refused, the daemon lives, and the next job is trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from tests.support.fleet import Daemon, Fleet
from tests.support.real_training import start, submit

from training_schemas.events import JobCompleted, JobFailed, JobRejected
from training_worker.queue.dead_letter import LONGEST_BODY, SIZE_HEADER

pytestmark = pytest.mark.broker

HUGE = 100 * 1000 * 1000
DEEP = 10_000
MANY = 10_000


def body(fleet: Fleet, **changes: Any) -> bytes:
    """A valid job as JSON, with changes."""
    job = {
        "jobId": "portrait",
        "trainingType": "FLUX_LORA",
        "datasetPath": str(fleet.folder / "datasets" / "set"),
        "outputPath": str(fleet.folder / "models" / "portrait"),
    }
    return json.dumps(job | changes).encode()


async def rejected(fleet: Fleet, message: bytes) -> JobRejected:
    """Publish a bad message: the event that reports it."""
    await fleet.publish(message)
    (event,) = await fleet.all_events(1, JobRejected)
    assert isinstance(event, JobRejected)
    return event


async def lives(fleet: Fleet, daemon: Daemon) -> bool:
    """Whether the daemon trains another job, and never ended meanwhile."""
    await fleet.submit("next")
    last = (await fleet.events("next"))[-1]
    return isinstance(last, JobCompleted) and daemon.process.poll() is None


async def test_a_message_of_100_mb_is_refused_unread_and_its_beginning_kept(fleet: Fleet) -> None:
    """It is neither decoded nor copied: the dead letter has the beginning and the size."""
    daemon = await fleet.start()
    message = body(fleet, labels={"x": "y" * HUGE})

    event = await rejected(fleet, message)

    assert [fault.reason for fault in event.faults] == [f"message of {len(message)} bytes; at most 1048576 are read"]
    dead_letter = await fleet.dead()
    assert dead_letter.body == message[:LONGEST_BODY]
    assert dead_letter.headers[SIZE_HEADER] == len(message)
    assert len(daemon.logged("broker_lost")) == 0
    assert await lives(fleet, daemon)


async def test_one_byte_too_many_is_too_large(fleet: Fleet) -> None:
    """The bound is a mebibyte, and what has exactly that is read."""
    await fleet.start()

    event = await rejected(fleet, b" " * (1024 * 1024 + 1))

    assert [fault.reason for fault in event.faults] == ["message of 1048577 bytes; at most 1048576 are read"]


@pytest.mark.parametrize("where", ["labels", "configOverrides", "unknown"])
async def test_a_message_nested_deeply_is_refused(fleet: Fleet, where: str) -> None:
    """Wherever the depth is, in a field that is read or in one that is not."""
    daemon = await fleet.start()
    message = body(fleet, **{where: "DEEP"}).replace(b'"DEEP"', b'{"a":' * DEEP + b"1" + b"}" * DEEP)

    event = await rejected(fleet, message)

    assert [fault.reason for fault in event.faults] == ["nested too deeply"]
    assert (await fleet.dead()).body == message
    assert await lives(fleet, daemon)


async def test_broken_utf8_inside_a_job_is_refused(fleet: Fleet) -> None:
    """In a text of an otherwise valid job."""
    daemon = await fleet.start()

    event = await rejected(fleet, body(fleet, labels={"a": "BROKEN"}).replace(b"BROKEN", b"\xc3\x28\xff"))

    assert event.faults[0].reason.startswith("not valid JSON: ")
    assert await lives(fleet, daemon)


async def test_of_ten_thousand_unknown_fields_the_first_are_named(fleet: Fleet) -> None:
    """The event that everybody reads stays small, and counts the rest."""
    daemon = await fleet.start()

    event = await rejected(fleet, body(fleet, **{f"field{number}": number for number in range(MANY)}))

    assert len(event.faults) == 101
    assert {fault.reason for fault in event.faults[:-1]} == {"unknown field"}
    assert event.faults[-1].reason == f"{MANY - 100} faults more"
    assert await lives(fleet, daemon)


async def test_a_field_with_an_endless_name_is_named_in_part(fleet: Fleet) -> None:
    """What is reported of it is bounded, whatever it is called."""
    await fleet.start()

    event = await rejected(fleet, body(fleet, **{"é" * 100_000: 1}))

    assert event.faults[0].path == "é" * 100


@pytest.mark.parametrize(
    "overrides",
    [
        {"__class__": "os"},
        {"modelPath": "/etc"},
        {"model_path": "/etc"},
        {"optimizer": {"__reduce__": "os.system"}},
        {"datasetPath": "/etc"},
        {"validationPrompts": {"$ref": "file:///etc/passwd"}},
        {"trigger": "../../x", "command": ["sh"]},
    ],
    ids=["dunder", "model", "snake", "object", "dataset", "reference", "command"],
)
async def test_an_override_outside_the_schema_is_refused(fleet: Fleet, overrides: dict[str, Any]) -> None:
    """Key by key, by the fields of the engine's settings: there is none for a path or a program."""
    daemon = await fleet.start()

    event = await rejected(fleet, body(fleet, configOverrides=overrides))

    assert all(fault.path.startswith("configOverrides.") for fault in event.faults)
    assert daemon.logged("trainer_started") == []
    assert await lives(fleet, daemon)


async def test_paths_outside_the_roots_are_refused_and_the_next_job_is_trained(fleet: Fleet) -> None:
    """With .. and through a link, for what is read and what is written: four faults, nothing touched."""
    daemon = await fleet.start()
    for root in ("datasets", "models"):
        (fleet.folder / root / "link").symlink_to("/tmp")
    climbing = body(
        fleet, datasetPath=f"{fleet.folder}/datasets/../../../etc", outputPath=f"{fleet.folder}/models/a/../../x"
    )
    linked = body(fleet, datasetPath=f"{fleet.folder}/datasets/link", outputPath=f"{fleet.folder}/models/link/x")

    await fleet.publish(climbing)
    await fleet.publish(linked)

    for event in await fleet.all_events(2, JobRejected):
        assert isinstance(event, JobRejected)
        assert [fault.path for fault in event.faults] == ["datasetPath", "outputPath"]
    assert daemon.logged("trainer_started") == []
    assert await lives(fleet, daemon)


async def test_a_job_past_the_intake_is_checked_again(fleet: Fleet) -> None:
    """Whoever may publish to a tier queue gains nothing by it: paths are checked where they are used."""
    daemon = await fleet.start()

    await fleet.publish(body(fleet, outputPath="/etc/cron.d/evil"), key="flux.24gb")

    event = (await fleet.events("portrait"))[-1]
    assert isinstance(event, JobFailed)
    assert (event.reason, [fault.path for fault in event.faults]) == ("configInvalid", ["outputPath"])
    assert daemon.logged("trainer_started") == []
    assert await lives(fleet, daemon)


async def test_a_model_that_is_not_allowed_is_refused(fleet: Fleet) -> None:
    """A path is no name of the allow-list either."""
    daemon = await fleet.start()

    await fleet.submit("portrait", model="../../etc", max_attempts=1)

    event = (await fleet.events("portrait"))[-1]
    assert isinstance(event, JobFailed)
    assert event.reason == "modelMissing"
    assert daemon.logged("trainer_started") == []
    assert await lives(fleet, daemon)


@pytest.mark.parametrize("rubbish", [b'{"a":' * DEEP + b"1" + b"}" * DEEP, b'"\xff"', b"", b"\0" * 100_000])
async def test_rubbish_in_every_other_place_harms_nobody(fleet: Fleet, rubbish: bytes) -> None:
    """Commands to the worker, entries of the ledger, events in the log: each is passed over."""
    daemon = await fleet.start()
    typed = b'{"type":"training.worker.pause.v1","x":' + rubbish + b"}"
    async with fleet.channel() as channel:
        control = await channel.get_exchange(fleet.names.control, ensure=False)
        events = await channel.get_exchange(fleet.names.events, ensure=False)
        for message in (rubbish, typed):
            await control.publish(aio_pika.Message(message), "worker.all")
            await events.publish(aio_pika.Message(message), "job.next.progress")
            await channel.default_exchange.publish(aio_pika.Message(message), fleet.names.ledger)

    await daemon.until_logged("ledger_entry_unreadable", 2)
    await daemon.until_logged("command_unreadable", 2)

    assert await lives(fleet, daemon)


@pytest.mark.trainer
async def test_a_model_of_pickles_alone_is_refused(fleet: Fleet, materials: Path) -> None:
    """Loading a pickle runs what is in it: the job fails, and nothing of it was read."""
    pickled = fleet.folder / "pickled"
    shutil.copytree(materials / "model", pickled)
    for weights in pickled.rglob("*.safetensors"):
        weights.replace(weights.with_suffix(".bin"))
    await start(fleet, materials, models={"black-forest-labs/FLUX.1-dev": str(pickled)})

    await submit(fleet, max_train_steps=2, max_attempts=1)

    event = (await fleet.events("robot"))[-1]
    assert isinstance(event, JobFailed)
    assert event.reason == "modelInvalid"
    assert "pickled weights are refused" in event.message

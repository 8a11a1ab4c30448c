"""What a daemon does with messages and jobs that are wrong: one clear event, the message kept, and it goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.fleet import ROOT, Fleet

from training_schemas.events import JobCompleted, JobFailed, JobRejected

pytestmark = pytest.mark.broker


def body(fleet: Fleet, **changes: Any) -> bytes:
    """A valid job as JSON, with changes; None removes a field."""
    job = {
        "jobId": "portrait",
        "trainingType": "FLUX_LORA",
        "datasetPath": str(fleet.folder / "datasets" / "set"),
        "outputPath": str(fleet.folder / "models" / "portrait"),
    }
    return json.dumps({key: value for key, value in (job | changes).items() if value is not None}).encode()


async def rejected(fleet: Fleet, message: bytes, **properties: Any) -> tuple[JobRejected, bytes, str]:
    """Publish a bad message: the event, and the dead letter's body and reason."""
    await fleet.publish(message, **properties)
    (event,) = await fleet.all_events(1, JobRejected)
    dead_letter = await fleet.dead()
    assert isinstance(event, JobRejected)
    return event, dead_letter.body, str(dead_letter.headers["x-training-message"])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "not valid JSON: Input data was truncated"),
        (b"{", "not valid JSON: Input data was truncated"),
        (b"\xff\xfe", "not valid JSON: JSON is malformed: invalid character (byte 0)"),
        (b'"\xff"', "not valid JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"[1]", "expected an object, got an array"),
        (b"[" * 10_000, "nested too deeply"),
    ],
    ids=["empty", "truncated", "binary", "bad-utf8", "no-object", "deep"],
)
async def test_what_is_no_job_at_all_is_rejected_and_kept(fleet: Fleet, message: bytes, reason: str) -> None:
    """The event says why, the dead queue has the message as it came, and the next job is trained."""
    daemon = await fleet.start()

    event, kept, why = await rejected(fleet, message)

    assert [(fault.path, fault.reason) for fault in event.faults] == [("", reason)]
    assert event.job_id == "_"
    assert kept == message
    assert why == f"message: {reason}"
    await fleet.submit("next")
    assert isinstance((await fleet.events("next"))[-1], JobCompleted)
    assert daemon.process.poll() is None


async def test_every_fault_of_a_job_is_named_by_its_path(fleet: Fleet) -> None:
    """Not only the first: unknown fields, wrong types, values out of range and missing fields come in one event."""
    await fleet.start()
    wrong = body(
        fleet, outputPath=None, resolution=100, loraRank="8", surprise=1, labels={"team": 7}, gpuMemoryTier="12gb"
    )

    event, _, _ = await rejected(fleet, wrong)

    assert event.job_id == "portrait"
    assert {fault.path: fault.reason for fault in event.faults} == {
        "surprise": "unknown field",
        "outputPath": "required field is missing",
        "resolution": "Expected `int` that's a multiple of 16",
        "loraRank": "Expected `int | null`, got `str`",
        "labels.team": "Expected `str`, got `int`",
        "gpuMemoryTier": "Invalid enum value '12gb'; one of 8gb, 16gb, 24gb, 40gb, 80gb",
    }


async def test_an_unknown_training_type_is_rejected_with_the_known_ones(fleet: Fleet) -> None:
    """The fault names what could have been said."""
    await fleet.start()

    event, _, _ = await rejected(fleet, body(fleet, trainingType="SD15_LORA"))

    reason = "Invalid enum value 'SD15_LORA'; one of FLUX_LORA, SDXL_LORA, SDXL_TEXTUAL_INVERSION, SDXL_FINETUNE"
    assert [(fault.path, fault.reason) for fault in event.faults] == [("trainingType", reason)]


async def test_an_unknown_message_type_is_rejected(fleet: Fleet) -> None:
    """A message of a later version is not read as if it were of this one."""
    await fleet.start()

    event, _, _ = await rejected(fleet, body(fleet), type="training.job.submit.v2")

    assert event.faults[0].reason == "unknown message type 'training.job.submit.v2'; training.job.submit.v1 is read"


async def test_settings_and_tier_are_checked_before_the_queue(fleet: Fleet) -> None:
    """A preset that does not exist, a tier too small for the type and a bad override are one rejection."""
    await fleet.start()
    wrong = body(fleet, preset="flux_best", gpuMemoryTier="16gb", configOverrides={"discreteFlowShift": 9, "xyz": 1})

    event, _, _ = await rejected(fleet, wrong)

    assert {fault.path for fault in event.faults} == {
        "preset",
        "gpuMemoryTier",
        "configOverrides.xyz",
        "configOverrides.discreteFlowShift",
    }


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("outputPath", "/etc/cron.d/evil"),
        ("outputPath", "{root}/models/../../evil"),
        ("outputPath", "{root}/models"),
        ("outputPath", "models/relative"),
        ("outputPath", "{root}/models/link/evil"),
        ("datasetPath", "/root"),
    ],
)
async def test_a_path_outside_the_roots_is_rejected(fleet: Fleet, field: str, path: str) -> None:
    """Absolute, climbing, relative, through a link, or a root itself: no path leaves the operator's folders."""
    await fleet.start()
    (fleet.folder / "models" / "link").symlink_to("/tmp")

    event, _, _ = await rejected(fleet, body(fleet, **{field: path.format(root=fleet.folder)}))

    assert [fault.path for fault in event.faults] == [field]


async def failed(fleet: Fleet, **fields: Any) -> JobFailed:
    """The event of a job that passes the intake and then fails."""
    await fleet.submit("portrait", **fields)
    event = (await fleet.events("portrait"))[-1]
    dead_letter = await fleet.dead()
    assert isinstance(event, JobFailed)
    assert dead_letter.headers["x-training-reason"] == event.reason
    assert dead_letter.message_id == "portrait"
    return event


async def test_a_missing_data_set_fails_the_job_before_a_trainer_starts(fleet: Fleet) -> None:
    """The event names the folder; no GPU-second is used."""
    daemon = await fleet.start()
    missing = str(fleet.folder / "datasets" / "nowhere")

    event = await failed(fleet, dataset_path=missing)

    assert (event.reason, event.message) == ("datasetMissing", f"cannot train: no data set at {missing}")
    assert event.usage.gpu_seconds == 0
    assert daemon.logged("trainer_started") == []


async def test_a_model_that_is_not_on_the_allow_list_fails_the_job(fleet: Fleet) -> None:
    """The event names the model and those that are allowed."""
    await fleet.start()

    event = await failed(fleet, model="somebody/else")

    assert event.reason == "modelMissing"
    assert "'somebody/else'" in event.message
    assert "black-forest-labs/FLUX.1-dev" in event.message


async def test_a_model_folder_that_is_missing_fails_the_job(fleet: Fleet) -> None:
    """The event names the folder that the settings promise."""
    await fleet.start(models={"black-forest-labs/FLUX.1-dev": str(fleet.folder / "gone")})

    event = await failed(fleet)

    assert event.reason == "modelMissing"
    assert event.message == f"cannot train: no model folder at {fleet.folder / 'gone'}"


async def test_an_output_that_holds_something_is_not_overwritten(fleet: Fleet) -> None:
    """What lies there stays, and the job fails before it costs anything."""
    await fleet.start()
    precious = fleet.folder / "models" / "portrait" / "precious"
    precious.parent.mkdir()
    precious.touch()

    event = await failed(fleet)

    assert event.reason == "outputInvalid"
    assert str(precious.parent) in event.message
    assert precious.exists()


async def test_an_output_that_is_taken_meanwhile_fails_the_job_and_its_cost_is_told(fleet: Fleet) -> None:
    """Nothing is overwritten, and the GPU-seconds that were used are accounted for."""
    await fleet.start(mode="squat")

    event = await failed(fleet)

    assert event.reason == "outputInvalid"
    assert event.usage.gpu_seconds > 0
    assert (fleet.folder / "models" / "portrait" / "somebody-elses").is_dir()


async def test_a_trainer_that_refuses_its_data_names_every_fault(fleet: Fleet) -> None:
    """Its reason and its faults reach the event as they are."""
    await fleet.start(mode="refuse")

    event = await failed(fleet)

    assert event.reason == "datasetInvalid"
    assert [(fault.path, fault.reason) for fault in event.faults] == [("a.png", "corrupt"), ("b.txt", "empty")]


async def test_a_trainer_that_cannot_be_started_fails_the_job(fleet: Fleet) -> None:
    """A wrong command in the settings is said as such."""
    await fleet.start(engines={"diffusers": {"command": ["/no/such/python"], "training_types": ["FLUX_LORA"]}})

    event = await failed(fleet, max_attempts=1)

    assert event.reason == "hostUnfit"
    assert "/no/such/python" in event.message


async def test_a_daemon_waits_for_a_broker_that_is_not_there(fleet: Fleet) -> None:
    """It says so, tries again with growing delays, does not die, and still ends at once when told to."""
    daemon = await fleet.start(amqp_url="amqp://guest:guest@127.0.0.1:9/", online=False)

    entries = await daemon.until_logged("broker_unreachable", 3)

    delays = [entry["retry_seconds"] for entry in entries[:3]]
    assert delays == sorted(delays)
    assert delays[0] < delays[2]
    daemon.process.terminate()
    assert await daemon.ended() == 0


def run_with(folder: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    """``training-worker run`` with settings from the environment, on a machine whose cards are hidden."""
    (folder / "libnvidia-ml.so.1").touch()
    path = os.pathsep.join(str(ROOT / name) for name in ("schemas", "presets", "daemon"))
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "LD_LIBRARY_PATH": str(folder)} | settings
    command = [sys.executable, "-m", "training_worker", "run"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_without_a_gpu_a_daemon_says_so_and_ends_with_ex_config(tmp_path: Path) -> None:
    """An operator's mistake is told by exit status 78, so that systemd does not restart it for ever."""
    done = run_with(tmp_path)

    assert done.returncode == 78
    assert done.stderr == "training-worker: cannot start: NVML shows no GPU, and the settings list none under `gpus`\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"TRAINING_GPUS": '["RTX 4090"]'}, "gpus[0]: expected 'NAME:MEMORYMiB', got 'RTX 4090'"),
        ({"TRAINING_LEASE": "0"}, "Expected `float` >= 2.0 - at `$.lease`"),
        ({"TRAINING_AMQP_URL": "http://x"}, "Expected `str` matching regex '^amqps?://' - at `$.amqp_url`"),
        ({"TRAINING_AMQP_URL_FILE": "/no/such"}, "amqp_url_file: [Errno 2] No such file or directory: '/no/such'"),
        ({"TRAINING_GPUS": '["NVIDIA GeForce GT 1030:2048MiB"]'}, "no GPU of 8gb or more"),
    ],
)
def test_wrong_settings_are_named_and_end_with_ex_config(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    """The message names the setting and what is wrong with it."""
    done = run_with(tmp_path, **settings)

    assert done.returncode == 78
    assert message in done.stderr

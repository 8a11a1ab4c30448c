"""The client's commands against a real broker and a real daemon."""

import re

import msgspec
import pytest
from tests.support.command_line import run
from tests.support.fleet import Fleet

from training_schemas.events import JobCancelled, JobProgress

pytestmark = pytest.mark.broker


def write_job(fleet: Fleet, *, training_type: str = "FLUX_LORA") -> str:
    """A job's JSON in a file."""
    file = fleet.folder / "portrait.json"
    body = msgspec.json.encode(fleet.job("portrait", max_train_steps=5))
    file.write_bytes(body.replace(b"FLUX_LORA", training_type.encode()))
    return str(file)


async def test_submit_with_watch_prints_the_events_of_the_job_in_plain_lines_without_a_terminal(fleet: Fleet) -> None:
    """Phase, step, loss, pace, time left and cost, a line each event, and status 0 once it is completed."""
    await fleet.start(mode="slow")

    done = await run(fleet, "submit", write_job(fleet), "--watch")

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "portrait: submitted, FLUX_LORA with preset flux_24gb_balanced, for GPUs of 24gb"
    assert re.fullmatch(r"portrait: on an RTX 4090: 21\.\d GiB, .* h \(.*\), .* steps/min, .* USD \(.*\)", lines[1])
    assert lines[4] == "portrait: phase training"
    assert lines[9].startswith("portrait: step 5/5  loss 0.2000  ")
    assert all(text in lines[9] for text in ("steps/min", "0:00 left", "GPU-s", "USD"))
    assert lines[10].startswith(f"portrait: completed: {fleet.folder / 'models' / 'portrait'}")


async def test_watch_replays_a_job_that_is_over_and_reports_its_failure_by_its_status(fleet: Fleet) -> None:
    """Whoever comes late sees the whole job from the log."""
    await fleet.start(mode="crash")
    await fleet.submit("portrait", max_attempts=1)
    await fleet.events("portrait")

    done = await run(fleet, "watch", "portrait")

    assert done.returncode == 1
    assert "portrait: failed: trainerCrashed: trainer ended without reporting a result" in done.stdout
    assert "the last line" in done.stdout


async def test_cancel_ends_a_running_job(fleet: Fleet) -> None:
    """The command prints whom it reached; the job's end comes as an event."""
    await fleet.start(mode="slow")
    await fleet.submit("portrait", max_train_steps=600)
    await fleet.until("portrait", JobProgress)

    done = await run(fleet, "cancel", "portrait")

    assert (done.returncode, done.stdout) == (0, "portrait: running; sent to w1, attempt 1\n")
    assert isinstance((await fleet.events("portrait"))[-1], JobCancelled)


async def test_submitting_a_bad_job_publishes_nothing(fleet: Fleet) -> None:
    """The faults are reported here, with status 65, and no daemon ever sees the message."""
    done = await run(fleet, "submit", write_job(fleet, training_type="FLUX"))

    assert done.returncode == 65
    assert done.stderr.startswith("training-worker: trainingType: Invalid enum value 'FLUX'; one of FLUX_LORA, ")
    assert await fleet.depth(fleet.names.intake) is None

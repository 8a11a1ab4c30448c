"""The whole way with the real invoke-training: tiny pipelines, from the queue to the result.

`INVOKE_TRAINING_PYTHON` names an interpreter that has it; without one these are skipped, with that reason.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.fleet import GPU_80, Daemon, Fleet
from tests.support.real_training import start, submit

from training_schemas.events import (
    JobCancelled,
    JobCheckpoint,
    JobClaimed,
    JobCompleted,
    JobDataset,
    JobPhase,
    JobProgress,
    JobRejected,
    JobReleased,
    JobRetrying,
    JobSample,
)
from training_schemas.jobs import JOB_TYPE

pytestmark = [pytest.mark.invoke, pytest.mark.broker, pytest.mark.trainer]

STEPS = 6
# What upstream cannot do otherwise on a CPU: with its caches it is as quick as without.
FLUX = {"weight_dtype": "bfloat16", "gradient_accumulation_steps": 1, "gradient_checkpointing": False}
INVERSION = {"trigger_word": "<robot>", "initial_token": "a", "embedding_vectors": 2}


async def start_with_invoke(fleet: Fleet, materials: Path, worker_id: str = "w1", **changes: Any) -> Daemon:
    """A daemon that has both engines."""
    engines = {"invoke": {"python": os.environ["INVOKE_TRAINING_PYTHON"]}}
    return await start(fleet, materials, worker_id, **{"engines": engines, "gpus": [GPU_80]} | changes)


@pytest.mark.parametrize(
    ("training_type", "overrides", "kinds"),
    [
        ("FLUX_LORA", FLUX, {"adapter", "kohyaAdapter"}),
        ("SDXL_LORA", {}, {"adapter", "kohyaAdapter"}),
        ("SDXL_TEXTUAL_INVERSION", INVERSION, {"embeddings"}),
        ("SDXL_FINETUNE", {}, {"pipeline"}),
    ],
)
async def test_each_type_is_trained_from_the_queue(
    fleet: Fleet, materials: Path, training_type: str, overrides: dict[str, Any], kinds: set[str]
) -> None:
    """Every step, a checkpoint on the way and one at the end, sample images, and files of the usual kinds."""
    await start_with_invoke(fleet, materials)
    wanted = {"validation_prompts": ["a robot"], "checkpoint_every": 4}
    await submit(
        fleet, training_type, engine="invoke", max_train_steps=STEPS, config_overrides=wanted | overrides, batch_size=1
    )

    events = await fleet.events("robot")

    completed = events[-1]
    assert isinstance(completed, JobCompleted), completed
    claimed = next(event for event in events if isinstance(event, JobClaimed))
    assert claimed.engine == "invoke"
    phases = [event.phase for event in events if isinstance(event, JobPhase)]
    assert phases[:2] == ["starting", "checkingDataset"]
    assert {"loadingModel", "training", "checkpointing", "sampling", "exporting"} <= set(phases)
    assert next(event for event in events if isinstance(event, JobDataset)).summary.images == 10
    assert [event.step for event in events if isinstance(event, JobProgress)] == list(range(1, STEPS + 1))
    assert [event.step for event in events if isinstance(event, JobCheckpoint)] == [4, STEPS]
    assert STEPS in [event.step for event in events if isinstance(event, JobSample)]
    output = Path(completed.output_path)
    assert all((output / artifact.path).stat().st_size == artifact.size_bytes for artifact in completed.artifacts)
    assert kinds <= {artifact.kind for artifact in completed.artifacts}
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["spec"]["engine"] == "invoke"
    assert manifest["result"]["versions"]["invoke_training"]
    assert not list(output.parent.glob(".*robot*"))


async def test_a_stop_saves_at_the_next_step_and_the_job_begins_again_elsewhere(fleet: Fleet, materials: Path) -> None:
    """There is no resume: what was trained is reported as wasted, and the next attempt starts at step 1."""
    first = await start_with_invoke(fleet, materials, "first")
    await submit(fleet, "SDXL_LORA", engine="invoke", max_train_steps=60, batch_size=1)
    await fleet.until("robot", JobProgress, count=3)
    first.signal(signal.SIGTERM)
    assert await first.ended() == 0
    await start_with_invoke(fleet, materials, "second")

    events = await fleet.events("robot")

    completed = events[-1]
    assert isinstance(completed, JobCompleted), completed
    attempt = [event for event in events if event.attempt == 1]
    last_step = max(event.step for event in attempt if isinstance(event, JobProgress))
    assert [event.step for event in attempt if isinstance(event, JobCheckpoint)] == [last_step]
    released = next(event for event in attempt if isinstance(event, JobReleased))
    assert released.step == 0
    assert released.usage.wasted_gpu_seconds == released.usage.gpu_seconds
    again = [event for event in events if event.attempt == 2]
    assert next(event for event in again if isinstance(event, JobClaimed)).resume_step == 0
    assert [event.step for event in again if isinstance(event, JobProgress)] == list(range(1, 61))


async def test_a_cancelled_job_leaves_no_process_and_no_result(fleet: Fleet, materials: Path) -> None:
    """In the middle of training."""
    daemon = await start_with_invoke(fleet, materials)
    await submit(fleet, "SDXL_LORA", engine="invoke", max_train_steps=100_000, batch_size=1)
    await fleet.until("robot", JobProgress, count=2)
    (pid,) = daemon.trainers

    await fleet.api.cancel("robot")
    events = await fleet.events("robot")

    assert isinstance(events[-1], JobCancelled)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not (fleet.folder / "models" / "robot").exists()


async def test_a_trainer_that_is_killed_is_tried_again(fleet: Fleet, materials: Path) -> None:
    """From the beginning; nothing of the first attempt is in the result."""
    daemon = await start_with_invoke(fleet, materials)
    await submit(
        fleet, "SDXL_LORA", engine="invoke", max_train_steps=30, batch_size=1, config_overrides={"checkpoint_every": 1}
    )
    await fleet.until("robot", JobCheckpoint, count=2)
    os.killpg(daemon.trainers[0], signal.SIGKILL)

    events = await fleet.events("robot")

    retrying = next(event for event in events if isinstance(event, JobRetrying))
    assert retrying.reason == "trainerCrashed"
    assert isinstance(events[-1], JobCompleted), events[-1]
    assert [event.step for event in events if isinstance(event, JobProgress) and event.attempt == 2] == list(
        range(1, 31)
    )


async def test_a_setting_that_upstream_does_not_know_is_refused_before_the_queue(fleet: Fleet, materials: Path) -> None:
    """By its path, as is one that would reach outside of the job's own folders."""
    await start_with_invoke(fleet, materials)
    job = fleet.job("robot", "SDXL_LORA", engine="invoke")
    wrong = msgspec.structs.replace(job, config_overrides={"lora_rank_dims": 4, "vae_model": "/etc"})
    await fleet.publish(msgspec.json.encode(wrong), type=JOB_TYPE)

    (rejected,) = await fleet.events("robot")

    assert isinstance(rejected, JobRejected)
    assert {fault.path for fault in rejected.faults} == {
        "configOverrides.lora_rank_dims",
        "configOverrides.vae_model",
    }

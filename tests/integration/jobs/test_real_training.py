"""The whole way with the built-in trainer: real training of tiny pipelines, from the queue to the result."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.fleet import GPU_24, ROOT, Fleet
from tests.support.real_training import TRAINER, run_module, start, submit

from training_schemas.events import (
    JobCheckpoint,
    JobClaimed,
    JobCompleted,
    JobFailed,
    JobPhase,
    JobProgress,
    JobReleased,
    JobSample,
)

pytestmark = [pytest.mark.broker, pytest.mark.trainer]


async def test_a_lora_is_trained_from_the_queue_and_loads_in_diffusers(fleet: Fleet, materials: Path) -> None:
    """Phases, steps, samples and checkpoints are events; the adapter is whole, learned, and loaded by a pipeline."""
    await start(fleet, materials)
    wanted = {"validation_prompts": ["a robot"], "validation_inference_steps": 2, "checkpoint_every": 10}
    await submit(fleet, max_train_steps=20, config_overrides=wanted)

    events = await fleet.events("robot")

    completed = events[-1]
    assert isinstance(completed, JobCompleted), completed
    phases = list(dict.fromkeys(event.phase for event in events if isinstance(event, JobPhase)))
    assert phases == [
        *("starting", "checkingDataset", "cachingText", "cachingLatents", "loadingModel", "sampling", "training"),
        *("checkpointing", "exporting"),
    ]
    assert [event.step for event in events if isinstance(event, JobProgress)] == list(range(1, 21))
    assert [event.step for event in events if isinstance(event, JobSample)] == [0, 20]
    assert [event.step for event in events if isinstance(event, JobCheckpoint)] == [10, 20]
    assert completed.fixed_loss_before is not None
    assert completed.fixed_loss_after is not None
    assert completed.fixed_loss_after < completed.fixed_loss_before
    output = Path(completed.output_path)
    assert all((output / artifact.path).stat().st_size == artifact.size_bytes for artifact in completed.artifacts)
    assert {(output / artifact.path).stat().st_mode & 0o777 for artifact in completed.artifacts} == {0o644}
    verified = json.loads(run_module("training_worker.engines.diffusers.export.verify", materials / "model", output))
    assert verified["maxOutputDifference"] > 0


@pytest.mark.parametrize(
    ("training_type", "overrides", "kinds"),
    [
        ("SDXL_LORA", {"train_text_encoder": True}, {"adapter", "kohyaAdapter"}),
        ("SDXL_TEXTUAL_INVERSION", {}, {"embeddings"}),
        # In bfloat16, since by the plan float32 would not fit the simulated GPU.
        ("SDXL_FINETUNE", {"weight_dtype": "bfloat16", "gradient_checkpointing": True}, {"pipeline"}),
    ],
)
async def test_each_type_of_sdxl_is_trained_from_the_queue(
    fleet: Fleet, materials: Path, training_type: str, overrides: dict[str, Any], kinds: set[str]
) -> None:
    """With sample images, checkpoints, and what each makes."""
    await start(fleet, materials)
    wanted = {"validation_prompts": ["a robot"], "validation_inference_steps": 2, "checkpoint_every": 5}
    await submit(fleet, training_type, max_train_steps=10, config_overrides=wanted | overrides)

    events = await fleet.events("robot")

    completed = events[-1]
    assert isinstance(completed, JobCompleted), completed
    assert [event.step for event in events if isinstance(event, JobProgress)] == list(range(1, 11))
    assert [event.step for event in events if isinstance(event, JobSample)] == [0, 10]
    assert [event.step for event in events if isinstance(event, JobCheckpoint)] == [5, 10]
    output = Path(completed.output_path)
    assert all((output / artifact.path).stat().st_size == artifact.size_bytes for artifact in completed.artifacts)
    assert {artifact.kind for artifact in completed.artifacts} == kinds | {"lossCurve", "contactSheet", "sample"}


async def test_a_lora_is_trained_on_two_gpus_together(fleet: Fleet, materials: Path) -> None:
    """Here two processes on the CPU; what they used is what both used, and a stop in the middle costs no step."""
    devices = {"gpus": [GPU_24, GPU_24], "gpus_per_job": 2}
    first = await start(fleet, materials, "first", **devices)
    await submit(fleet, max_train_steps=30, gpu_count=2, config_overrides={"gradient_accumulation_steps": 2})
    await fleet.until("robot", JobProgress, count=5)
    first.signal(signal.SIGTERM)
    assert await first.ended() == 0
    began = time.monotonic()
    await start(fleet, materials, "second", **devices)

    events = await fleet.events("robot")

    at_most = time.monotonic() - began
    completed = events[-1]
    assert isinstance(completed, JobCompleted), completed
    assert [event.step for event in events if isinstance(event, JobProgress)] == list(range(1, 31))
    account = json.loads((Path(completed.output_path) / "manifest.json").read_text())["account"]
    lasted = account["finishedAt"] - account["startedAt"]
    # However slow the machine: each of the two was used for as long as the attempt lasted, and no longer than this.
    assert lasted < account["usage"]["gpuSeconds"] / 2 < at_most


async def test_a_released_lora_resumes_where_it_was_on_another_worker(fleet: Fleet, materials: Path) -> None:
    """SIGTERM in the middle of real training costs no step."""
    first = await start(fleet, materials, "first")
    await submit(fleet, max_train_steps=60)
    await fleet.until("robot", JobProgress, count=5)

    first.signal(signal.SIGTERM)
    assert await first.ended() == 0
    await start(fleet, materials, "second")
    events = await fleet.events("robot")

    assert isinstance(events[-1], JobCompleted), events[-1]
    released = next(event for event in events if isinstance(event, JobReleased))
    claimed = [event for event in events if isinstance(event, JobClaimed)]
    assert released.step == claimed[1].resume_step >= 5
    assert [event.step for event in events if isinstance(event, JobProgress)] == list(range(1, 61))


async def test_a_corrupt_image_fails_the_job_before_any_training(fleet: Fleet, materials: Path) -> None:
    """Every bad file is named, no model is loaded, and the daemon continues."""
    daemon = await start(fleet, materials)
    folder = fleet.folder / "datasets" / "robots"
    images = sorted(folder.glob("*.png"))
    images[0].write_bytes(images[0].read_bytes()[:500])
    images[1].with_suffix(".txt").write_text("")
    await submit(fleet, max_train_steps=5)

    events = await fleet.events("robot")

    failed = events[-1]
    assert isinstance(failed, JobFailed)
    assert failed.reason == "datasetInvalid"
    assert {Path(fault.path).name for fault in failed.faults} == {images[0].name, images[1].with_suffix(".txt").name}
    assert [event.phase for event in events if isinstance(event, JobPhase)] == ["starting", "checkingDataset"]
    assert daemon.process.poll() is None


async def test_a_model_folder_without_its_weights_fails_the_job(fleet: Fleet, materials: Path) -> None:
    """The event names the part that is missing."""
    broken = fleet.folder / "broken"
    shutil.copytree(materials / "model", broken)
    next((broken / "transformer").glob("*.safetensors")).unlink()
    shutil.copytree(materials / "dataset", fleet.folder / "datasets" / "robots")
    await fleet.start(models={"black-forest-labs/FLUX.1-dev": str(broken)}, engines=TRAINER)
    await submit(fleet, max_train_steps=5)

    failed = (await fleet.events("robot"))[-1]

    assert isinstance(failed, JobFailed)
    assert failed.reason in {"modelMissing", "modelInvalid"}
    assert "transformer" in failed.message


def test_the_demo_runs_from_the_queue_to_the_adapter(tmp_path: Path, broker_url: str) -> None:
    """It ends with the adapter, the sample images, the losses, the GPU-seconds and the cost, and all of them are so."""
    output = tmp_path / "demo"
    path = os.pathsep.join(str(ROOT / name) for name in ("schemas", "presets", "daemon"))
    env = os.environ | {"PYTHONPATH": path, "TRAINING_AMQP_URL": broker_url}
    command = [sys.executable, "-m", "training_worker", "demo", "--output", str(output), "--steps", "20"]

    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.rpartition("loading the adapter")[2]
    for name in ("adapter ", "sample before", "sample after", "loss ", "used "):
        assert name in summary
    assert (output / "result" / "pytorch_lora_weights.safetensors").stat().st_size > 0
    assert len(list((output / "result" / "samples").glob("*.png"))) == 2


async def test_a_trainer_does_not_see_the_brokers_address(fleet: Fleet, materials: Path) -> None:
    """Neither its environment nor its command line holds the daemon's secrets."""
    daemon = await start(fleet, materials)
    await submit(fleet, max_train_steps=1000)
    (started,) = await daemon.until_logged("trainer_started")

    process = Path(f"/proc/{started['pid']}")
    seen = await asyncio.to_thread(lambda: (process / "environ").read_bytes() + (process / "cmdline").read_bytes())

    assert b"amqp" not in seen
    assert b"CUDA_VISIBLE_DEVICES=\0" in seen
    await fleet.api.cancel("robot")
    await fleet.events("robot")

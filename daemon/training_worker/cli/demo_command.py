"""The demo: a tiny FLUX LoRA from the queue to the adapter, by the same daemon and trainer that real jobs get.

Some of it is small or simulated: the base model is random and tiny, the GPU is simulated, and training runs on the CPU.
"""

import asyncio
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aio_pika
import msgspec

from training_schemas.events import JobCompleted, JobSample
from training_schemas.jobs import TrainingJob
from training_worker.broker.names import Names
from training_worker.broker.topology import delete_topology
from training_worker.cli.job_view import make_view, money
from training_worker.client.async_client import AsyncTrainingWorkerAPI
from training_worker.client.job_builder import flux_lora_job
from training_worker.errors import TrainingWorkerError
from training_worker.testing.local_broker import find_broker

JOB_ID = "robot"
# The demo's own, on whatever broker it is.
PREFIX = f"training-demo-{os.getpid()}"
CARD = "NVIDIA GeForce RTX 4090:24564MiB"
MODEL = "black-forest-labs/FLUX.1-dev"
PROMPT = "a robot on a blue background"

# A folder is only ever emptied if the demo made it.
MARK = ".training-worker-demo"

CHILD_TIMEOUT = 300.0
STOP_TIMEOUT = 60.0
JOB_TIMEOUT = 1200.0


class DemoError(TrainingWorkerError):
    """A promise of the demo does not hold."""


class Verified(msgspec.Struct, frozen=True, rename="camel"):
    """The result of the adapter's check."""

    adapter: Path
    tensors: int
    bytes: int
    max_output_difference: float


def run_demo(output: Path, steps: int) -> None:
    """Run the whole demo below ``output`` and print the result. Raises `TrainingWorkerError` if anything is wrong."""
    folder = _make_folder(output.resolve())
    with find_broker() as broker:
        _report(f"broker: {broker.description}")
        _report("making a tiny FLUX pipeline and a data set of ten drawn images")
        _child("training_worker.engines.diffusers.models.tiny", folder / "model")
        _child("training_worker.engines.demo_dataset", folder / "dataset")
        try:
            with _daemon(folder, broker.url):
                completed, samples = asyncio.run(_train(folder, broker.url, steps))
        finally:
            asyncio.run(_clean_up(broker.url))
    _report("loading the adapter into a fresh pipeline")
    _summarise(folder, completed, samples, _verify(folder))


def _make_folder(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise DemoError(f"cannot run demo: {folder} is not empty, and no demo made it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    return folder


def _child(module: str, *arguments: Path) -> str:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_TIMEOUT, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise DemoError(f"{module} did not end within {CHILD_TIMEOUT:.0f} s") from None
    if done.returncode != 0:
        raise DemoError(f"{module} failed:\n{done.stderr.strip()}")
    return done.stdout


@contextmanager
def _daemon(folder: Path, url: str) -> Iterator[None]:
    """Run a daemon with a simulated GPU; it must end cleanly, too."""
    config = folder / "worker.toml"
    config.write_text(_settings(folder))
    log = folder / "worker.log"
    _report(f"starting a daemon with a simulated GPU: {CARD} (its log: {log})")
    with log.open("wb") as file:
        command = [sys.executable, "-m", "training_worker", "run", "--config", str(config)]
        daemon = subprocess.Popen(  # noqa: S603
            command, stdout=file, stderr=file, env=os.environ | {"TRAINING_AMQP_URL": url}, start_new_session=True
        )
    try:
        yield
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            status = daemon.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            daemon.kill()
            status = daemon.wait()
    if status != 0:
        raise DemoError(f"daemon ended with status {status}; its log: {log}")


def _settings(folder: Path) -> str:
    return f"""\
worker_id = "demo-worker"
prefix = "{PREFIX}"
state_dir = "{folder}/state"
dataset_roots = ["{folder}"]
output_roots = ["{folder}"]
gpus = ["{CARD}"]

[models]
"{MODEL}" = "{folder}/model"
"""


def _job(folder: Path, steps: int) -> TrainingJob:
    return flux_lora_job(
        job_id=JOB_ID,
        dataset_path=str(folder / "dataset"),
        output_path=str(folder / "result"),
        preset="flux_24gb_balanced",
        resolution=64,
        max_train_steps=steps,
        learning_rate=0.01,
        # A CPU has no use for bfloat16, and the tiny model fits without checkpointing.
        config_overrides={
            "gradient_accumulation_steps": 4,
            "gradient_checkpointing": False,
            "weight_dtype": "float32",
            "validation_prompts": [PROMPT],
            "validation_inference_steps": 8,
        },
    )


async def _train(folder: Path, url: str, steps: int) -> tuple[JobCompleted, list[Path]]:
    api = AsyncTrainingWorkerAPI(url, prefix=PREFIX)
    receipt = await api.submit_job(_job(folder, steps))
    _report(f"submitted job {receipt.job_id} with preset {receipt.plan.preset}")
    samples = []
    async with asyncio.timeout(JOB_TIMEOUT):
        with make_view(receipt.job_id) as view:
            async for event in api.events(receipt.job_id, since=receipt.submitted_at - 10):
                view.show(event)
                if isinstance(event, JobSample):
                    samples.append(folder / "result" / "samples" / Path(event.path).name)
    if not isinstance(event, JobCompleted):
        raise DemoError(f"job ended otherwise than completed: {event}")
    return event, samples


async def _clean_up(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        await delete_topology(await connection.channel(), Names(PREFIX))


def _verify(folder: Path) -> Verified:
    line = _child("training_worker.engines.diffusers.export.verify", folder / "model", folder / "result")
    return msgspec.json.decode(line, type=Verified, dec_hook=lambda _, value: Path(value))


def _summarise(folder: Path, completed: JobCompleted, samples: list[Path], verified: Verified) -> None:
    usage = completed.usage
    before, after = completed.fixed_loss_before or math.nan, completed.fixed_loss_after or math.nan
    wrong = [
        what
        for what, is_so in {
            "the adapter is not in the result": verified.adapter.is_relative_to(folder) and verified.bytes > 0,
            "there are no samples before and after": len(samples) == 2 and all(path.is_file() for path in samples),  # noqa: PLR2004
            "training did not lower the loss on fixed noise": after < before,
            "no GPU-seconds were counted": usage.gpu_seconds > 0,
            "no cost was counted": (usage.cost_usd or 0) > 0,
        }.items()
        if not is_so
    ]
    if wrong:
        raise DemoError(f"demo failed: {'; '.join(wrong)}")
    print(f"""
adapter        {verified.adapter}
               {verified.bytes} bytes, {verified.tensors} tensors, all taken by diffusers' load_lora_weights;
               it changes the model's output by up to {verified.max_output_difference:.4g}
sample before  {samples[0]}
sample after   {samples[1]}
loss           first {completed.first_loss:.4f}, last {completed.last_loss:.4f} (each step at its own noise levels)
               on fixed noise {before:.4f} before, {after:.4f} after
used           {money(usage)} (simulated GPU)""")


def _report(text: str) -> None:
    print(f"demo: {text}", flush=True)

"""The whole product on one GPU: a broker, a daemon, and jobs of each type through the queue, some of them disturbed.

Each scene ends with a job's completion, or with what went wrong; one that has no time left is not begun.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from training_schemas.events import JobClaimed, JobCompleted, JobEvent, JobFailed, JobPhase, JobProgress
from training_schemas.jobs import ModelFamily, TrainingJob, TrainingType
from training_schemas.progress import Phase
from training_worker.client import AsyncTrainingWorkerAPI
from training_worker.client.job_builder import make_job
from training_worker.testing.local_broker import find_broker

PREFIX = "gpu-benchmark"
MODELS = {
    ModelFamily.FLUX: "black-forest-labs/FLUX.1-dev",
    ModelFamily.SDXL: "stabilityai/stable-diffusion-xl-base-1.0",
}
STOP_TIMEOUT = 90.0
SCENE_TIMEOUT = 240.0
TINY_GPU = "NVIDIA GeForce RTX 4090:24564MiB"
# What holds the GPU's memory while a job is planned: a process of its own.
HOLD = "import sys, torch; x = torch.empty(int(sys.argv[1]) << 20, dtype=torch.uint8, device='cuda'); input()"


class SceneResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a scene's job.

    ``phases`` are seconds from the claim of the last attempt to the beginning of each phase and to the first step,
    ``predicted`` and ``measured`` as in `JobCompleted`, ``choices`` and ``gain`` as in the last `JobClaimed`.
    """

    name: str
    outcome: str
    attempts: int = 0
    seconds: float = 0.0
    phases: dict[str, float] = {}
    changes: dict[str, Any] = {}
    choices: Any = None
    gain: float | None = None
    predicted: Any = None
    measured: Any = None
    fault: str | None = None


class Daemon:
    """One daemon on this host, which can be killed and started again over the same state."""

    def __init__(self, folder: Path, url: str, *, tiny: bool) -> None:
        self._folder = folder
        self._environment = os.environ | {"TRAINING_AMQP_URL": url}
        self._config = folder / "worker.toml"
        models = "\n".join(f'"{name}" = "{folder}/{family}"' for family, name in MODELS.items())
        simulated = f'gpus = ["{TINY_GPU}"]' if tiny else ""
        self._config.write_text(f"""\
worker_id = "gpu-benchmark"
prefix = "{PREFIX}"
state_dir = "{folder}/state"
dataset_roots = ["{folder}"]
output_roots = ["{folder}"]
lease = 10
grace = 1
retry_delays = [1]
card_check_interval = 2
healthy_probes = 1
{simulated}

[models]
{models}
""")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        command = [sys.executable, "-m", "training_worker", "run", "--config", str(self._config)]
        with (self._folder / "worker.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own
                command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal and wait for its end."""
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log_tail(self) -> str:
        """Its last lines."""
        return (self._folder / "worker.log").read_text(errors="replace")[-2000:]


Disturb = Callable[["Stage"], Awaitable[None]]


class Stage:
    """What scenes play on: the daemon, the client, the folder with models and data."""

    def __init__(self, folder: Path, url: str, *, tiny: bool) -> None:
        self.folder = folder
        self.tiny = tiny
        self.daemon = Daemon(folder, url, tiny=tiny)
        self.api = AsyncTrainingWorkerAPI(url, prefix=PREFIX)

    async def play(
        self,
        name: str,
        training_type: TrainingType,
        disturb: Disturb | None = None,
        overrides: dict[str, Any] | None = None,
        **fields: Any,
    ) -> SceneResult:
        """Submit a job, disturb it once it trains, and follow it to its end."""
        job = self._job(name, training_type, overrides or {}, **fields)
        watched = Watched(name)
        disturbed = disturb is None
        try:
            async with asyncio.timeout(SCENE_TIMEOUT):
                await self.api.submit_job(job)
                async for event in self.api.events(job.job_id):
                    watched.see(event)
                    if not disturbed and disturb is not None and isinstance(event, JobProgress):
                        disturbed = True
                        await disturb(self)
                    if watched.ended:
                        break
        except TimeoutError:
            return watched.result(fault=f"no end within {SCENE_TIMEOUT:.0f} s: {self.daemon.log_tail()[-400:]}")
        return watched.result()

    def _job(self, name: str, training_type: TrainingType, overrides: dict[str, Any], **fields: Any) -> TrainingJob:
        given: dict[str, Any] = {"max_train_steps": 12} | ({"resolution": 64} if self.tiny else {}) | fields
        if self.tiny:
            flux = {"t5TokenizerMaxLength": 16} if training_type is TrainingType.FLUX_LORA else {}
            overrides = {"weightDtype": "float32"} | flux | overrides
        return make_job(
            training_type,
            job_id=name,
            dataset_path=str(self.folder / "dataset"),
            output_path=str(self.folder / "results" / name),
            config_overrides={"checkpointEvery": 5} | overrides,
            **given,
        )


class Watched:
    """A job's events, as they come."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._began = time.time()
        self._claimed = self._began
        self._attempts = 0
        self._phases: dict[str, float] = {}
        self._claim: JobClaimed | None = None
        self.ended: JobEvent | None = None

    def see(self, event: JobEvent) -> None:
        """Take the next event in."""
        since = time.time() - self._claimed
        match event:
            case JobClaimed():
                self._claim, self._claimed, self._phases = event, time.time(), {}
                self._attempts += 1
            case JobPhase():
                self._phases.setdefault(event.phase.value, since)
            case JobProgress() if event.phase is Phase.TRAINING:
                self._phases.setdefault("firstStep", since)
            case JobCompleted() | JobFailed():
                self.ended = event

    def result(self, fault: str | None = None) -> SceneResult:
        """What became of it."""
        event = self.ended
        done = event if isinstance(event, JobCompleted) else None
        failed = event if isinstance(event, JobFailed) else None
        return SceneResult(
            name=self._name,
            outcome="completed" if done else "failed" if failed else "not ended",
            attempts=self._attempts,
            seconds=time.time() - self._began,
            phases=self._phases,
            changes={} if self._claim is None else self._claim.changes,
            choices=None if self._claim is None else msgspec.to_builtins(self._claim.choices),
            gain=None if self._claim is None else self._claim.gain,
            predicted=None if done is None else msgspec.to_builtins(done.predicted),
            measured=None if done is None else msgspec.to_builtins(done.measured),
            fault=fault or (None if failed is None else f"{failed.reason}: {failed.message} {failed.output_tail[-3:]}"),
        )


async def kill_daemon(stage: Stage) -> None:
    """The daemon dies, and the next one re-attaches to the trainer."""
    await asyncio.to_thread(stage.daemon.send, signal.SIGKILL)
    stage.daemon.start()


async def release(stage: Stage) -> None:
    """The daemon gives the job back with a checkpoint, and the next one resumes it."""
    await asyncio.to_thread(stage.daemon.send, signal.SIGTERM)
    stage.daemon.start()


async def kill_trainer(stage: Stage) -> None:
    """The trainer dies; the daemon tries again."""
    for file in (stage.folder / "state" / "runs").glob("*/process"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(msgspec.json.decode(file.read_bytes())["pid"], signal.SIGKILL)


Scene = Callable[[Stage], Awaitable[SceneResult]]


def scene(name: str, training_type: TrainingType, disturb: Disturb | None = None, **fields: Any) -> tuple[str, Scene]:
    """A scene by its name, which is its job's too."""
    return name, lambda stage: stage.play(name, training_type, disturb, **fields)


def scenes(*, tiny: bool) -> list[tuple[str, Scene]]:
    """All scenes, the most telling first."""
    flux, lora = TrainingType.FLUX_LORA, TrainingType.SDXL_LORA
    inversion = {"triggerWord": "robot-x"}
    return [
        scene("flux-first", flux, preset="flux_24gb_balanced"),
        scene("flux-killed-daemon", flux, kill_daemon, max_train_steps=30),
        scene("sdxl-lora-released", lora, release, max_train_steps=40),
        *([] if tiny else [("flux-crowded", crowded)]),
        scene("flux-killed-trainer", flux, kill_trainer, max_train_steps=20),
        scene("inversion", TrainingType.SDXL_TEXTUAL_INVERSION, overrides=inversion),
        scene("finetune", TrainingType.SDXL_FINETUNE),
    ]


async def crowded(stage: Stage) -> SceneResult:
    """Another process holds most of the GPU's memory, so that the plan has to go down for real."""
    command = [sys.executable, "-c", HOLD, str(62 * 1024)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603, ASYNC220 - our own, and it returns at once
    try:
        await asyncio.sleep(8)
        return await stage.play("flux-crowded", TrainingType.FLUX_LORA, preset="flux_24gb_balanced")
    finally:
        holder.kill()
        holder.wait()


@contextlib.asynccontextmanager
async def stage(folder: Path, *, tiny: bool) -> AsyncIterator[Stage]:
    """A stage with its broker and its daemon."""
    with find_broker() as broker:
        made = Stage(folder, broker.url, tiny=tiny)
        made.daemon.start()
        try:
            yield made
        finally:
            await asyncio.to_thread(made.daemon.send, signal.SIGTERM)


async def play_all(
    folder: Path, deadline: float, *, tiny: bool, show: Callable[[SceneResult], None]
) -> list[SceneResult]:
    """Play all scenes for which there is time before ``deadline`` (of the monotonic clock)."""
    results = []
    async with stage(folder, tiny=tiny) as made:
        for name, play in scenes(tiny=tiny):
            left = deadline - time.monotonic()
            if left <= 0:
                results.append(SceneResult(name=name, outcome="not played", fault="no time left"))
                continue
            try:
                async with asyncio.timeout(left):
                    results.append(await play(made))
            except TimeoutError:
                results.append(SceneResult(name=name, outcome="not ended", fault="no time left"))
            show(results[-1])
    return results

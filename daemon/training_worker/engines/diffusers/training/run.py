"""A run from the checked data set to the result, in the order in which it happens."""

import math
import os
import platform
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training_schemas.progress import CheckpointRecord, DoneRecord, FailedRecord, Phase, StepRecord, WarningRecord
from training_schemas.spec import FluxLoraParameters, RunRequest, RunSpec, SdxlParameters
from training_worker.engines.common.protocol.exit_code import ExitCode
from training_worker.engines.common.protocol.failures import TrainingStopped
from training_worker.engines.common.protocol.gpu_memory import MIB
from training_worker.engines.common.training.checkpoints import checkpoint_folder, drop_old
from training_worker.engines.diffusers.cache.tensor_cache import TensorCache
from training_worker.engines.diffusers.data.dataset import Dataset
from training_worker.engines.diffusers.export.artifacts import describe_artifacts
from training_worker.engines.diffusers.export.contact_sheet import contact_sheet
from training_worker.engines.diffusers.export.loss_curve import loss_curve
from training_worker.engines.diffusers.export.metadata import Result
from training_worker.engines.diffusers.models.loader import ModelLoader
from training_worker.engines.diffusers.pipelines import PIPELINES
from training_worker.engines.diffusers.pipelines.base import TrainingPipeline
from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter
from training_worker.engines.diffusers.protocol.stop_signals import Control
from training_worker.engines.diffusers.training import checkpoints
from training_worker.engines.diffusers.training.checkpoints import Tally
from training_worker.engines.diffusers.training.device import set_up_device
from training_worker.engines.diffusers.training.preparation import Preparation
from training_worker.engines.diffusers.training.process_group import ProcessGroup, SingleProcess
from training_worker.engines.diffusers.training.sampling import Sample, Sampler
from training_worker.engines.diffusers.training.trainer import Trainer
from training_worker.engines.diffusers.training.worker_processes import LEADER, Helpers, failure_of_helper
from training_worker.version import __version__

CACHE_FOLDER = "cache"
SHEET_FILE = "samples.png"
CURVE_FILE = "loss.png"
SHEET = "contactSheet"
CURVE = "lossCurve"
# Whose versions a result depends on.
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors")


def make_pipeline(spec: RunSpec, parameters: FluxLoraParameters | SdxlParameters) -> TrainingPipeline[Any]:
    """What the run trains; nothing of it is loaded yet."""
    kind = PIPELINES[spec.training_type]
    loader = ModelLoader(Path(spec.model_path), kind.family, parameters.weight_dtype, spec.device)
    return kind(loader, parameters, spec.execution)


def open_cache(folder: Path, spec: RunSpec) -> TensorCache:
    """Where the run keeps what encoders make: with the host's other runs, or in its own folder."""
    return TensorCache(Path(spec.cache_path or folder / CACHE_FOLDER), spec.cache_limit_mib * MIB)


class TrainingRun:
    """One attempt at one job."""

    def __init__(  # noqa: PLR0913, PLR0917 - all that a run has to do with, once
        self,
        folder: Path,
        spec: RunSpec,
        parameters: FluxLoraParameters | SdxlParameters,
        dataset: Dataset,
        progress: ProgressWriter,
        control: Control,
    ) -> None:
        self._folder = folder
        self._spec = spec
        self._parameters = parameters
        self._dataset = dataset
        self._progress = progress
        self._control = control
        self._attempt = Path(spec.attempt_path)
        self._cache = open_cache(folder, spec)
        self._pipeline = make_pipeline(spec, parameters)
        self._tally = Tally(losses=[], fixed_loss_before=math.nan)
        self._saved_step = 0
        self._drawn_step: int | None = None
        self._samples: list[Sample] = []

    def run(self) -> None:
        """Prepare, train, export, and report all of it up to the last record.

        Raises:
            TrainingStopped: The run was stopped; steps that no earlier attempt had taken are in a checkpoint.
            TrainingFailure: The run failed for a known reason.
        """
        set_up_device(self._spec)
        with self._cache as cache, self._with_helpers() as group:
            preparation = Preparation(self._pipeline, self._dataset, cache, self._progress, self._control.check)
            preparation.encode(data_on_device=self._spec.execution.data_on_device)
            # The others find in the cache what was encoded.
            group.join()
            with closing(preparation.make_trainer(group)) as trainer:
                try:
                    self._take_all_steps(trainer)
                except TrainingStopped as stop:
                    self._save_checkpoint(trainer)
                    raise TrainingStopped(stop.why, self._tally.step) from None

    def _take_all_steps(self, trainer: Trainer) -> None:
        """Go on from the checkpoint to the result."""
        sampler = Sampler(trainer, self._attempt, self._progress)
        self._resume(trainer)
        trainer.group.broadcast(self._tally.step)
        trainer.align()
        self._begin(trainer, sampler)
        self._train(trainer, sampler)
        self._finish(trainer, sampler)

    @contextmanager
    def _with_helpers(self) -> Iterator[SingleProcess]:
        """Meanwhile there is a process for each GPU of the job."""
        size = self._spec.gpu_count
        if size == 1:
            yield SingleProcess()
            return
        with Helpers(self._folder, size, self._on_helper_failed):
            yield ProcessGroup(self._folder, LEADER, size, self._spec.device)

    def _on_helper_failed(self, rank: int, status: int) -> None:
        """End at once, whatever this process waits for: without the helper there is no next step."""
        failure = failure_of_helper(self._folder, rank, status)
        self._progress.write(FailedRecord, reason=failure.reason, message=str(failure), faults=failure.faults)
        os._exit(ExitCode.FAILED)

    def _resume(self, trainer: Trainer) -> None:
        """Resume from the checkpoint, if there is one; from a broken one the job starts over, which beats giving up."""
        if self._spec.resume_from is None:
            return
        try:
            self._tally = checkpoints.load_checkpoint(Path(self._spec.resume_from), trainer, self._dataset.order)
        except checkpoints.CheckpointError as error:
            self._progress.write(WarningRecord, message=f"{error}; training starts from step 0")
        self._saved_step = self._tally.step

    def _begin(self, trainer: Trainer, sampler: Sampler) -> None:
        """Record what the model can do before the job's first step."""
        if self._tally.step:
            return
        self._tally.fixed_loss_before = trainer.fixed_loss(0, self._control.check)
        self._draw_samples(sampler)

    def _train(self, trainer: Trainer, sampler: Sampler) -> None:
        total = self._parameters.max_train_steps
        self._progress.phase(Phase.TRAINING, total=total)
        while self._tally.step < total:
            rate = trainer.rate
            loss = trainer.step(self._tally.step + 1, self._control.check)
            self._tally.losses.append(loss)
            self._progress.write(StepRecord, step=self._tally.step, total_steps=total, loss=loss, learning_rate=rate)
            if wanted := self._control.requests.take(self._progress) | self._due():
                self._honour(wanted, trainer, sampler)
                self._progress.phase(Phase.TRAINING, total=total)

    def _due(self) -> set[RunRequest]:
        """What the job wants after this step; the last sample images are drawn at the end in any case."""
        settings, step = self._parameters, self._tally.step
        due = {RunRequest.CHECKPOINT: settings.checkpoint_every}
        if settings.validation_prompts:
            due[RunRequest.SAMPLE] = settings.sample_every
        return {request for request, every in due.items() if every and step % every == 0}

    def _honour(self, wanted: set[RunRequest], trainer: Trainer, sampler: Sampler) -> None:
        if RunRequest.CHECKPOINT in wanted:
            self._save_checkpoint(trainer)
        if RunRequest.SAMPLE in wanted and not self._parameters.validation_prompts:
            self._progress.write(WarningRecord, message="cannot draw samples: the job has no validation prompts")
        elif RunRequest.SAMPLE in wanted:
            with trainer.result_weights():
                self._draw_samples(sampler)

    def _save_checkpoint(self, trainer: Trainer) -> None:
        step = self._tally.step
        if step == self._saved_step:
            return
        self._progress.phase(Phase.CHECKPOINTING)
        folder = checkpoint_folder(self._attempt, step)
        checkpoints.save_checkpoint(folder, trainer, self._dataset.order, self._tally)
        self._progress.write(CheckpointRecord, step=step, path=str(folder))
        self._saved_step = step
        # Only now that the daemon can know of the new one.
        drop_old(folder.parent, self._parameters.keep_checkpoints)

    def _draw_samples(self, sampler: Sampler) -> None:
        step = self._tally.step
        if step == self._drawn_step:
            return
        self._samples += sampler.draw(step, self._control.check)
        self._drawn_step = step

    def _finish(self, trainer: Trainer, sampler: Sampler) -> None:
        """Record what the model can do now, and write the result; from there on it is too late to stop."""
        with trainer.result_weights():
            fixed_loss = trainer.fixed_loss(self._tally.step, self._control.check)
            self._draw_samples(sampler)
            self._progress.phase(Phase.EXPORTING)
            self._control.check()
            files = self._pipeline.export(self._attempt, self._result())
        artifacts = describe_artifacts(
            {**files, **self._pictures()}, [sample.path for sample in self._samples], self._attempt
        )
        self._progress.write(
            DoneRecord,
            steps=self._tally.step,
            first_loss=self._tally.losses[0],
            last_loss=self._tally.losses[-1],
            fixed_loss_before=self._tally.fixed_loss_before,
            fixed_loss_after=fixed_loss,
            artifacts=artifacts,
            peak_vram_mib=trainer.group.peak_mib(),
            versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        )

    def _pictures(self) -> dict[Path, str]:
        """Draw what shows the run at a glance."""
        curve, sheet = self._attempt / CURVE_FILE, self._attempt / SHEET_FILE
        loss_curve(list(enumerate(self._tally.losses, start=1)), curve)
        if not self._samples:
            return {curve: CURVE}
        shown = [(sample.step, sample.prompt, sample.path) for sample in self._samples]
        contact_sheet(shown, self._parameters.validation_prompts, sheet)
        return {curve: CURVE, sheet: SHEET}

    def _result(self) -> Result:
        return Result(
            training_type=self._spec.training_type,
            parameters=self._parameters,
            title=self._spec.job_id,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            base_model=self._pipeline.loader.folder.name,
            dataset_hash=self._dataset.report.summary.digest,
            step=self._tally.step,
            worker_version=__version__,
        )

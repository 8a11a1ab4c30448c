"""A FLUX LoRA run from the checked data set to the result, in the order in which it happens."""

import math
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from training_schemas.progress import CheckpointRecord, DoneRecord, Phase, StepRecord, WarningRecord
from training_schemas.spec import FluxLoraParameters, RunRequest, RunSpec
from training_worker.engines.diffusers import checkpoints
from training_worker.engines.diffusers.caching import CachedExample, CachedText, cache_images, cache_texts
from training_worker.engines.diffusers.checkpoints import Tally
from training_worker.engines.diffusers.control import Control
from training_worker.engines.diffusers.data import Example
from training_worker.engines.diffusers.export import export_result
from training_worker.engines.diffusers.failures import TrainingStopped
from training_worker.engines.diffusers.models import ModelLoader, peak_vram_mib, release_memory
from training_worker.engines.diffusers.progress import ProgressWriter
from training_worker.engines.diffusers.sampling import Sampler
from training_worker.engines.diffusers.trainer import Trainer


class FluxLoraRun:
    """One attempt at training a LoRA."""

    def __init__(
        self,
        spec: RunSpec,
        parameters: FluxLoraParameters,
        dataset: Sequence[Example],
        progress: ProgressWriter,
        control: Control,
    ) -> None:
        self._spec = spec
        self._parameters = parameters
        self._dataset = dataset
        self._progress = progress
        self._control = control
        self._attempt = Path(spec.attempt_path)
        self._loader = ModelLoader(Path(spec.model_path), parameters.weight_dtype, spec.device)
        self._tally = Tally(step=0, first_loss=math.nan, last_loss=math.nan, fixed_loss_before=math.nan)
        self._saved_step = 0
        self._drawn_step: int | None = None
        self._samples: list[Path] = []

    def run(self) -> None:
        """Prepare, train, export, and report all of it up to the last record.

        Raises:
            TrainingStopped: The run was stopped; steps that no earlier attempt had taken are in a checkpoint.
            TrainingFailure: The run failed for a known reason.
        """
        texts = self._cache_texts()
        examples = self._cache_examples(texts)
        trainer = self._build_trainer(examples)
        prompts = {prompt: texts[prompt] for prompt in self._parameters.validation_prompts}
        sampler = Sampler(self._loader, self._parameters, prompts, self._attempt, self._progress)
        try:
            self._resume(trainer)
            self._begin(trainer, sampler)
            self._train(trainer, sampler)
            self._finish(trainer, sampler)
        except TrainingStopped as stop:
            self._save_checkpoint(trainer)
            raise TrainingStopped(stop.why, self._tally.step) from None

    def _cache_texts(self) -> dict[str, CachedText]:
        texts = [*(example.caption for example in self._dataset), *self._parameters.validation_prompts]
        self._enter(Phase.CACHING_TEXT, len(texts))
        encoders = self._loader.text_encoders()
        cache = cache_texts(encoders, texts, self._parameters, self._control.check)
        del encoders
        release_memory()
        return cache

    def _cache_examples(self, texts: dict[str, CachedText]) -> list[CachedExample]:
        self._enter(Phase.CACHING_LATENTS, len(self._dataset))
        vae = self._loader.vae()
        images = cache_images(vae, self._dataset, self._parameters.resolution, self._control.check)
        del vae
        release_memory()
        return [
            CachedExample(image=image, text=texts[example.caption])
            for image, example in zip(images, self._dataset, strict=True)
        ]

    def _build_trainer(self, examples: list[CachedExample]) -> Trainer:
        self._enter(Phase.LOADING_MODEL)
        return Trainer(self._loader.transformer(self._parameters.quantization), examples, self._parameters)

    def _resume(self, trainer: Trainer) -> None:
        """Go on from the checkpoint, if there is one; from a broken one the job starts anew, which beats giving up."""
        if self._spec.resume_from is None:
            return
        try:
            self._tally = checkpoints.load_checkpoint(Path(self._spec.resume_from), trainer, self._image_names())
        except checkpoints.CheckpointError as error:
            self._progress.write(WarningRecord, message=f"{error}; training starts from step 0")
        self._saved_step = self._tally.step

    def _enter(self, phase: Phase, total: int | None = None) -> None:
        """Begin a phase which starts with something that cannot be stopped half-way, such as loading a model."""
        self._progress.phase(phase, total)
        self._control.check()

    def _begin(self, trainer: Trainer, sampler: Sampler) -> None:
        """Record what the model can do before the job's first step."""
        if self._tally.step:
            return
        self._tally = replace(self._tally, fixed_loss_before=trainer.fixed_loss(0, self._control.check))
        self._draw_samples(trainer, sampler)

    def _train(self, trainer: Trainer, sampler: Sampler) -> None:
        total, every = self._parameters.max_train_steps, self._parameters.checkpoint_every
        self._progress.phase(Phase.TRAINING, total=total)
        while self._tally.step < total:
            loss = trainer.step(self._tally.step + 1, self._control.check)
            self._tally = self._tally.after_step(loss)
            self._progress.write(
                StepRecord,
                step=self._tally.step,
                total_steps=total,
                loss=loss,
                learning_rate=self._parameters.learning_rate,
            )
            wanted = self._control.requests.take(self._progress)
            if every and self._tally.step % every == 0:
                wanted.add(RunRequest.CHECKPOINT)
            if wanted:
                self._honour(wanted, trainer, sampler)
                self._progress.phase(Phase.TRAINING, total=total)

    def _honour(self, wanted: set[RunRequest], trainer: Trainer, sampler: Sampler) -> None:
        if RunRequest.CHECKPOINT in wanted:
            self._save_checkpoint(trainer)
        if RunRequest.SAMPLE in wanted and not self._parameters.validation_prompts:
            self._progress.write(WarningRecord, message="cannot draw samples: the job has no validation prompts")
        elif RunRequest.SAMPLE in wanted:
            self._draw_samples(trainer, sampler)

    def _save_checkpoint(self, trainer: Trainer) -> None:
        step = self._tally.step
        if step == self._saved_step:
            return
        self._progress.phase(Phase.CHECKPOINTING)
        folder = self._attempt / checkpoints.FOLDER / f"step-{step:08}"
        checkpoints.save_checkpoint(folder, trainer, self._image_names(), self._tally)
        self._progress.write(CheckpointRecord, step=step, path=str(folder))
        self._saved_step = step

    def _draw_samples(self, trainer: Trainer, sampler: Sampler) -> None:
        step = self._tally.step
        if step == self._drawn_step:
            return
        self._samples += sampler.draw(trainer.transformer, step, self._control.check)
        self._drawn_step = step

    def _image_names(self) -> list[str]:
        return [example.image.name for example in self._dataset]

    def _finish(self, trainer: Trainer, sampler: Sampler) -> None:
        """Record what the model can do now, and write the result; from there on it is too late to stop."""
        fixed_loss = trainer.fixed_loss(self._tally.step, self._control.check)
        self._draw_samples(trainer, sampler)
        self._enter(Phase.EXPORTING)
        artifacts = export_result(trainer.transformer, self._attempt, self._samples)
        self._progress.write(
            DoneRecord,
            steps=self._tally.step,
            first_loss=self._tally.first_loss,
            last_loss=self._tally.last_loss,
            fixed_loss_before=self._tally.fixed_loss_before,
            fixed_loss_after=fixed_loss,
            artifacts=artifacts,
            peak_vram_mib=peak_vram_mib(),
        )

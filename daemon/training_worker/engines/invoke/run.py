"""The run: how upstream's training is observed and controlled."""

import importlib
import logging
import math
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..common.protocol.failures import TRAINER_CRASHED, TrainingFailure
from ..common.training.checkpoints import checkpoint_folder, drop_old
from .callbacks import PhaseHandler, callbacks, quiet_bars
from .checkpoints import CHECKPOINT_FILES, keep_checkpoint, require_finite
from .config import NEVER
from .progress_writer import ProgressWriter
from .spec import Spec
from .stop_signals import Control

# What switches each kernel of attention on and off, in ``torch.backends.cuda``.
SWITCHES = {
    "flash_attention": "enable_flash_sdp",
    "efficient_attention": "enable_mem_efficient_sdp",
    "math": "enable_math_sdp",
    "cudnn_attention": "enable_cudnn_sdp",
}


class TrainingRun:
    """Training itself: upstream's callbacks, and control of what it does next."""

    def __init__(self, spec: Spec, config: Any, progress: ProgressWriter, control: Control) -> None:
        self._spec = spec
        self._config = config
        self._progress = progress
        self._control = control
        self._drawing = False
        self.losses: list[float] = []
        self.samples: list[Path] = []
        self.checkpoint: Path | None = None

    def train(self) -> None:
        """Train up to the last checkpoint and the last sample images.

        Raises:
            TrainingStopped: The run was stopped, and a checkpoint holds its steps.
            TrainingFailure: It failed for a known reason. Upstream raises whatever it likes.
        """
        self._progress.phase("loadingModel")
        self._control.check()
        quiet_bars()
        upstream = importlib.import_module("invoke_training.pipelines.invoke_train")
        require_device(self._spec.device)
        choose_attention(self._spec.attention_kernels)
        self._control.check()
        importlib.import_module("accelerate").Accelerator.log = lambda _, values, step=None, **__: self.on_log(
            values, step
        )
        logging.basicConfig(format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", level=logging.INFO)
        logging.getLogger().addHandler(PhaseHandler(self._progress, self._spec.total))
        upstream.train(self._config, [callbacks(self)])
        if self._control.saved_step != self._spec.total:
            steps = f"after {self._control.step} of {self._spec.total} steps"
            raise TrainingFailure(TRAINER_CRASHED, f"cannot go on: invoke-training ended {steps}")

    def on_log(self, values: Mapping[str, Any], step: int | None) -> None:
        """Handle a step, and decide what upstream does after it: upstream reads its config again each time."""
        if step is None:  # the config, before the first step
            return
        if not math.isfinite(loss := values["train_loss"]):
            raise TrainingFailure("lossNotFinite", f"cannot go on: the loss of step {step} is {loss}")
        if self._progress.current_phase != "training":
            self._progress.phase("training", total=self._spec.total)
        self._control.step = step
        self.losses.append(loss)
        rate = next(values[name] for name in sorted(values, key=_rate_order) if name.startswith("lr"))
        self._progress.write("step", step=step, totalSteps=self._spec.total, loss=loss, learningRate=rate)
        self._decide(step)

    def _decide(self, step: int) -> None:
        last, stop = step == self._spec.total, self._control.why_stop() is not None
        wanted = self._control.take_requests() | self._due(step)
        if "sample" in wanted and not self._config.validation_prompts:
            self._progress.warn("cannot draw samples: the job has no validation prompts")
        saving = last or stop or "checkpoint" in wanted
        self._drawing = not stop and bool(self._config.validation_prompts) and (last or "sample" in wanted)
        self._config.save_every_n_steps = 1 if saving else NEVER
        self._config.validate_every_n_steps = 1 if self._drawing else NEVER
        if saving:
            self._progress.phase("checkpointing")
        elif self._drawing:
            self._go_on()

    def _due(self, step: int) -> set[str]:
        every = {"checkpoint": self._spec.parameters["checkpointEvery"]}
        if self._config.validation_prompts:
            every["sample"] = self._spec.parameters["sampleEvery"]
        return {request for request, steps in every.items() if steps and step % steps == 0}

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        """Put a checkpoint where it belongs, and only then report it."""
        source = Path(checkpoint.models[0].file_path)
        require_finite(source, checkpoint.step)
        target = checkpoint_folder(self._spec.attempt, checkpoint.step)
        self.checkpoint = keep_checkpoint(source, target, CHECKPOINT_FILES.get(self._spec.training_type, ""))
        self._progress.write("checkpoint", step=checkpoint.step, path=str(target))
        self._control.saved_step = checkpoint.step
        # Only now that the daemon can know of the new one.
        drop_old(target.parent, self._spec.parameters["keepCheckpoints"])
        self._control.check()
        self._go_on()

    def on_save_validation_images(self, images: Any) -> None:
        """Put sample images where they belong, as PNG, and report each."""
        from PIL import Image  # noqa: PLC0415 # a run without it must report that

        folder = self._spec.attempt / "samples"
        folder.mkdir(exist_ok=True)
        for index, drawn in enumerate(images.images):
            path = folder / f"step-{images.step:08}-{index:02}.png"
            with Image.open(drawn.file_path) as image:
                image.save(path)
            self._progress.write("sample", step=images.step, path=str(path), prompt=drawn.prompt)
            self.samples.append(path)
        self._drawing = False
        self._go_on()

    def _go_on(self) -> None:
        if self._drawing:
            self._progress.phase("sampling", total=len(self._config.validation_prompts))
        elif self._control.step < self._spec.total:
            self._progress.phase("training", total=self._spec.total)


def _rate_order(name: str) -> tuple[bool, bool]:
    """Of Prodigy the rate that it found first, and that of the denoiser before those of text encoders."""
    return not name.startswith("lr/d*lr"), "text_encoder" in name


def choose_attention(kernels: Collection[str]) -> None:
    """Use only these kernels of torch's attention from now on."""
    switches: Any = importlib.import_module("torch").backends.cuda
    for kernel, switch in SWITCHES.items():
        # Earlier versions of torch have neither all kernels nor all switches.
        if hasattr(switches, switch):
            getattr(switches, switch)(kernel in kernels)


def require_device(device: str) -> None:
    """See that a run for a GPU has one: accelerate would go on without, a hundred times as slow."""
    if device != "cpu" and not importlib.import_module("torch").cuda.is_available():
        raise TrainingFailure("hostUnfit", f"cannot train on {device}: torch of {sys.executable} finds no GPU")

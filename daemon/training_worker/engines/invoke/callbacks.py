"""How upstream is listened to: its callbacks, its log, and the bars that it draws."""

import importlib
import logging
from typing import Any, Protocol

from .progress_writer import ProgressWriter


class SaveListener(Protocol):
    """Handles what upstream has saved."""

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        """Handle a checkpoint that was saved."""

    def on_save_validation_images(self, images: Any) -> None:
        """Handle sample images that were saved."""


def callbacks(run: SaveListener) -> Any:
    """Make upstream's callbacks of a listener."""
    base: Any = importlib.import_module("invoke_training.pipelines.callbacks").PipelineCallbacks

    class Callbacks(base):  # type: ignore[misc] # a class of upstream's
        def on_save_checkpoint(self, checkpoint: Any) -> None:
            run.on_save_checkpoint(checkpoint)

        def on_save_validation_images(self, images: Any) -> None:
            run.on_save_validation_images(images)

    return Callbacks()


class PhaseHandler(logging.Handler):
    """Knows upstream's phases by its log, which is the only report of them."""

    PHASES = {
        "Generating text encoder output cache": "cachingText",
        "Generating VAE output cache": "cachingLatents",
        "***** Running training": "training",
    }

    def __init__(self, progress: ProgressWriter, total: int) -> None:
        super().__init__(logging.INFO)
        self._progress = progress
        self._total = total

    def emit(self, record: logging.LogRecord) -> None:
        """Report a phase that begins."""
        message = record.getMessage()
        for beginning, phase in self.PHASES.items():
            if message.startswith(beginning):
                self._progress.phase(phase, total=self._total if phase == "training" else None)


def quiet_bars() -> None:
    """Keep bars of progress out of the output, whose last lines are to show a failure."""
    module: Any = importlib.import_module("tqdm.auto")
    bar: Any = module.tqdm

    class NoBar(bar):  # type: ignore[misc] # a class of tqdm's
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    module.tqdm = NoBar

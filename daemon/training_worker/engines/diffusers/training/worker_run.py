"""A helper's run: its share of each step that the leader's run takes, and nothing else."""

from contextlib import closing
from pathlib import Path

from training_schemas.spec import FluxLoraParameters, RunSpec, SdxlParameters
from training_worker.engines.diffusers.data.dataset import Dataset
from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter
from training_worker.engines.diffusers.training.checkpoints import load_checkpoint
from training_worker.engines.diffusers.training.device import set_up_device
from training_worker.engines.diffusers.training.preparation import Preparation
from training_worker.engines.diffusers.training.process_group import ProcessGroup
from training_worker.engines.diffusers.training.run import make_pipeline, open_cache
from training_worker.engines.diffusers.training.trainer import Trainer


class HelperRun:
    """One process of an attempt at a job, but its leader."""

    def __init__(
        self,
        folder: Path,
        spec: RunSpec,
        parameters: FluxLoraParameters | SdxlParameters,
        dataset: Dataset,
        progress: ProgressWriter,
    ) -> None:
        self._spec = spec
        self._parameters = parameters
        self._dataset = dataset
        self._progress = progress
        self._cache = open_cache(folder, spec)
        self._pipeline = make_pipeline(spec, parameters)

    def run(self, group: ProcessGroup) -> None:
        """Take the leader's steps with it.

        Raises:
            TrainingStopped: The leader has stopped within a step.
            TrainingFailure: The run failed for a known reason.
        """
        set_up_device(self._spec)
        group.join()
        with self._cache as cache:
            preparation = Preparation(self._pipeline, self._dataset, cache, self._progress, _go_on)
            preparation.encode(data_on_device=self._spec.execution.data_on_device)
            with closing(preparation.make_trainer(group)) as trainer:
                for step in range(self._begin(trainer), self._parameters.max_train_steps):
                    trainer.step(step + 1, _go_on)

    def _begin(self, trainer: Trainer) -> int:
        """Stand where the leader stands; returns the steps taken before."""
        step = trainer.group.broadcast(0)
        if step and self._spec.resume_from is not None:
            load_checkpoint(Path(self._spec.resume_from), trainer, self._dataset.order)
        trainer.align()
        return step


def _go_on() -> None:
    """It is the leader that stops."""

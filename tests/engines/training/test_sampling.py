"""Sample images."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.engines.trainers import BuildTrainer

from training_schemas.progress import Phase, PhaseRecord, decode_record
from training_schemas.spec import FluxLoraParameters
from training_worker.engines.common.protocol.failures import TrainingStopped
from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter
from training_worker.engines.diffusers.training.sampling import FOLDER, Sampler

pytestmark = pytest.mark.trainer


@pytest.fixture
def progress(tmp_path: Path) -> Iterator[ProgressWriter]:
    """Where the sampler reports to."""
    with ProgressWriter(tmp_path / "progress") as progress:
        yield progress


def test_a_stop_does_not_wait_for_a_sample(
    tmp_path: Path, build: BuildTrainer, parameters: FluxLoraParameters, progress: ProgressWriter
) -> None:
    """It may take minutes, longer than a trainer is given to stop."""
    patient = replace(parameters, validation_inference_steps=200, validation_prompts=["a"])
    sampler = Sampler(build(patient), tmp_path, progress)
    looks = count(1)

    def stop_at_fifth_look() -> None:
        if next(looks) == 5:
            raise TrainingStopped("test")

    with pytest.raises(TrainingStopped):
        sampler.draw(0, stop_at_fifth_look)

    assert next(looks) == 6
    assert list((tmp_path / FOLDER).iterdir()) == []
    (record,) = map(decode_record, (tmp_path / "progress").read_bytes().splitlines())
    assert isinstance(record, PhaseRecord)
    assert Phase.SAMPLING == record.phase

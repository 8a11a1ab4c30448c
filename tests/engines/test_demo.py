"""What a newcomer trains on: a data set and a model that are made on the spot."""

from pathlib import Path

import pytest
from tests.engines.datasets import read

from training_worker.engines.demo_dataset import write_dataset
from training_worker.engines.diffusers.tiny import write_pipeline

pytestmark = pytest.mark.trainer


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_data_set_is_valid(robots: Path) -> None:
    """Ten robots, each with a caption of its own."""
    dataset = read(robots).examples

    assert len(dataset) == 10
    assert len({example.caption for example in dataset}) == 10


def test_the_data_set_is_always_the_same(tmp_path: Path, robots: Path) -> None:
    """So results can be compared."""
    write_dataset(tmp_path)

    assert contents(robots) == contents(tmp_path)


def test_the_model_is_always_the_same(tmp_path: Path, tiny_model: Path) -> None:
    """And about a megabyte."""
    write_pipeline(tmp_path)

    assert contents(tiny_model) == contents(tmp_path)
    assert sum(map(len, contents(tmp_path).values())) < 1_200_000

"""What a worker remembers of how long steps have taken."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.presets.workloads import workload

from training_schemas.jobs import EngineName
from training_worker.attempts import step_rates
from training_worker.attempts.step_rates import StepRates
from training_worker.gpu.devices import GpuDevice

GPU = GpuDevice(uuid="GPU-1", name="NVIDIA L40S", memory_mib=46068, simulated=False, usd_per_hour=None)
WORK = workload()


def test_what_was_measured_is_found_again_after_a_restart(tmp_path: Path) -> None:
    """By the GPU's name and the settings."""
    StepRates(tmp_path).note(GPU, EngineName.DIFFUSERS, WORK, 2.0)

    assert StepRates(tmp_path).find(GPU, EngineName.DIFFUSERS, WORK) == 2.0


def test_what_does_not_change_a_step_does_not_matter(tmp_path: Path) -> None:
    """Nor on which of two equal GPUs it was."""
    known = StepRates(tmp_path)
    known.note(GPU, EngineName.DIFFUSERS, WORK, 2.0)

    assert (
        known.find(
            replace(GPU, uuid="GPU-2"), EngineName.DIFFUSERS, replace(WORK, steps=7, images=99, validation_prompts=3)
        )
        == 2.0
    )


def test_another_setting_gpu_or_engine_or_a_simulated_one_is_not_known(tmp_path: Path) -> None:
    """A guess from something else is the model's business."""
    known = StepRates(tmp_path)
    known.note(GPU, EngineName.DIFFUSERS, WORK, 2.0)

    assert known.find(GPU, EngineName.DIFFUSERS, replace(WORK, batch_size=2)) is None
    assert known.find(replace(GPU, name="NVIDIA L4"), EngineName.DIFFUSERS, WORK) is None
    assert known.find(replace(GPU, simulated=True), EngineName.DIFFUSERS, WORK) is None
    assert known.find(GPU, EngineName.INVOKE, WORK) is None


def test_a_newer_measurement_counts_as_much_as_all_before_it(tmp_path: Path) -> None:
    """A host changes, and one odd run is not the truth."""
    known = StepRates(tmp_path)
    for seconds in (2.0, 4.0, 5.0):
        known.note(GPU, EngineName.DIFFUSERS, WORK, seconds)

    assert known.find(GPU, EngineName.DIFFUSERS, WORK) == 4.0


def test_only_so_many_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes."""
    monkeypatch.setattr(step_rates, "MOST_RATES", 2)
    known = StepRates(tmp_path)
    for batch in (1, 2, 3):
        known.note(GPU, EngineName.DIFFUSERS, replace(WORK, batch_size=batch), float(batch))

    assert [known.find(GPU, EngineName.DIFFUSERS, replace(WORK, batch_size=batch)) for batch in (1, 2, 3)] == [
        None,
        2.0,
        3.0,
    ]


def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path) -> None:
    """They are measured again."""
    (tmp_path / step_rates.FILE).write_text("{")

    assert StepRates(tmp_path).find(GPU, EngineName.DIFFUSERS, WORK) is None


def test_a_disk_that_is_full_stops_nothing(tmp_path: Path) -> None:
    """What was measured is known until the daemon ends."""
    known = StepRates(tmp_path / "gone")
    known.note(GPU, EngineName.DIFFUSERS, WORK, 2.0)

    assert known.find(GPU, EngineName.DIFFUSERS, WORK) == 2.0


def test_the_newest_are_reported_with_what_is_not_as_usual(tmp_path: Path) -> None:
    """Of these kinds of GPUs alone; what was measured again is new."""
    known = StepRates(tmp_path)
    for batch in (1, 2):
        known.note(GPU, EngineName.DIFFUSERS, replace(WORK, batch_size=batch), float(batch))
    known.note(GPU, EngineName.DIFFUSERS, replace(WORK, batch_size=1), 1.0)
    known.note(replace(GPU, name="NVIDIA L4"), EngineName.DIFFUSERS, WORK, 9.0)
    known.note(replace(GPU, simulated=True), EngineName.DIFFUSERS, WORK, 9.0)

    first, second = StepRates(tmp_path).newest([replace(GPU, uuid="GPU-2"), GPU])

    assert (first.card, first.training_type, first.engine) == (GPU.name, WORK.training_type, "diffusers")
    assert (first.seconds_per_step, second.seconds_per_step) == (1.0, 2.0)
    assert (first.settings["batchSize"], second.settings["batchSize"]) == (1, 2)
    assert first.settings["width"] == WORK.width
    assert "fusedBackward" not in first.settings
    (simulated,) = known.newest([replace(GPU, simulated=True)])
    assert simulated.card == GPU.name


def test_only_so_many_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event is no file."""
    monkeypatch.setattr(step_rates, "MOST_PUBLISHED", 2)
    known = StepRates(tmp_path)
    for batch in (1, 2, 3):
        known.note(GPU, EngineName.DIFFUSERS, replace(WORK, batch_size=batch), float(batch))

    assert [rate.seconds_per_step for rate in known.newest([GPU])] == [3.0, 2.0]


@pytest.mark.parametrize("settings", ["", " {", " {}", ' {"training_type": "SD3"}'])
def test_what_another_version_wrote_is_not_reported(tmp_path: Path, settings: str) -> None:
    """A worker that reports no rate is better than none."""
    (tmp_path / step_rates.FILE).write_text(json.dumps({GPU.name + settings: 1.0}))

    assert StepRates(tmp_path).newest([GPU]) == []

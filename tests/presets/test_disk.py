"""What a run needs on disk."""

import msgspec
import pytest
from tests.presets.workloads import workload

from training_presets.disk import disk_need
from training_presets.memory import MIB

GIB = 1024 * MIB


def test_an_adapter_is_its_weights_twice_and_a_checkpoint_its_states_too() -> None:
    """Parameters of 4 bytes, and Adam's two moments of each."""
    work = workload(lora_rank=16, checkpoints=9)
    weights = work.trained_parameters * 4
    need = disk_need(work, keep_checkpoints=3, sample_every=0)

    assert need.result == 2 * weights + 16 * MIB
    assert need.checkpoints == 4 * 3 * weights
    assert need.samples == 0


def test_a_finetune_is_a_whole_pipeline() -> None:
    """SDXL in bfloat16 is 6.5 GiB, each checkpoint has all weights with their moments."""
    need = disk_need(workload("SDXL_FINETUNE", 1024, checkpoints=1), keep_checkpoints=2, sample_every=0)

    assert need.result / GIB == pytest.approx(6.48, abs=0.1)
    assert need.checkpoints / GIB > 2 * 14


def test_a_run_without_checkpoints_has_one_when_it_is_stopped() -> None:
    """And a run that makes fewer than it may keep needs room for those alone."""
    none, two, many = (
        disk_need(workload(checkpoints=count), keep_checkpoints=10, sample_every=0).checkpoints for count in (0, 2, 10)
    )

    assert two == 3 * none
    assert many == 11 * none


def test_sample_images_are_counted_by_prompt_and_round() -> None:
    """Before, after, and every so many steps."""
    work = workload(size=512, steps=100, validation_prompts=2)

    assert disk_need(work, keep_checkpoints=1, sample_every=50).samples == 2 * 4 * 512 * 512 * 3


def test_what_is_cached_lies_on_the_host() -> None:
    """By image and caption; without caches there is the run folder alone."""
    work = workload(images=100)
    bare = msgspec.structs.replace(work, cache_text=False, cache_latents=False)

    assert disk_need(bare, keep_checkpoints=1, sample_every=0).state == 64 * MIB
    assert disk_need(work, keep_checkpoints=1, sample_every=0).state > 64 * MIB + 100 * 4 * MIB


def test_a_textual_inversion_leaves_next_to_nothing() -> None:
    """Its checkpoints have the states of whole tables."""
    need = disk_need(workload("SDXL_TEXTUAL_INVERSION", 1024), keep_checkpoints=1, sample_every=0)

    assert need.result == 16 * MIB
    assert need.checkpoints > 100 * MIB

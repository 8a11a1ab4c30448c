"""The model of memory: sizes that can be computed by hand, and that more of anything never needs less."""

from typing import Any

import pytest
from hypothesis import given, settings
from msgspec.structs import replace
from tests.presets.workloads import workload, workloads

from training_presets.memory import GIB, PhaseMemory, estimate_memory, optimizer_bytes
from training_presets.workload import Workload
from training_schemas.progress import Phase
from training_schemas.spec import Quantization, WeightDtype

ALMOST = 1e-9


def phase(work: Workload, name: Phase) -> PhaseMemory:
    """One phase of a run."""
    (found,) = [one for one in estimate_memory(work).phases if one.phase is name]
    return found


def training(work: Workload) -> dict[str, float]:
    """The parts of training, in GiB."""
    return {name: size / GIB for name, size in phase(work, Phase.TRAINING).parts.items()}


@pytest.mark.parametrize(
    ("training_type", "fields", "gib"),
    [
        ("FLUX_LORA", {}, 22.168),
        ("FLUX_LORA", {"quantization": "nf4"}, 6.239),
        ("FLUX_LORA", {"quantization": "int8"}, 11.087),
        ("FLUX_LORA", {"weight_dtype": "float32"}, 44.337),
        ("SDXL_LORA", {}, 4.782),
    ],
)
def test_the_base_takes_what_its_weights_take(training_type: str, fields: dict[str, Any], gib: float) -> None:
    """As counted on the published configurations."""
    assert training(workload(training_type, **fields))["denoiser"] == pytest.approx(gib, abs=0.005)


@pytest.mark.parametrize(
    ("optimizer", "numbers"), [("adamw", 8.0), ("adamw8bit", 2 * (1 + 4 / 256)), ("prodigy", 16.0), ("adafactor", 0.04)]
)
def test_an_optimizer_keeps_its_states_of_each_parameter(optimizer: str, numbers: float) -> None:
    """Bytes for each of the adapter's parameters, which are in float32."""
    work = workload(optimizer=optimizer, lora_rank=16)

    assert work.trained_parameters == 16 * 1_634_304
    assert optimizer_bytes(work) == pytest.approx(work.trained_parameters * numbers)


def test_what_is_cached_is_not_there_while_it_trains() -> None:
    """Neither the text encoders, 9.1 GiB of them, nor the autoencoder."""
    cached, resident = training(workload()), training(workload(cache_text=False, cache_latents=False))

    assert not {"textEncoders", "vae"} & cached.keys()
    assert resident["textEncoders"] == pytest.approx(9.1, abs=0.02)
    assert resident["vae"] == pytest.approx(0.156, abs=0.001)


def test_checkpointed_flux_keeps_one_hidden_state_a_block() -> None:
    """57 blocks of 3,072 numbers in 16 bits for each token, and what one block needs while it is recomputed."""
    tokens = 32 * 32 + 512
    activations = phase(workload(), Phase.TRAINING).parts["activations"]

    assert 57 * 3072 * 2 * tokens < activations < 2.2 * 57 * 3072 * 2 * tokens
    assert phase(workload(gradient_checkpointing=False), Phase.TRAINING).parts["activations"] > 8 * activations


@pytest.mark.parametrize(
    ("fields", "least", "most"),
    [
        ({"keep_attention": True}, 56 * 6240, 56 * 6240),
        ({"stored_blocks": 1}, 65_000, 95_000),
        ({"stored_blocks": 10}, 650_000, 950_000),
    ],
)
def test_what_flux_keeps_instead_of_making_it_again(fields: dict[str, Any], least: float, most: float) -> None:
    """Bytes a token: 0.35 MB of what attention gave in all blocks, and 91 KB of one block, less with leaner layers."""
    kept, none = (phase(work, Phase.TRAINING).parts["activations"] for work in (workload(**fields), workload()))

    assert least * (1 - ALMOST) <= (kept - none) / (32 * 32 + 512) <= most * (1 + ALMOST)


def test_flux_with_all_blocks_but_one_stored_needs_as_much_as_without_checkpointing() -> None:
    """While the one is made again, it is there like the others."""
    stored, all_of_them = workload(stored_blocks=56), workload(gradient_checkpointing=False)

    assert peak(stored) == pytest.approx(peak(all_of_them))


def test_data_on_the_gpu_takes_what_the_cache_holds() -> None:
    """64 x 64 latents of 16 numbers in float32, and 512 embeddings of 4,096 in 16 bits, of each image."""
    parts = phase(workload(data_on_device=True, images=100), Phase.TRAINING).parts

    assert parts["data"] == 100 * (64 * 64 * 16 * 4 + 512 * 4096 * 2)


def test_a_run_without_sample_images_has_no_phase_for_them() -> None:
    """Nor one for captions, if they are encoded again each time."""
    names = [one.phase for one in estimate_memory(workload(cache_text=False)).phases]

    assert names == [Phase.CACHING_LATENTS, Phase.LOADING_MODEL, Phase.TRAINING]
    assert Phase.SAMPLING in [one.phase for one in estimate_memory(workload(validation_prompts=1)).phases]


def test_a_quantized_base_is_never_loaded_as_a_whole() -> None:
    """Loading needs no more than training."""
    work = workload(quantization="nf4")

    assert phase(work, Phase.LOADING_MODEL).total <= phase(work, Phase.TRAINING).total


def peak(work: Workload) -> float:
    return estimate_memory(work).peak.total


@settings(max_examples=2_000, deadline=None)
@given(workloads())
def test_more_of_anything_never_needs_less(work: Workload) -> None:
    """Of images at once, pixels, rank, bits of a weight, and of what is kept instead of recomputed."""
    least = peak(work) * (1 - ALMOST)

    assert 0 < least < float("inf")
    assert peak(replace(work, batch_size=work.batch_size + 1)) >= least
    assert peak(replace(work, width=work.width + 16)) >= least
    assert peak(replace(work, height=work.height + 16)) >= least
    assert peak(replace(work, lora_rank=work.lora_rank + 1)) >= least
    assert peak(replace(work, weight_dtype=WeightDtype.FLOAT32)) >= least
    assert peak(replace(work, quantization=Quantization.NONE)) >= least
    assert peak(replace(work, validation_prompts=work.validation_prompts + 1)) >= least
    assert peak(replace(work, stored_blocks=work.stored_blocks + 1)) >= least
    assert peak(replace(work, keep_attention=True)) >= least
    assert peak(replace(work, gradient_checkpointing=False)) >= peak(replace(work, keep_attention=False)) * (1 - ALMOST)
    assert peak(replace(work, data_on_device=True)) >= least


@settings(max_examples=500, deadline=None)
@given(workloads())
def test_the_peak_is_the_largest_phase_and_each_the_sum_of_its_parts(work: Workload) -> None:
    """Nothing is counted that is not shown."""
    memory = estimate_memory(work)

    assert memory.peak.total == max(sum(one.parts.values()) for one in memory.phases)
    assert memory.peak_mib * 2**20 >= memory.peak.total > (memory.peak_mib - 1) * 2**20
    assert all(size >= 0 for one in memory.phases for size in one.parts.values())

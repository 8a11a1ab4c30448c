"""8-bit weights, multiplied out: the same numbers from every way to do it."""

import pytest
import torch

from training_worker.engines.diffusers.models.quantization import FP8, LARGEST, EightBitLinear
from training_worker.engines.diffusers.models.restoring import GuardedRestore, restore, restore_in_torch

pytestmark = pytest.mark.trainer

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"))
TYPES = [torch.float32, torch.bfloat16, torch.float16]


def all_numbers(form: torch.dtype) -> torch.Tensor:
    """Every number of a format that weights are kept in, five to a row, so that no row fills what a kernel takes."""
    every = torch.arange(256, dtype=torch.uint8).view(form)
    finite = every[every.float().abs() <= LARGEST[form]]
    rows = finite.view(torch.uint8)[: len(finite) // 5 * 5].reshape(-1, 5)
    return rows.view(form)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("form", LARGEST)
def test_every_number_is_restored_exactly(form: torch.dtype, dtype: torch.dtype, device: str) -> None:
    """It times its scale in float32, then rounded once."""
    numbers = all_numbers(form)
    scale = torch.rand(len(numbers), 1, generator=torch.Generator().manual_seed(0))

    restored = restore(numbers.to(device), scale.to(device), dtype)

    torch.testing.assert_close(restored.cpu(), (numbers.float() * scale).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("form", LARGEST)
def test_rows_longer_than_a_piece_are_restored(form: torch.dtype, device: str) -> None:
    """On a GPU several programs of the kernel share a row, and the last has less to do."""
    linear = torch.nn.Linear(3000, 7, dtype=torch.bfloat16)
    layer = EightBitLinear(linear, form, torch.device(device))

    restored = layer.full_weight(torch.bfloat16)

    expected = restore_in_torch(layer.weight.detach(), layer.scale, torch.bfloat16)
    torch.testing.assert_close(restored, expected, rtol=0, atol=0)


def test_a_kernel_that_fails_is_done_without() -> None:
    """The failure is logged once; from then on torch's operations do it."""
    calls = []

    def kernel(*_: object) -> torch.Tensor:
        calls.append(1)
        raise RuntimeError("type not supported in this architecture")

    guarded, numbers = GuardedRestore(kernel), all_numbers(FP8)
    scale = torch.rand(len(numbers), 1)

    with pytest.warns(RuntimeWarning, match="not supported in this architecture"):
        first = guarded.restore(numbers, scale, torch.bfloat16)
    second = guarded.restore(numbers, scale, torch.bfloat16)

    assert [1] == calls
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_gpu_without_memory_is_not_the_kernels_failure() -> None:
    """The job is to know of it, and goes on with less."""

    def kernel(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        GuardedRestore(kernel).restore(all_numbers(FP8), torch.rand(1, 1), torch.bfloat16)

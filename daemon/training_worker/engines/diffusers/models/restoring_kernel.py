"""The kernel that restores 8-bit weights on a CUDA GPU, in Triton's language; torch for CUDA brings Triton along."""

from typing import Any

import torch
import triton
import triton.language as tl

COLUMNS = 1024  # of a row, that one program of the kernel restores


@triton.jit  # type: ignore[untyped-decorator]
def _restore_block(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0913, PLR0917 # nothing but arguments
    numbers,  # noqa: ANN001 # Triton reads annotations as its own
    scales,  # noqa: ANN001
    restored,  # noqa: ANN001
    columns,  # noqa: ANN001
    floats: tl.constexpr,
    width: tl.constexpr,
):
    """Restore a piece of a row, all in registers: one byte is read for each number that is written."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * width + tl.arange(0, width)
    inside = column < columns
    number = tl.load(numbers + row * columns + column, mask=inside, other=0)
    if floats:
        # Sign, 4 bits of exponent, 3 of mantissa: moved to where float16 has them, whose exponent's bias is 8 more.
        wide = number.to(tl.int32)
        bits = (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.uint16)
        value = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    else:
        value = number.to(tl.float32)
    result = value * tl.load(scales + row)
    tl.store(restored + row * columns + column, result.to(restored.dtype.element_ty), mask=inside)


def restore_on_card(numbers: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Multiply 8-bit numbers (out, in) by a float32 scale (out, 1), rounded once to ``dtype``."""
    rows, columns = numbers.shape
    restored = torch.empty(rows, columns, dtype=dtype, device=numbers.device)
    floats = numbers.dtype.is_floating_point
    # Not every GPU's compiler knows 8-bit floats: their bits go in.
    read: Any = numbers.view(torch.uint8) if floats else numbers
    grid = (rows, triton.cdiv(columns, COLUMNS))
    _restore_block[grid](read, scale, restored, columns, floats=floats, width=COLUMNS)
    return restored

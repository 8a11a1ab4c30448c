"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of queries and keys, in float32 and rounded once.

Neighbouring features are a complex number, which is turned by an angle that depends on its token's position.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

Cosines = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

SHAPES = 16  # that tables are kept of; at 1024 pixels each is 5 MB


class RotaryTables:
    """The tables of positions that were met, the latest of them: making one takes some dozens of operations."""

    def __init__(self, embed: Cosines) -> None:
        self._embed = embed
        self._tables: OrderedDict[tuple[int, int], tuple[torch.Tensor, ...]] = OrderedDict()

    def of(self, texts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Give the table (2, tokens, 1, width / 2, 2) of cosines and sines there, and back.

        ``texts`` and ``images`` are positions (tokens, axes). Tables are found by these very tensors: their number of
        tokens does not distinguish a tall image from a wide one, and reading them would wait for the GPU.
        """
        key = (id(texts), id(images))
        if key not in self._tables:
            # The positions stay alive with it, so that no others can come to their places.
            self._tables[key] = (self._make(torch.cat((texts, images))), texts, images)
        self._tables.move_to_end(key)
        if len(self._tables) > SHAPES:
            self._tables.popitem(last=False)
        return self._tables[key][0]

    @torch.no_grad()
    def _make(self, positions: torch.Tensor) -> torch.Tensor:
        cosines, sines = (one[:, None, ::2] for one in self._embed(positions))
        return torch.stack([torch.stack([cosines, sines], dim=-1), torch.stack([cosines, -sines], dim=-1)])


def rotate(table: torch.Tensor, queries: list[torch.Tensor], keys: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Join parts (batch, tokens, heads, width) of queries along their tokens, and of keys, and turn them."""
    if torch.compiler.is_compiling():  # a compiler fuses plain products, and knows no complex numbers
        return _turned_plainly(table[0], queries), _turned_plainly(table[0], keys)
    outputs: tuple[torch.Tensor, ...] = _Rotate.apply(table, *queries, *keys)  # type: ignore[no-untyped-call]
    return outputs


def _turned_plainly(table: torch.Tensor, parts: list[torch.Tensor]) -> torch.Tensor:
    joined = torch.cat(parts, dim=1)
    real, imaginary = joined.float().view(*joined.shape[:-1], -1, 2).unbind(-1)
    cosines, sines = table.unbind(-1)
    turned = torch.stack([real * cosines - imaginary * sines, real * sines + imaginary * cosines], dim=-1)
    return turned.flatten(-2).to(joined.dtype)


class _Rotate(torch.autograd.Function):
    """Queries and keys together, joined and made float32 in one operation each."""

    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(table)
        half = len(parts) // 2
        ctx.lengths = [part.shape[1] for part in parts[:half]]
        batch, _, heads, width = parts[0].shape
        both = parts[0].new_empty(2, batch, sum(ctx.lengths), heads, width, dtype=torch.float32)
        torch.cat(parts[:half], dim=1, out=both[0])
        torch.cat(parts[half:], dim=1, out=both[1])
        query, key = _turn(both, table[0]).to(parts[0].dtype).unbind(0)
        return query, key

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (table,) = ctx.saved_tensors
        both = gradients[0].new_empty(2, *gradients[0].shape, dtype=torch.float32)
        torch.stack(gradients, out=both)
        query, key = _turn(both, table[1]).to(gradients[0].dtype).unbind(0)
        return None, *query.split_with_sizes(ctx.lengths, dim=1), *key.split_with_sizes(ctx.lengths, dim=1)


def _turn(numbers: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn float32 numbers (..., tokens, heads, width), in place."""
    torch.view_as_complex(numbers.view(*numbers.shape[:-1], -1, 2)).mul_(torch.view_as_complex(table))
    return numbers

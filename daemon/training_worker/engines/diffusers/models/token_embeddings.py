"""New tokens of a text encoder: their embeddings learn, while its table of all others is not touched."""

from typing import Any

import torch


class ExtendedEmbedding(torch.nn.Module):
    """An encoder's table of token embeddings with a few more rows, float32, that learn.

    Only they have gradients and optimizer states: the table has tens of thousands of rows.
    """

    def __init__(self, table: torch.nn.Embedding, vectors: torch.Tensor) -> None:
        super().__init__()
        self.table = table
        self.vectors = torch.nn.Parameter(vectors.float())

    @property
    def weight(self) -> torch.Tensor:
        """The table without the new rows; other programs ask it for its type and device."""
        return self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embed tokens (any shape) to (that shape, width) in the table's type."""
        known = self.table.num_embeddings
        found: torch.Tensor = self.table(ids.clamp(max=known - 1))
        new = self.vectors[(ids - known).clamp(min=0)].to(found.dtype)
        return torch.where((ids >= known)[..., None], new, found)


def new_tokens(word: str, count: int) -> list[str]:
    """The tokens that a word stands for, by the names under which diffusers replaces it with all of them."""
    return [word, *(f"{word}_{number}" for number in range(1, count))]


def add_tokens(tokenizer: Any, encoder: Any, tokens: list[str], initial: str, seed: int) -> torch.nn.Parameter:
    """Give a tokenizer and its encoder new tokens; returns their embeddings (count, width).

    They begin as the embedding of ``initial``, or without one, as normal noise with the mean deviation of the table.

    Raises:
        ValueError: A token is known already, or ``initial`` is not one token.
    """
    if tokenizer.add_tokens(tokens) != len(tokens):
        raise ValueError(f"{tokens[0]} is a token of the model already; choose another trigger word")
    table = encoder.get_input_embeddings()
    extended = ExtendedEmbedding(table, _initial(tokenizer, table, initial, len(tokens), seed)).to(table.weight.device)
    encoder.set_input_embeddings(extended)
    return extended.vectors


def _initial(tokenizer: Any, table: torch.nn.Embedding, initial: str, count: int, seed: int) -> torch.Tensor:
    rows = table.weight.detach().float().cpu()
    if not initial:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, rows.shape[1], generator=generator) * rows.std(dim=0)
    ids = tokenizer.encode(initial, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(f"initial token {initial!r} is {len(ids)} tokens of the model and must be one")
    return rows[ids[0]].repeat(count, 1)

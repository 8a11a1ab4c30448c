"""Blocks that torch compiles: one graph for all blocks of a kind and for any number of tokens."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException


class CompiledBlock:
    """A block as the compiler makes it, or as it is from when the compiler has failed: no job fails of that."""

    backend = "inductor"

    def __init__(self, block: Callable[..., Any]) -> None:
        self._block = block
        # The function of its class: graphs are kept, and counted, by that.
        call: Callable[..., Any] = type(block).__call__
        self._compiled: Callable[..., Any] | None = torch.compile(call, fullgraph=True, backend=self.backend)

    def __call__(self, *inputs: Any) -> Any:
        """Run it, compiled where it trains. Raises what the block itself raises."""
        if self._compiled is not None and torch.is_grad_enabled():
            for tokens in inputs:
                if isinstance(tokens, torch.Tensor):  # not the weights, which have the same shapes for all blocks
                    torch._dynamo.maybe_mark_dynamic(tokens, 1)  # noqa: SLF001 # its public place
            try:
                with warnings.catch_warnings():
                    # The compiler's own, of what it does to find out what a function does.
                    warnings.simplefilter("ignore")
                    return self._compiled(self._block, *inputs)
            except TorchDynamoException as error:
                message = f"blocks are not compiled any further, which is slower: {type(error).__name__}: {error}"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
                self._compiled = None
        return self._block(*inputs)

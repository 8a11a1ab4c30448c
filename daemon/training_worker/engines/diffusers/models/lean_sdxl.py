"""SDXL's UNet with an adapter of peft, the layers beside which it is in as few operations as torch has for them.

The rest of the UNet is that of diffusers, under autocast where the base is not float32. All names of weights stay.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import Attention
from torch.nn.functional import scaled_dot_product_attention

from training_worker.engines.diffusers.models.adapter_groups import LayerGroup, Tensors
from training_worker.engines.diffusers.models.attention import split_heads
from training_worker.engines.diffusers.models.working_copies import WorkingCopies


def make_lean(unet: UNet2DConditionModel, dtype: torch.dtype) -> WorkingCopies:
    """Let a UNet with an adapter compute what is beside the adapter in ``dtype``, that of its base."""
    copies = _Copies(dtype)
    taken: set[Any] = set()
    for module in unet.modules():
        if isinstance(module, Attention) and hasattr(module.to_q, "lora_A"):
            module.set_processor(LeanAttention(module, copies))
            taken |= {module.to_q, module.to_k, module.to_v}
    for module in unet.modules():
        if hasattr(module, "lora_A") and module not in taken:
            module.forward = _One(module, copies)
    working = copies.begin()
    unet.register_forward_pre_hook(lambda *_: copies.renew())
    return working


class _Copies:
    """The weights of all groups as they are in the current pass."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._groups: list[LayerGroup] = []
        self._current: list[Tensors] = []

    def add(self, layers: list[Any]) -> "_Group":
        """Make a group of layers."""
        self._groups.append(LayerGroup(layers))
        return _Group(self, len(self._groups) - 1)

    def begin(self) -> WorkingCopies:
        """Take the weights over, after the last group has been added."""
        self._working = WorkingCopies(self._groups, self.dtype)
        return self._working

    def renew(self) -> None:
        """Make new copies, for a pass that begins."""
        self._current = self._working.make()

    def call(self, index: int, inputs: torch.Tensor) -> Tensors:
        return self._groups[index](self._current[index], inputs.to(self.dtype))


class _Group:
    """A group of layers with its weights."""

    def __init__(self, copies: _Copies, index: int) -> None:
        self._copies = copies
        self._index = index

    def __call__(self, inputs: torch.Tensor) -> Tensors:
        return self._copies.call(self._index, inputs)


class _One:
    """A layer in the place of peft's own way to compute it."""

    def __init__(self, layer: Any, copies: _Copies) -> None:
        self._group = copies.add([layer])

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        (output,) = self._group(inputs)
        return output


class LeanAttention:
    """An attention of the UNet, to itself or to the text, with its projections as groups."""

    def __init__(self, attention: Attention, copies: _Copies) -> None:
        layers = [attention.to_q, attention.to_k, attention.to_v]
        if attention.is_cross_attention:
            self._groups = [copies.add(layers[:1]), copies.add(layers[1:])]
        else:
            self._groups = [copies.add(layers)]

    def __call__(
        self,
        attention: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend over tokens (batch, tokens, features)."""
        inputs = [hidden_states] if encoder_hidden_states is None else [hidden_states, encoder_hidden_states]
        projections = [one for group, given in zip(self._groups, inputs, strict=True) for one in group(given)]
        query, key, value = (split_heads(one, attention.heads).transpose(1, 2) for one in projections)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        output: torch.Tensor = attention.to_out[0](attended.transpose(1, 2).flatten(2))
        return output

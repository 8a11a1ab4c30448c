"""FLUX's blocks in as few operations as torch has for them; what they compute is what those of diffusers do.

A block here is beside its module of diffusers, whose layers it calls, and holds no weights of its own. It takes its
modulation as it is, for nothing of that depends on the image: it is computed before, and not again where the block is.
Norms, scale and shift are one kernel, which computes in float32; no autocast is to be around it.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch.nn.functional import gelu, layer_norm

from training_worker.engines.diffusers.models.adapter_groups import LayerGroup, Tensors
from training_worker.engines.diffusers.models.attention import attend, split_heads
from training_worker.engines.diffusers.models.rotary import rotate

LARGEST_HALF = 65504.0  # of float16; diffusers' blocks stay below it, too

Copies = Sequence[Tensors]


class DoubleBlock:
    """A block with weights for the image and weights for the text; they attend together."""

    def __init__(self, block: Any) -> None:
        attention, image, text = block.attn, block.ff.net, block.ff_context.net
        self.module = block
        self.groups = [
            LayerGroup([attention.to_q, attention.to_k, attention.to_v]),
            LayerGroup([attention.add_q_proj, attention.add_k_proj, attention.add_v_proj]),
            LayerGroup([attention.to_out[0]]),
            LayerGroup([attention.to_add_out]),
            *(LayerGroup([layer]) for layer in (image[0].proj, image[2], text[0].proj, text[2])),
        ]

    def modulation(self, condition: torch.Tensor) -> Tensors:
        """Compute that of the image and that of the text: shift, scale, gate, shift, scale and gate."""
        return modulate(self.module.norm1, condition), modulate(self.module.norm1_context, condition)

    def __call__(
        self, copies: Copies, image: torch.Tensor, text: torch.Tensor, modulation: Tensors, table: torch.Tensor
    ) -> Tensors:
        """Compute image and text (batch, tokens, features); ``copies`` are the weights for each of its groups."""
        query_key_value, added, out, added_out, *feed_forwards = zip(self.groups, copies, strict=True)
        of_image, of_text = (one.chunk(6, dim=1) for one in modulation)
        attention = self.module.attn
        query, key, value = self._projections(query_key_value, modulated(image, of_image[0], of_image[1]))
        text_query, text_key, text_value = self._projections(added, modulated(text, of_text[0], of_text[1]))
        query, key = rotate(
            table,
            [attention.norm_added_q(text_query), attention.norm_q(query)],
            [attention.norm_added_k(text_key), attention.norm_k(key)],
        )
        attended = attend(query, key, torch.cat([text_value, value], dim=1)).flatten(2)
        for_text, for_image = attended.split_with_sizes([text.shape[1], image.shape[1]], dim=1)
        image = gated(image, of_image[2], out[0](out[1], for_image)[0])
        text = gated(text, of_text[2], added_out[0](added_out[1], for_text)[0])
        image = feed_forward(feed_forwards[:2], image, of_image[3:])
        text = feed_forward(feed_forwards[2:], text, of_text[3:])
        return image, bounded(text)

    def _projections(self, group: tuple[LayerGroup, Tensors], tokens: torch.Tensor) -> Iterable[torch.Tensor]:
        return [split_heads(one, self.module.attn.heads) for one in group[0](group[1], tokens)]


class SingleBlock:
    """A block with the same weights for text and image, whose feed-forward is beside its attention."""

    def __init__(self, block: Any) -> None:
        self.module = block
        attention = block.attn
        self.groups = [
            LayerGroup([attention.to_q, attention.to_k, attention.to_v, block.proj_mlp]),
            LayerGroup([block.proj_out]),
        ]

    def modulation(self, condition: torch.Tensor) -> Tensors:
        """Compute shift, scale and gate."""
        return (modulate(self.module.norm, condition),)

    def __call__(self, copies: Copies, tokens: torch.Tensor, modulation: Tensors, table: torch.Tensor) -> torch.Tensor:
        """Compute text and image as one (batch, tokens, features); ``copies`` are the weights for each group."""
        attention, (projections, out) = self.module.attn, self.groups
        shift, scale, gate = modulation[0].chunk(3, dim=1)
        *parts, wide = projections(copies[0], modulated(tokens, shift, scale))
        query, key, value = (split_heads(part, attention.heads) for part in parts)
        query, key = rotate(table, [attention.norm_q(query)], [attention.norm_k(key)])
        attended = attend(query, key, value).flatten(2)
        (output,) = out(copies[1], attended, gelu(wide, approximate="tanh"))
        return bounded(gated(tokens, gate, output))


def modulate(norm: Any, condition: torch.Tensor) -> torch.Tensor:
    """Compute shifts, scales and gates, over and over (batch, all features); a scale is made ``1 + scale``."""
    modulation: torch.Tensor = norm.linear(condition)
    modulation.view(len(condition), -1, condition.shape[1])[:, 1::3].add_(1)
    return modulation


def modulated(tokens: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, epsilon: float = 1e-6) -> torch.Tensor:
    """Normalise tokens (batch, tokens, features), then scale and shift them by those of their sample."""
    if len(tokens) == 1:
        return layer_norm(tokens, tokens.shape[-1:], scale[0], shift[0], epsilon)
    samples = zip(tokens.unbind(), scale.unbind(), shift.unbind(), strict=True)
    return torch.stack([layer_norm(one, one.shape[-1:], by, plus, epsilon) for one, by, plus in samples])


def gated(tokens: torch.Tensor, gate: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Add an output to what it was computed from, times the gate of its sample."""
    return torch.addcmul(tokens, gate[:, None], output)


def feed_forward(
    layers: Iterable[tuple[LayerGroup, Tensors]], tokens: torch.Tensor, modulation: Tensors
) -> torch.Tensor:
    """Modulate, widen, and narrow again."""
    (up, up_copies), (down, down_copies) = islice(layers, 2)
    shift, scale, gate = modulation
    (wide,) = up(up_copies, modulated(tokens, shift, scale))
    (output,) = down(down_copies, gelu(wide, approximate="tanh"))
    return gated(tokens, gate, output)


def bounded(tokens: torch.Tensor) -> torch.Tensor:
    """Keep what is in float16 within its bounds."""
    return tokens.clip(-LARGEST_HALF, LARGEST_HALF) if tokens.dtype is torch.float16 else tokens

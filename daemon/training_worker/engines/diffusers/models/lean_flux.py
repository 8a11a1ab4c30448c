"""FLUX's transformer in as few operations as torch has for it, adapters of peft beside its layers.

The module stays as it is, with all names of its weights; only how it computes is replaced.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from training_schemas.spec import Execution
from training_worker.engines.diffusers.models.attention import keep_attention
from training_worker.engines.diffusers.models.compiled import CompiledBlock
from training_worker.engines.diffusers.models.flux_blocks import Copies, DoubleBlock, SingleBlock, modulated
from training_worker.engines.diffusers.models.rotary import RotaryTables
from training_worker.engines.diffusers.models.working_copies import WorkingCopies

Block = Callable[..., Any]


def make_lean(model: FluxTransformer2DModel, dtype: torch.dtype, execution: Execution) -> WorkingCopies:
    """Let a transformer with an adapter compute in ``dtype``, that of its base; whatever autocast is around it."""
    lean = LeanFlux(model, dtype, execution)
    model.forward = lean.forward
    return lean.copies


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Switch autocast off, on a kind of device."""
    available = torch.amp.autocast_mode.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else nullcontext()


class LeanFlux:
    """How a transformer computes."""

    def __init__(self, model: FluxTransformer2DModel, dtype: torch.dtype, execution: Execution) -> None:
        self._model = model
        self._execution = execution
        self._double = [DoubleBlock(block) for block in model.transformer_blocks]
        self._single = [SingleBlock(block) for block in model.single_transformer_blocks]
        blocks: list[Any] = [*self._double, *self._single]
        groups = [group for block in blocks for group in block.groups]
        self.copies = WorkingCopies(groups, dtype, apart=execution.compiled)
        self._tables = RotaryTables(model.pos_embed)
        self._run: list[Block] = [CompiledBlock(block) for block in blocks] if execution.compiled else [*blocks]

    def forward(  # noqa: PLR0913, PLR0917 # as diffusers calls it
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        img_ids: torch.Tensor,
        txt_ids: torch.Tensor,
        guidance: torch.Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,  # noqa: ARG002 # of other programs' adapters
        *,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the velocity of packed latents (batch, tokens, channels)."""
        with without_autocast(hidden_states.device.type):
            condition = self._embed_conditions(hidden_states.dtype, timestep, guidance, pooled_projections)
            text = self._model.context_embedder(encoder_hidden_states)
            image = self._model.x_embedder(hidden_states)
            image = self._through_blocks(image, text, condition, self._tables.of(txt_ids, img_ids))
            output = self._out(image, condition)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _embed_conditions(
        self, dtype: torch.dtype, timestep: torch.Tensor, guidance: torch.Tensor | None, pooled: torch.Tensor
    ) -> torch.Tensor:
        """What modulates, (batch, features). Time and guidance are multiplied by 1000 in the model's type."""
        levels = [level.to(dtype) * 1000 for level in (timestep, guidance) if level is not None]
        return silu(self._model.time_text_embed(*levels, pooled))

    def _through_blocks(
        self, image: torch.Tensor, text: torch.Tensor, condition: torch.Tensor, table: torch.Tensor
    ) -> torch.Tensor:
        copies = iter(self.copies.make())
        text_tokens, doubles = text.shape[1], len(self._double)
        for index, block in enumerate(self._double):
            own, modulation = [next(copies) for _ in block.groups], block.modulation(condition)
            image, text = self._call(index, own, image, text, modulation, table)
        tokens = torch.cat([text, image], dim=1)
        for index, single in enumerate(self._single, start=doubles):
            own, modulation = [next(copies) for _ in single.groups], single.modulation(condition)
            tokens = self._call(index, own, tokens, modulation, table)
        return tokens[:, text_tokens:]

    def _call(self, index: int, copies: Copies, *inputs: Any) -> Any:
        """Run a block, and if it is to be checkpointed, keep no more of it than its inputs."""
        block, settings = self._run[index], self._execution
        again = self._model.gradient_checkpointing and torch.is_grad_enabled() and index >= settings.stored_blocks
        if not again:
            return block(copies, *inputs)
        # Nothing in a block is left to chance.
        run = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        if settings.keep_attention:
            run = partial(run, context_fn=keep_attention)
        return run(block, copies, *inputs)

    def _out(self, image: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale, shift = self._model.norm_out.linear(condition).chunk(2, dim=1)
        output: torch.Tensor = self._model.proj_out(modulated(image, shift, 1 + scale))
        return output

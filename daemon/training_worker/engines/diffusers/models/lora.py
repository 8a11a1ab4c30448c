"""The adapter: low-rank weights beside layers of a model's parts, by the names that diffusers gives them in a file.

A file of them is what ComfyUI and InvokeAI read too: keys ``<part>.<layer>.lora_A.weight`` and ``.lora_B.weight``, and
no alpha (it equals the rank).
"""

from collections.abc import Mapping

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

from training_schemas.spec import LoraTargets
from training_worker.engines.diffusers.optim.optimizers import Group

# As in diffusers' train_dreambooth_lora_flux.py; the added projections and the context are those of the text tokens.
FLUX_ATTENTION = (
    "attn.to_k",
    "attn.to_q",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
FLUX_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
# Of single blocks, whose feed-forward is beside their attention. A pattern: the model's own last layer is a `proj_out`.
FLUX_SINGLE = r"single_transformer_blocks\.\d+\.proj_(mlp|out)"

# As in diffusers' train_text_to_image_lora_sdxl.py: those of both attentions of a block, to itself and to the text.
SDXL_ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
SDXL_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")

CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
# What newer versions of transformers leave out of the names of one kind of text encoder, and files keep.
CLIP_PREFIX = "text_model."


def flux_layers(targets: LoraTargets) -> str:
    """The layers of FLUX's transformer that a set of targets means, as a pattern for their whole names."""
    names = FLUX_ATTENTION if targets is LoraTargets.ATTENTION else FLUX_ATTENTION + FLUX_FEED_FORWARD
    single = f"|{FLUX_SINGLE}" if targets is LoraTargets.ALL_LINEAR else ""
    return rf"({_ending_in(names)}{single})"


def sdxl_layers(targets: LoraTargets) -> str:
    """The same of SDXL's UNet, whose blocks have no other linear layers than attention and feed-forward."""
    return _ending_in(SDXL_ATTENTION if targets is LoraTargets.ATTENTION else SDXL_ATTENTION + SDXL_FEED_FORWARD)


def clip_layers() -> str:
    """The attention of a text encoder."""
    return _ending_in(CLIP_ATTENTION)


def add_adapter(module: torch.nn.Module, layers: str, rank: int, seed: int) -> list[torch.nn.Parameter]:
    """Put a new adapter into a part of a model and list its weights, the only ones of the part that learn.

    They are float32 whatever the type of the base. At first the adapter changes nothing: B is zero.
    """
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=layers)
    torch.manual_seed(seed)
    module.add_adapter(config)  # type: ignore[operator]
    cast_training_params(module, dtype=torch.float32)
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class Adapters:
    """The adapters of a run: beside which parts of the model they are, and at which rates they learn."""

    def __init__(self, rank: int, seed: int) -> None:
        self._rank = rank
        self._seed = seed
        self._parts: dict[str, torch.nn.Module] = {}
        self._groups: list[Group] = []

    def add(self, part: str, module: torch.nn.Module, layers: str, rate: float) -> None:
        """Put one into a part of the model, by the part's name in a pipeline."""
        weights = add_adapter(module, layers, self._rank, self._seed)
        self._parts[part] = module
        self._groups.append({"params": weights, "lr": rate})

    def groups(self) -> list[Group]:
        """The weights that learn, those of the denoiser first: it is loaded last."""
        return self._groups[::-1]

    def weights(self) -> dict[str, torch.Tensor]:
        """All weights by their names in a file."""
        return {
            _file_name(part, key): weight
            for part, module in self._parts.items()
            for key, weight in get_peft_model_state_dict(module).items()
        }

    def restore(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set all weights to those of `weights`."""
        for part, module in self._parts.items():
            own = get_peft_model_state_dict(module)
            set_peft_model_state_dict(module, {key: weights[_file_name(part, key)] for key in own})


def _ending_in(names: tuple[str, ...]) -> str:
    escaped = "|".join(name.replace(".", r"\.") for name in names)
    return rf".*\.({escaped})"


def _file_name(part: str, key: str) -> str:
    prefix = CLIP_PREFIX if part.startswith("text_encoder") and not key.startswith(CLIP_PREFIX) else ""
    return f"{part}.{prefix}{key}"

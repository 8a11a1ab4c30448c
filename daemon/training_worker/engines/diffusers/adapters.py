"""The adapter: low-rank weights beside layers of the transformer, and the file that they are kept in.

The file is the one of diffusers, which ComfyUI and InvokeAI read too: ``pytorch_lora_weights.safetensors`` with keys
``transformer.<layer>.lora_A.weight`` and ``.lora_B.weight``, no alpha (it equals the rank), and its metadata.
"""

from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from training_schemas.spec import LoraTargets

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."

# As in diffusers' train_dreambooth_lora_flux.py; the added projections and the context are those of the text tokens.
ATTENTION = (
    "attn.to_k",
    "attn.to_q",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
# Of single blocks, whose feed-forward is beside their attention. A pattern: the model's own last layer is a `proj_out`.
SINGLE = r"single_transformer_blocks\.\d+\.proj_(mlp|out)"

TARGETS = {
    LoraTargets.ATTENTION: ATTENTION,
    LoraTargets.ATTENTION_AND_FEED_FORWARD: ATTENTION + FEED_FORWARD,
    LoraTargets.ALL_LINEAR: ATTENTION + FEED_FORWARD,
}


def add_adapter(
    transformer: FluxTransformer2DModel, rank: int, seed: int, targets: LoraTargets = LoraTargets.ATTENTION
) -> list[torch.nn.Parameter]:
    """Put a new adapter into the transformer and list its weights, the only ones that learn.

    They are float32 whatever the type of the base. At first the adapter changes nothing: B is zero.
    """
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=_pattern(targets))
    torch.manual_seed(seed)
    transformer.add_adapter(config)
    cast_training_params(transformer, dtype=torch.float32)
    return [parameter for parameter in transformer.parameters() if parameter.requires_grad]


def _pattern(targets: LoraTargets) -> str:
    """The names of the layers, as peft matches them whole."""
    names = "|".join(name.replace(".", r"\.") for name in TARGETS[targets])
    single = f"|{SINGLE}" if targets is LoraTargets.ALL_LINEAR else ""
    return rf"(.*\.({names}){single})"


def save_adapter(transformer: FluxTransformer2DModel, folder: Path) -> Path:
    """Write the adapter's file into a folder."""
    FluxPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )
    return folder / ADAPTER_FILE


def read_adapter(transformer: FluxTransformer2DModel, folder: Path) -> dict[str, torch.Tensor]:
    """Read the weights of `save_adapter` for a transformer that has an adapter of the same rank.

    Raises:
        ValueError: The file holds other weights than the adapter.
    """
    weights = {key.removeprefix(PREFIX): weight for key, weight in load_file(folder / ADAPTER_FILE).items()}
    expected = {key: weight.shape for key, weight in get_peft_model_state_dict(transformer).items()}
    if expected != {key: weight.shape for key, weight in weights.items()}:
        raise ValueError(f"{ADAPTER_FILE} holds another adapter than this job's")
    return weights


def restore_adapter(transformer: FluxTransformer2DModel, weights: dict[str, torch.Tensor]) -> None:
    """Set the adapter's weights to those of `read_adapter`."""
    set_peft_model_state_dict(transformer, weights)

"""A LoRA in the names of kohya's sd-scripts, which many programs read: ``lora_unet_<module>.lora_down.weight``.

The modules are those of the models' first code, in which several layers of diffusers can be one: FLUX's queries, keys
and values are the rows of one weight. For such a module the parts' A are stacked, and their B stand in blocks along a
diagonal; B A is then that of the parts. A part that was not trained is zero. Readers that split the module again know
it by the zeros beside the diagonal, and get the parts back exactly. ``alpha`` equals the module's rank: its scale is 1.

The names are those of sd-scripts' networks/convert_flux_lora.py and library/sdxl_model_util.py.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

# A and B of one layer: (rank, inputs) and (outputs, rank).
Pair: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
# Where a layer is found there: the name of the module, and which of the module's parts, all named in order, it is.
Place: TypeAlias = tuple[str, str, tuple[str, ...]]

KEY = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])\.weight")

FLUX_LAYER = re.compile(r"transformer\.(?P<blocks>\w+)\.(?P<index>\d+)\.(?P<part>.+)")
FLUX_BLOCKS = {
    "transformer_blocks": {
        "double_blocks_{}_img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "double_blocks_{}_img_attn_proj": ("attn.to_out.0",),
        "double_blocks_{}_img_mlp_0": ("ff.net.0.proj",),
        "double_blocks_{}_img_mlp_2": ("ff.net.2",),
        "double_blocks_{}_img_mod_lin": ("norm1.linear",),
        "double_blocks_{}_txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "double_blocks_{}_txt_attn_proj": ("attn.to_add_out",),
        "double_blocks_{}_txt_mlp_0": ("ff_context.net.0.proj",),
        "double_blocks_{}_txt_mlp_2": ("ff_context.net.2",),
        "double_blocks_{}_txt_mod_lin": ("norm1_context.linear",),
    },
    "single_transformer_blocks": {
        "single_blocks_{}_linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "single_blocks_{}_linear2": ("proj_out",),
        "single_blocks_{}_modulation_lin": ("norm.linear",),
    },
}
# How many times the rows of the other parts of its module a part has.
ROWS = {"proj_mlp": 4}

UNET_LAYER = re.compile(
    r"unet\.(?P<side>down|mid|up)_blocks?(\.(?P<block>\d+))?\."
    r"(resnets\.(?P<resnet>\d+)\.time_emb_proj"
    r"|attentions\.(?P<attention>\d+)\.(?P<rest>proj_(in|out)"
    r"|transformer_blocks\.\d+\.(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))))"
)
UNET_EMBEDDINGS = {
    "unet.time_embedding.linear_1": "time_embed_0",
    "unet.time_embedding.linear_2": "time_embed_2",
    "unet.add_embedding.linear_1": "label_emb_0_0",
    "unet.add_embedding.linear_2": "label_emb_0_2",
}
# SDXL has two layers and a change of size in each block on the way down, and three layers on the way up.
STRIDE = 3

# transformers 5 leaves `text_model` out where a model is nothing else.
TEXT_LAYER = re.compile(
    r"(?P<encoder>text_encoder(_2)?)\.(text_model\.)?"
    r"(?P<rest>encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12]))"
)
TEXT_ENCODERS = {"text_encoder": "lora_te1_text_model", "text_encoder_2": "lora_te2_text_model"}


def flux_to_kohya(weights: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Rename and fuse a LoRA of FLUX's transformer and its CLIP encoder, by diffusers' names.

    Raises:
        ValueError: A key is none of a layer that is known there, or A or B is missing.
    """
    return _convert(weights, _flux_place)


def sdxl_to_kohya(weights: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Rename a LoRA of SDXL's UNet and its two text encoders, by diffusers' names.

    Raises:
        ValueError: A key is none of a layer that is known there, or A or B is missing.
    """
    return _convert(weights, _sdxl_place)


def _convert(weights: "Mapping[str, torch.Tensor]", find: Callable[[str], Place | None]) -> "dict[str, torch.Tensor]":
    import torch  # noqa: PLC0415 # see the package

    modules: dict[str, dict[str, Pair]] = {}
    orders: dict[str, tuple[str, ...]] = {}
    for layer, pair in _pairs(weights):
        place = find(layer)
        if place is None:
            raise ValueError(f"cannot name the layer of {layer}.lora_A.weight as kohya does")
        module, part, order = place
        modules.setdefault(module, {})[part] = pair
        orders[module] = order
    converted = {}
    for module, parts in modules.items():
        down, up = _fuse(parts, orders[module])
        converted[f"{module}.lora_down.weight"] = down
        converted[f"{module}.lora_up.weight"] = up
        # In bfloat16 not every rank above 256 has a value.
        converted[f"{module}.alpha"] = torch.tensor(float(len(down)))
    return converted


def _pairs(weights: "Mapping[str, torch.Tensor]") -> Iterator[tuple[str, Pair]]:
    """Take the layers' A and B together."""
    for key, weight in weights.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"cannot convert {key}: not an A or a B of a LoRA")
        other = f"{match['layer']}.lora_{'B' if match['half'] == 'A' else 'A'}.weight"
        if other not in weights:
            raise ValueError(f"cannot convert {key}: there is no {other}")
        if match["half"] == "A":
            yield match["layer"], (weight, weights[other])


def _fuse(parts: Mapping[str, Pair], order: tuple[str, ...]) -> Pair:
    """Stack the A of a module's parts and set their B along the diagonal, with zeros for parts that are missing."""
    import torch  # noqa: PLC0415 # as above

    part, (down, up) = next(iter(parts.items()))
    rows = len(up) // ROWS.get(part, 1)

    def zeros(name: str) -> Pair:
        return torch.zeros_like(down), up.new_zeros(rows * ROWS.get(name, 1), up.shape[1])

    pairs = [parts[name] if name in parts else zeros(name) for name in order]
    return torch.cat([down for down, _ in pairs]), torch.block_diag(*[up for _, up in pairs])  # type: ignore[no-untyped-call]


def _flux_place(layer: str) -> Place | None:
    match = FLUX_LAYER.fullmatch(layer)
    if match is None:
        return _text_place(layer)
    for module, order in FLUX_BLOCKS.get(match["blocks"], {}).items():
        if match["part"] in order:
            return f"lora_unet_{module.format(match['index'])}", match["part"], order
    return None


def _sdxl_place(layer: str) -> Place | None:
    if layer in UNET_EMBEDDINGS:
        return _alone(f"lora_unet_{UNET_EMBEDDINGS[layer]}")
    match = UNET_LAYER.fullmatch(layer)
    if match is None:
        return _text_place(layer)
    attention = match["attention"] is not None
    inner = match["rest"] if attention else "emb_layers.1"
    index = int(match["attention"] if attention else match["resnet"])
    block = STRIDE * int(match["block"] or 0)
    outer = {
        "down": f"input_blocks_{block + index + 1}_{int(attention)}",
        "mid": f"middle_block_{2 * index + attention}",
        "up": f"output_blocks_{block + index}_{int(attention)}",
    }[match["side"]]
    return _alone(f"lora_unet_{outer}_{inner.replace('.', '_')}")


def _text_place(layer: str) -> Place | None:
    match = TEXT_LAYER.fullmatch(layer)
    if match is None:
        return None
    return _alone(f"{TEXT_ENCODERS[match['encoder']]}_{match['rest'].replace('.', '_')}")


def _alone(module: str) -> Place:
    """A module that is one layer."""
    return module, "", ("",)

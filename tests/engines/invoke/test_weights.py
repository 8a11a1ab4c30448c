"""The weights that invoke-training saves, in the names and the scale of diffusers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training_worker.engines.common.export import kohya
from training_worker.engines.invoke.weights import flux_weights, sdxl_weights

pytestmark = pytest.mark.trainer


def test_peft_s_folder_becomes_diffusers_file_with_its_scale(tmp_path: Path) -> None:
    """Upstream's alpha is 1, and a file of ours has the rank for one."""
    folder = tmp_path / "transformer"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"lora_alpha": 1.0, "r": 4}')
    layers = [f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
    weights = {f"base_model.model.{layer}.lora_A.weight": torch.randn(4, 8) for layer in layers}
    weights |= {f"base_model.model.{layer}.lora_B.weight": torch.randn(8, 4).bfloat16() for layer in layers}
    save_file(weights, folder / "adapter_model.safetensors")

    ours = flux_weights(tmp_path)
    converted = kohya.flux_to_kohya(ours)

    first = layers[0]
    assert {f"transformer.{key.removeprefix('base_model.model.')}" for key in weights} == ours.keys()
    expected = weights[f"base_model.model.{first}.lora_B.weight"].float() / 4
    assert torch.equal(expected, ours[f"transformer.{first}.lora_B.weight"])
    assert torch.equal(expected, converted["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"][:8, :4])
    assert 12 == converted["lora_unet_double_blocks_0_img_attn_qkv.alpha"]


def test_upstream_s_file_of_sdxl_gets_the_names_of_the_model_s_layers(tiny_sdxl: Path, tmp_path: Path) -> None:
    """Whose dots upstream has made underscores, as they are in names, too."""
    modules = {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0": (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
        ),
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
        ),
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
    }
    tensors: dict[str, torch.Tensor] = {}
    for module in modules:
        tensors[f"{module}.lora_down.weight"] = torch.ones(2, 8)
        tensors[f"{module}.lora_up.weight"] = torch.ones(8, 2)
        tensors[f"{module}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "lora.safetensors")

    ours = sdxl_weights(tmp_path / "lora.safetensors", tiny_sdxl)

    assert {f"{layer}.lora_{half}.weight" for layer in modules.values() for half in "AB"} == ours.keys()
    assert {0.5} == {one.max().item() for name, one in ours.items() if name.endswith("lora_B.weight")}
    assert kohya.sdxl_to_kohya(ours)

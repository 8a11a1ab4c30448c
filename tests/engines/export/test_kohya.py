"""A LoRA by kohya's names, read back by diffusers' own reader of such files."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import FluxPipeline, FluxTransformer2DModel, StableDiffusionXLPipeline
from diffusers.loaders import lora_conversion_utils, lora_pipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from tests.engines import sdxl
from transformers import CLIPTextConfig, CLIPTextModel

from training_schemas.spec import LoraTargets
from training_worker.engines.common.export.kohya import flux_to_kohya, sdxl_to_kohya
from training_worker.engines.diffusers.export.verify import predict
from training_worker.engines.diffusers.models.lora import add_adapter, flux_layers

pytestmark = pytest.mark.trainer

LAYERS, SINGLE_LAYERS = 19, 38
FILE = "kohya.safetensors"
CLIP_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
UNET_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "time_emb_proj"]
UNET_LAYERS += ["linear_1", "linear_2"]


@pytest.fixture
def narrow_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make diffusers' reader one of single blocks that are 32 wide; it has FLUX's own width of 3072 built in."""
    source = inspect.getsource(lora_conversion_utils._convert_kohya_flux_lora_to_diffusers)
    narrow = source.replace("dims=[3072, 3072, 3072, 12288]", "dims=[32, 32, 32, 128]")
    assert source != narrow
    scope: dict[str, Any] = dict(vars(lora_conversion_utils))
    exec(narrow, scope)
    reader = scope["_convert_kohya_flux_lora_to_diffusers"]
    monkeypatch.setattr(lora_pipeline, "_convert_kohya_flux_lora_to_diffusers", reader)


def build_transformer(heads: int = 2, head_width: int = 16) -> FluxTransformer2DModel:
    """Build a transformer with all of FLUX's blocks, 32 wide."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=8,
        num_layers=LAYERS,
        num_single_layers=SINGLE_LAYERS,
        attention_head_dim=head_width,
        num_attention_heads=heads,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[head_width // 4, head_width // 4, head_width // 2],
    ).eval()


def build_flux_pipeline(transformer: FluxTransformer2DModel | None, clip: CLIPTextModel | None) -> FluxPipeline:
    """Build a pipeline that has no more than its adapter is for."""
    parts = dict.fromkeys(["scheduler", "vae", "tokenizer", "text_encoder_2", "tokenizer_2"])
    return FluxPipeline(**parts, text_encoder=clip, transformer=transformer)


def adapter(model: Any, prefix: str) -> dict[str, torch.Tensor]:
    """Copy the weights of a model's adapters, by diffusers' names, whatever those are called."""
    (name,) = model.peft_config
    state = get_peft_model_state_dict(model, adapter_name=name)
    return {f"{prefix}.{key}": weight.detach().clone() for key, weight in state.items()}


def randomise(model: torch.nn.Module) -> None:
    """Give the adapter's A and B random values, as large as those of training."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def assert_holds(loaded: dict[str, torch.Tensor], trained: dict[str, torch.Tensor]) -> None:
    """Check that nothing that was trained is missing or changed, and that all else is zero."""
    assert set() == trained.keys() - loaded.keys()
    for key, weight in loaded.items():
        torch.testing.assert_close(trained.get(key, torch.zeros_like(weight)), weight, rtol=0, atol=0)


@pytest.mark.parametrize("targets", LoraTargets)
@pytest.mark.usefixtures("narrow_reader")
def test_a_flux_adapter_read_by_diffusers_predicts_what_it_did_in_training(
    tmp_path: Path, targets: LoraTargets
) -> None:
    """Of all 19 and 38 blocks, to 1e-5 of the predictions, and no tensor is lost on the way."""
    trained = build_transformer()
    without = predict(trained)
    add_adapter(trained, flux_layers(targets), rank=4, seed=0)
    randomise(trained)
    save_file(flux_to_kohya(adapter(trained, "transformer")), tmp_path / FILE)

    pipeline = build_flux_pipeline(build_transformer(), None)
    pipeline.load_lora_weights(tmp_path, weight_name=FILE)

    assert (predict(trained) - without).abs().max() > 1e-2
    torch.testing.assert_close(predict(trained), predict(pipeline.transformer), rtol=0, atol=1e-5)
    assert_holds(adapter(pipeline.transformer, "transformer"), adapter(trained, "transformer"))


@pytest.mark.parametrize("targets", LoraTargets)
def test_a_flux_adapter_of_the_real_width_is_split_exactly(targets: LoraTargets) -> None:
    """By the reader as it is, 3072 wide; the weights alone, as the model would need 48 GB."""
    generator = torch.Generator().manual_seed(0)
    with init_empty_weights():
        transformer = build_transformer(heads=24, head_width=128)
        add_adapter(transformer, flux_layers(targets), rank=2, seed=0)
    trained = {
        key: torch.randn(weight.shape, generator=generator)
        for key, weight in adapter(transformer, "transformer").items()
    }

    loaded = FluxPipeline.lora_state_dict(flux_to_kohya(trained))

    assert_holds(loaded, trained)


def test_flux_modules_are_those_of_its_first_code() -> None:
    """In single blocks queries, keys, values and feed-forward are one."""
    transformer = build_transformer()
    add_adapter(transformer, flux_layers(LoraTargets.ALL_LINEAR), rank=4, seed=0)

    keys = flux_to_kohya(adapter(transformer, "transformer")).keys()

    double = ["img_attn_qkv", "img_attn_proj", "img_mlp_0", "img_mlp_2"]
    double += ["txt_attn_qkv", "txt_attn_proj", "txt_mlp_0", "txt_mlp_2"]
    modules = [f"lora_unet_double_blocks_{i}_{name}" for i in range(LAYERS) for name in double]
    modules += [f"lora_unet_single_blocks_{i}_{name}" for i in range(SINGLE_LAYERS) for name in ("linear1", "linear2")]
    assert {f"{name}.{end}" for name in modules for end in ("lora_down.weight", "lora_up.weight", "alpha")} == keys


def test_modulation_layers_have_names_too() -> None:
    """No set of targets holds them yet, and sd-scripts trains them."""
    layers = ["transformer_blocks.3.norm1.linear", "transformer_blocks.3.norm1_context.linear"]
    layers += ["single_transformer_blocks.7.norm.linear"]
    weights = {f"transformer.{layer}.lora_{half}.weight": torch.ones(2, 2) for layer in layers for half in "AB"}

    loaded = FluxPipeline.lora_state_dict(flux_to_kohya(weights))

    assert_holds(loaded, weights)
    assert weights.keys() == loaded.keys()


@pytest.mark.parametrize("trained", [["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"], ["attn.to_k"], ["proj_mlp"]])
def test_a_fused_layer_merges_to_what_its_parts_merge_to(trained: list[str]) -> None:
    """Each part by hand is W + B A; the module is W + (alpha / rank) up down, of the parts' W on top of each other."""
    rows = {"attn.to_q": 8, "attn.to_k": 8, "attn.to_v": 8, "proj_mlp": 32}
    base = {part: torch.randn(count, 8) for part, count in rows.items()}
    a = {part: torch.randn(3, 8) for part in trained}
    b = {part: torch.randn(rows[part], 3) for part in trained}
    merged = [weight + b[part] @ a[part] if part in trained else weight for part, weight in base.items()]

    layer = "transformer.single_transformer_blocks.5"
    fused = flux_to_kohya(
        {f"{layer}.{part}.lora_A.weight": weight for part, weight in a.items()}
        | {f"{layer}.{part}.lora_B.weight": weight for part, weight in b.items()}
    )

    module = "lora_unet_single_blocks_5_linear1"
    down, up, alpha = (fused[f"{module}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha"))
    delta = alpha / len(down) * up @ down
    torch.testing.assert_close(torch.cat(merged), torch.cat(list(base.values())) + delta)


def test_an_adapter_in_bfloat16_keeps_an_exact_alpha() -> None:
    """387, three times the rank, has no value in bfloat16."""
    weights = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(129, 4, dtype=torch.bfloat16),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(4, 129, dtype=torch.bfloat16),
    }

    converted = flux_to_kohya(weights)

    assert 387 == converted["lora_unet_double_blocks_0_img_attn_qkv.alpha"].item()
    assert torch.bfloat16 == converted["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"].dtype


def build_clip() -> CLIPTextModel:
    """Build a CLIP encoder, 32 wide."""
    torch.manual_seed(0)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=99,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=97,
            eos_token_id=98,
            pad_token_id=98,
        )
    ).eval()


@torch.no_grad()
def encode(clip: CLIPTextModel) -> torch.Tensor:
    """Encode the same five tokens."""
    tokens: torch.Tensor = clip(torch.tensor([[97, 1, 2, 3, 98]])).last_hidden_state
    return tokens


def test_the_adapter_of_flux_s_clip_encoder_is_read_too(tmp_path: Path) -> None:
    """By the name that it has everywhere but in transformers 5."""
    trained = build_clip()
    without = encode(trained)
    trained.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=CLIP_LAYERS))
    randomise(trained)
    converted = flux_to_kohya(adapter(trained, "text_encoder"))
    save_file(converted, tmp_path / FILE)

    pipeline = build_flux_pipeline(None, build_clip())
    weights, alphas = FluxPipeline.lora_state_dict(tmp_path, weight_name=FILE, return_alphas=True)
    pipeline.load_lora_into_text_encoder(weights, alphas, pipeline.text_encoder, prefix="text_encoder")

    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in converted
    assert (encode(trained) - without).abs().max() > 1e-2
    torch.testing.assert_close(encode(trained), encode(pipeline.text_encoder), rtol=0, atol=1e-5)


def trained_sdxl() -> StableDiffusionXLPipeline:
    """Build a pipeline with adapters on all linear layers of its UNet and on both of its text encoders."""
    pipeline = sdxl.build_pipeline()
    # Ranks that differ between the models, as alphas do then.
    pipeline.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=UNET_LAYERS))
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        encoder.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=CLIP_LAYERS))
    for model in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):
        randomise(model)
    return pipeline


def sdxl_adapters(pipeline: StableDiffusionXLPipeline) -> dict[str, torch.Tensor]:
    """Copy the weights of all three adapters."""
    names = ["unet", "text_encoder", "text_encoder_2"]
    return {key: weight for name in names for key, weight in adapter(getattr(pipeline, name), name).items()}


def test_an_sdxl_adapter_read_by_diffusers_predicts_what_it_did_in_training(tmp_path: Path) -> None:
    """With those of both text encoders, to 1e-5 of the predictions, and no tensor is lost on the way."""
    trained = trained_sdxl()
    weights = sdxl_adapters(trained)
    save_file(sdxl_to_kohya(weights), tmp_path / FILE)

    pipeline = sdxl.build_pipeline()
    without = sdxl.predict_noise(pipeline)
    pipeline.load_lora_weights(tmp_path, weight_name=FILE)

    assert (sdxl.predict_noise(trained) - without).abs().max() > 1e-2
    torch.testing.assert_close(sdxl.predict_noise(trained), sdxl.predict_noise(pipeline), rtol=0, atol=1e-5)
    torch.testing.assert_close(weights, sdxl_adapters(pipeline), rtol=0, atol=0)


def test_every_linear_layer_of_the_unet_has_a_name() -> None:
    """No two have the same."""
    pipeline = trained_sdxl()
    linear = sum(isinstance(module, torch.nn.Linear) for module in sdxl.build_pipeline().unet.modules())

    converted = sdxl_to_kohya(adapter(pipeline.unet, "unet"))

    assert 3 * linear == len(converted)


@pytest.mark.parametrize(
    ("layer", "module"),
    [
        ("unet.down_blocks.1.attentions.0.proj_in", "lora_unet_input_blocks_4_1_proj_in"),
        (
            "unet.down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_out.0",
            "lora_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_out_0",
        ),
        (
            "unet.mid_block.attentions.0.transformer_blocks.3.ff.net.0.proj",
            "lora_unet_middle_block_1_transformer_blocks_3_ff_net_0_proj",
        ),
        ("unet.mid_block.resnets.1.time_emb_proj", "lora_unet_middle_block_2_emb_layers_1"),
        ("unet.up_blocks.2.resnets.2.time_emb_proj", "lora_unet_output_blocks_8_0_emb_layers_1"),
        (
            "unet.up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_k",
            "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_k",
        ),
        ("unet.add_embedding.linear_2", "lora_unet_label_emb_0_2"),
        (
            "text_encoder.encoder.layers.11.self_attn.out_proj",
            "lora_te1_text_model_encoder_layers_11_self_attn_out_proj",
        ),
        ("text_encoder_2.text_model.encoder.layers.31.mlp.fc2", "lora_te2_text_model_encoder_layers_31_mlp_fc2"),
    ],
)
def test_sdxl_layers_have_the_names_of_its_first_code(layer: str, module: str) -> None:
    """Those that sd-scripts writes, which numbers the UNet's blocks from one end of a side to the other."""
    converted = sdxl_to_kohya({f"{layer}.lora_A.weight": torch.ones(2, 4), f"{layer}.lora_B.weight": torch.ones(4, 2)})

    assert [f"{module}.lora_down.weight", f"{module}.lora_up.weight", f"{module}.alpha"] == list(converted)
    assert 2 == converted[f"{module}.alpha"].item()


@pytest.mark.parametrize(
    "layer",
    [
        "transformer.proj_out",
        "transformer.transformer_blocks.0.attn.to_z",
        "transformer.other_blocks.0.attn.to_q",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
        "unet.down_blocks.0.resnets.0.conv1",
        "unet.down_blocks.0.attentions.0.time_emb_proj",
        "vae.encoder.conv_in",
    ],
)
@pytest.mark.parametrize("convert", [flux_to_kohya, sdxl_to_kohya])
def test_a_layer_without_a_name_is_reported(convert: Any, layer: str) -> None:
    """Left out in silence, it would be missing from what others load."""
    with pytest.raises(ValueError, match=rf"cannot name the layer of {layer}\.lora_A\.weight"):
        convert({f"{layer}.lora_A.weight": torch.ones(2, 4), f"{layer}.lora_B.weight": torch.ones(4, 2)})


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "there is no .*to_q.lora_B.weight"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_B.weight", "there is no .*to_q.lora_A.weight"),
        ("transformer.transformer_blocks.0.attn.to_q.weight", "not an A or a B of a LoRA"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector", "not an A or a B of a LoRA"),
    ],
)
def test_a_weight_without_its_other_half_is_reported(key: str, what: str) -> None:
    """As one that is no part of a LoRA."""
    with pytest.raises(ValueError, match=rf"cannot convert {key}: {what}"):
        flux_to_kohya({key: torch.ones(2, 2)})

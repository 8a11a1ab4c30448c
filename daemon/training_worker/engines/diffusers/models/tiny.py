"""Tiny pipelines with random weights, to try the trainer on any machine without downloading anything.

``python -m training_worker.engines.diffusers.models.tiny FOLDER [flux|sdxl]`` writes one. It has every part of
FLUX.1-dev or of SDXL in small, and its images are noise: it shows that training runs and that losses fall, not what a
LoRA looks like.
"""

import argparse
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from training_schemas.jobs import ModelFamily
from training_worker.engines.diffusers.models.published_layout import publish

WIDTH = 32
# Of SDXL's second text encoder, so that the two cannot be taken for each other.
WIDTH_2 = 48
LATENT_CHANNELS = 16
# Bytes other than these are unknown to the tiny T5; captions are plain words.
T5_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,-"


def write_pipeline(folder: Path, family: ModelFamily = ModelFamily.FLUX, seed: int = 0) -> None:
    """Write the pipeline to ``folder``, all weights as safetensors, for older libraries to read, too."""
    build_pipeline(family, seed).save_pretrained(folder, safe_serialization=True)
    publish(folder)


def build_pipeline(family: ModelFamily, seed: int = 0) -> FluxPipeline | StableDiffusionXLPipeline:
    """Build the pipeline in memory, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _flux() if family is ModelFamily.FLUX else _sdxl()


def _flux() -> FluxPipeline:
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        # An autoencoder with the shape, the scaling and the shift of FLUX's: 16 channels, an eighth of the size.
        vae=_vae(LATENT_CHANNELS, use_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=CLIPTextModel(_clip(WIDTH)),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
        transformer=_transformer(),
    )


def _sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        vae=_vae(4, use_quant_conv=True, scaling_factor=0.13025, shift_factor=None),
        text_encoder=CLIPTextModel(_clip(WIDTH)),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_clip(WIDTH_2)),
        tokenizer_2=_clip_tokenizer(),
        unet=_unet(),
        add_watermarker=False,
    )


def _unet() -> UNet2DConditionModel:
    """A UNet with SDXL's kinds of blocks, halvings, text and size conditions."""
    return UNet2DConditionModel(
        block_out_channels=(16, 32, 32),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=WIDTH + WIDTH_2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH_2 + 6 * 8,
    )


def _transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    )


def _vae(channels: int, *, use_quant_conv: bool, scaling_factor: float, shift_factor: float | None) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 16, 16],
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        use_quant_conv=use_quant_conv,
        use_post_quant_conv=use_quant_conv,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
    )


def _clip_tokenizer() -> CLIPTokenizer:
    """One token for each byte, within a word and at its end, and no merges."""
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _clip(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def _t5_tokenizer() -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    characters = [(character, -2.0) for character in f"▁{T5_ALPHABET}"]
    return T5Tokenizer(vocab=special + characters, extra_ids=0, model_max_length=512)


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(T5_ALPHABET) + 4, d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=2, num_heads=4)
    )


def main() -> None:
    """Write the pipeline to the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Write a tiny random pipeline.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("family", type=ModelFamily, nargs="?", default=ModelFamily.FLUX)
    arguments = parser.parse_args()
    write_pipeline(arguments.folder, arguments.family)


if __name__ == "__main__":
    main()

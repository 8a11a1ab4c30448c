"""A tiny FLUX pipeline with random weights, to try the trainer on any machine without downloading anything.

``python -m training_worker.engines.diffusers.tiny FOLDER`` writes it. It has every part of FLUX.1-dev in small, and its
pictures are noise: it shows that training runs and that losses fall, not what a LoRA looks like.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

WIDTH = 32
LATENT_CHANNELS = 16
# Bytes other than these are unknown to the tiny T5; captions are plain words.
T5_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,-"


def write_pipeline(folder: Path, seed: int = 0) -> None:
    """Write the pipeline to ``folder`` in the layout of diffusers, all weights as safetensors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=_vae(),
            text_encoder=_clip(),
            tokenizer=_clip_tokenizer(),
            text_encoder_2=_t5(),
            tokenizer_2=_t5_tokenizer(),
            transformer=_transformer(),
        )
    pipeline.save_pretrained(folder, safe_serialization=True)


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


def _vae() -> AutoencoderKL:
    """An autoencoder with the shape, the scaling and the shift of FLUX's: 16 channels, an eighth of the size."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 16, 16],
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )


def _clip_tokenizer() -> CLIPTokenizer:
    """One token for each byte, within a word and at its end, and no merges."""
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _clip() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
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
    parser = argparse.ArgumentParser(description="Write a tiny random FLUX pipeline.")
    parser.add_argument("folder", type=Path)
    write_pipeline(parser.parse_args().folder)


if __name__ == "__main__":
    main()

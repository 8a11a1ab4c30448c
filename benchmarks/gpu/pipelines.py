"""Pipelines of the published size with random weights, written to a folder: what a host has on its disk.

    python -m benchmarks.gpu.pipelines FOLDER flux|sdxl [--tiny]

Tokenizers are those of the tiny pipelines, whose tokens the real encoders have, too. On a GPU the weights are drawn
there, which takes seconds where the CPU takes minutes.
"""

import argparse
from pathlib import Path
from typing import Any

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
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from benchmarks.gpu.steps import REAL
from benchmarks.workloads import SDXL, VAE
from training_schemas.jobs import ModelFamily
from training_worker.engines.diffusers.models.tiny import build_pipeline, write_pipeline

# Configurations as published; token ids of the tiny tokenizers lie within their vocabularies.
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
SPECIAL = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513, "max_position_embeddings": 77}


def main() -> None:
    """Write the pipeline."""
    parser = argparse.ArgumentParser(description="Write a pipeline of random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("family", type=ModelFamily)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        write_pipeline(options.folder, options.family)
        return
    write(options.folder, options.family)


def write(folder: Path, family: ModelFamily) -> None:
    """Write the pipeline in bfloat16, part by part, so that one part at a time is in memory."""
    tiny = build_pipeline(family)
    tokenizers = {name: getattr(tiny, name) for name in ("tokenizer", "tokenizer_2")}
    parts = _flux_parts() if family is ModelFamily.FLUX else _sdxl_parts()
    kind = FluxPipeline if family is ModelFamily.FLUX else StableDiffusionXLPipeline
    skeleton = {name: _on_meta(*part) for name, part in parts.items()}
    index = kind(**skeleton, **tokenizers, scheduler=_scheduler(family))
    index.save_config(folder)
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(folder / name)
    index.scheduler.save_pretrained(folder / "scheduler")
    for name, part in parts.items():
        _drawn(*part).save_pretrained(folder / name, safe_serialization=True)


def _flux_parts() -> dict[str, tuple[Any, Any]]:
    vae = VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    return {
        "transformer": (FluxTransformer2DModel, REAL | {"guidance_embeds": True}),
        "text_encoder": (CLIPTextModel, CLIPTextConfig(**CLIP_L, **SPECIAL, projection_dim=768)),
        "text_encoder_2": (T5EncoderModel, T5Config(**T5_XXL, vocab_size=32128)),
        "vae": (AutoencoderKL, vae | {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
    }


def _sdxl_parts() -> dict[str, tuple[Any, Any]]:
    return {
        "unet": (UNet2DConditionModel, SDXL),
        "text_encoder": (CLIPTextModel, CLIPTextConfig(**CLIP_L, **SPECIAL, projection_dim=768)),
        "text_encoder_2": (CLIPTextModelWithProjection, CLIPTextConfig(**CLIP_G, **SPECIAL, projection_dim=1280)),
        "vae": (AutoencoderKL, VAE | {"latent_channels": 4, "scaling_factor": 0.13025}),
    }


def _scheduler(family: ModelFamily) -> Any:
    if family is ModelFamily.FLUX:
        return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def _on_meta(kind: Any, config: Any) -> Any:
    with torch.device("meta"):
        return _built(kind, config)


def _drawn(kind: Any, config: Any) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            return _built(kind, config)
    finally:
        torch.set_default_dtype(before)


def _built(kind: Any, config: Any) -> Any:
    return kind(**config) if isinstance(config, dict) else kind(config)


if __name__ == "__main__":
    main()

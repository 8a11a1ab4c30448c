"""A check that an adapter is what it should be: a fresh pipeline takes all of it, and it changes the predictions.

``python -m training_worker.engines.diffusers.export.verify MODEL_FOLDER ADAPTER_FOLDER`` prints one line of JSON, or
fails.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from training_worker.engines.common.export.files import ADAPTER_FILE

NAME = "verified"
PREFIX = "transformer."


class Verified(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An adapter that was loaded: its file, its tensors and bytes, and the largest change to a prediction."""

    adapter: str
    tensors: int
    bytes: int
    max_output_difference: float


def verify_adapter(model: Path, folder: Path) -> Verified:
    """Load an adapter into a pipeline that knows nothing of its training.

    Raises:
        ValueError: The pipeline took other tensors than the file holds, or predicts the same with and without it.
    """
    pipeline = FluxPipeline.from_pretrained(
        model, text_encoder=None, text_encoder_2=None, vae=None, local_files_only=True, use_safetensors=True
    )
    without = predict(pipeline.transformer)
    pipeline.load_lora_weights(folder, weight_name=ADAPTER_FILE, adapter_name=NAME, local_files_only=True)
    expected = load_file(folder / ADAPTER_FILE)
    _compare(expected, get_peft_model_state_dict(pipeline.transformer, adapter_name=NAME))
    difference = (predict(pipeline.transformer) - without).abs().max().item()
    if not difference > 0:
        raise ValueError(f"predictions with the adapter differ from those without by {difference}")
    path = folder / ADAPTER_FILE
    return Verified(
        adapter=str(path), tensors=len(expected), bytes=path.stat().st_size, max_output_difference=difference
    )


@torch.no_grad()
def predict(transformer: FluxTransformer2DModel) -> torch.Tensor:
    """Predict something, always the same: 16 tokens of image, 8 of text."""
    config = transformer.config
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(transformer.device, transformer.dtype)

    prediction: torch.Tensor = transformer(
        hidden_states=noise(1, 16, config.in_channels),
        encoder_hidden_states=noise(1, 8, config.joint_attention_dim),
        pooled_projections=noise(1, config.pooled_projection_dim),
        timestep=torch.full((1,), 0.5),
        guidance=torch.ones(1) if config.guidance_embeds else None,
        img_ids=FluxPipeline._prepare_latent_image_ids(1, 4, 4, transformer.device, torch.float32),  # noqa: SLF001 # no public twin
        txt_ids=torch.zeros(8, 3),
        return_dict=False,
    )[0]
    return prediction


def _compare(expected: dict[str, torch.Tensor], loaded: dict[str, Any]) -> None:
    taken = {f"{PREFIX}{key}": tensor for key, tensor in loaded.items()}
    if missing := sorted(expected.keys() - taken.keys()):
        raise ValueError(f"{len(missing)} tensors were not taken, the first is {missing[0]}")
    if unexpected := sorted(taken.keys() - expected.keys()):
        raise ValueError(f"{len(unexpected)} tensors are not in the file, the first is {unexpected[0]}")
    changed = [key for key, tensor in expected.items() if not torch.equal(tensor, taken[key].to("cpu", tensor.dtype))]
    if changed:
        raise ValueError(f"{len(changed)} tensors were changed on loading, the first is {changed[0]}")


def main() -> int:
    """Verify the adapter named on the command line."""
    parser = argparse.ArgumentParser(description="Load a FLUX LoRA into a fresh pipeline.")
    parser.add_argument("model_folder", type=Path)
    parser.add_argument("adapter_folder", type=Path)
    arguments = parser.parse_args()
    try:
        verified = verify_adapter(arguments.model_folder, arguments.adapter_folder)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"cannot use adapter {arguments.adapter_folder}: {error}\n")
        return 1
    sys.stdout.write(f"{msgspec.json.encode(verified).decode()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

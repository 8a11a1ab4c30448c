"""One process that trains a LoRA of FLUX.1-dev with random weights for a few steps, and prints what that took as JSON.

python -m benchmarks.gpu_training card      prints the first CUDA card that there is, null without one
python -m benchmarks.gpu_training CASE      trains; CASE is a `Case` of benchmarks.gpu as JSON

The weights are drawn on the device layer by layer, and go through the same functions as those of a file.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from diffusers import FluxTransformer2DModel

from benchmarks.gpu import STEPS, WARM_UPS, Case, Figures, Found
from benchmarks.one_sample import OneImage, OneText
from benchmarks.workloads import FLUX, FLUX_BLOCKS
from training_schemas.spec import Quantization
from training_worker.engines.common.protocol.gpu_memory import MIB, peak_vram_mib
from training_worker.engines.diffusers.diffusion.batches import BatchSource, Item
from training_worker.engines.diffusers.models.layerwise_loading import empty_model, fill_model
from training_worker.engines.diffusers.models.loader import ModelLoader
from training_worker.engines.diffusers.pipelines.flux_lora import FluxLora
from training_worker.engines.diffusers.training.trainer import Trainer

PIXELS_PER_LATENT = 8
REAL: dict[str, Any] = {**FLUX, "num_layers": FLUX_BLOCKS[0], "num_single_layers": FLUX_BLOCKS[1]}
TINY: dict[str, Any] = {
    **REAL,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}


class RandomTensor(msgspec.Struct, frozen=True):
    """Where a tensor would be read from: it is drawn instead, about as large as those of a new layer are."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def read(self) -> torch.Tensor:
        """Draw it, on the device. Without the scale, numbers would grow beyond all bounds from block to block."""
        return torch.randn(self.shape, dtype=self.dtype, device=self.device).mul_(self.shape[-1] ** -0.5)


class RandomLoader(ModelLoader):
    """Loads a transformer that is on no disk."""

    def __init__(self, config: dict[str, Any], case: Case) -> None:
        super().__init__(Path(), FluxLora.family, case.parameters.weight_dtype, case.device)
        self._config = config

    def denoiser(self, quantization: Quantization = Quantization.NONE) -> Any:
        """Draw the transformer, its blocks' weights in as many bits as `quantization` says."""
        model = empty_model(FluxTransformer2DModel, self._config, self.dtype)
        sources = {
            name: RandomTensor(tensor.shape, self.dtype, self.device) for name, tensor in model.state_dict().items()
        }
        return fill_model(model, sources, self.dtype, self.device, quantization)


def main() -> None:
    """Print the card, or what a case took."""
    (what,) = sys.argv[1:]
    result = card() if what == "card" else train(msgspec.json.decode(what, type=Case))
    print(msgspec.json.encode(result).decode())


def card() -> Found | None:
    """The card that a case would be on."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return Found(name=torch.cuda.get_device_name(), memory_mib=total // MIB, free_mib=free // MIB)


def train(case: Case) -> Figures:
    """Load, take all steps, and tell what they took."""
    trainer = make_trainer(case)
    synchronise = torch.cuda.synchronize if case.device == "cuda" else lambda: None
    first = timed_step(trainer, 1, synchronise)
    first_step_ended = time.time()
    seconds = [first, *(timed_step(trainer, number, synchronise) for number in range(2, WARM_UPS + STEPS + 1))]
    return Figures(
        peak_mib=peak_vram_mib() if case.device == "cuda" else None,
        seconds_per_step=statistics.median(seconds[WARM_UPS:]),
        first_step_ended=first_step_ended,
    )


def make_trainer(case: Case) -> Trainer:
    """As a run makes it whose images and captions are in the cache."""
    config = TINY if case.tiny else REAL
    parameters = case.parameters
    pipeline = FluxLora(RandomLoader(config, case), parameters)
    pipeline.load_denoiser()
    side = parameters.resolution // PIXELS_PER_LATENT
    text = OneText(
        parameters.t5_tokenizer_max_length,
        config["joint_attention_dim"],
        config["pooled_projection_dim"],
        pipeline.loader.dtype,
    )
    batches = BatchSource([Item(caption="", shape=(side, side))], OneImage(side), pipeline.noising, parameters)
    return Trainer(pipeline, batches, text)


def timed_step(trainer: Trainer, number: int, synchronise: Callable[[], None]) -> float:
    """Take a step, and tell how many seconds it took until the device had done all of it."""
    synchronise()
    began = time.perf_counter()
    trainer.step(number, lambda: None)
    synchronise()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

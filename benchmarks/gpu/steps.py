"""One process that takes a few steps of each of some cases, and prints what each took as a line of JSON.

    python -m benchmarks.gpu.steps gpu                  prints the first CUDA GPU that there is, null without one
    python -m benchmarks.gpu.steps CASES [--tiny]       trains; CASES are a list of `Case` as JSON

The weights are drawn on the device layer by layer, and go through the same functions as those of a file.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel

from benchmarks.gpu.cases import Case, Figures, Found, Loop
from benchmarks.gpu.example_loop import ExampleLoop
from benchmarks.one_sample import OneImage, OneText
from benchmarks.workloads import FLUX, FLUX_BLOCKS, SDXL
from training_schemas.jobs import ModelFamily
from training_schemas.spec import Quantization
from training_worker.engines.diffusers.diffusion.batches import BatchSource, Item
from training_worker.engines.diffusers.models.layerwise_loading import empty_model, fill_model
from training_worker.engines.diffusers.models.loader import ModelLoader
from training_worker.engines.diffusers.models.tiny import build_pipeline
from training_worker.engines.diffusers.pipelines import PIPELINES
from training_worker.engines.diffusers.training.trainer import Trainer

WARM_UPS, STEPS = 2, 4
PIXELS_PER_LATENT = 8
MIB = 2**20
GIB = 2**30
REAL: dict[str, Any] = {**FLUX, "num_layers": FLUX_BLOCKS[0], "num_single_layers": FLUX_BLOCKS[1]}
CHANNELS = {ModelFamily.FLUX: 16, ModelFamily.SDXL: 4}
# Of T5; fewer for a CPU.
TEXT_TOKENS = {False: 512, True: 16}
CLIP_TOKENS = 77


class RandomTensor(msgspec.Struct, frozen=True):
    """Where a tensor would be read from: it is drawn instead, about as large as those of a new layer are."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def read(self) -> torch.Tensor:
        """Draw it, on the device. Without the scale, numbers would grow beyond all bounds from block to block."""
        return torch.randn(self.shape, dtype=self.dtype, device=self.device).mul_(self.shape[-1] ** -0.5)


class RandomLoader(ModelLoader):
    """Loads a denoiser that is on no disk."""

    def __init__(self, case: Case, device: str) -> None:
        super().__init__(Path(), PIPELINES[case.training_type].family, case.parameters.weight_dtype, device)
        self._case = case
        self.tiny = device == "cpu"

    def denoiser(self, quantization: Quantization = Quantization.NONE) -> Any:
        """Draw it, its blocks' weights in the type of `quantization`."""
        kind = FluxTransformer2DModel if self._case.family is ModelFamily.FLUX else UNet2DConditionModel
        model = empty_model(kind, self.config, self.dtype)
        sources = {
            name: RandomTensor(tensor.shape, self.dtype, self.device) for name, tensor in model.state_dict().items()
        }
        return fill_model(model, sources, self.dtype, self.device, quantization)

    def scheduler(self, kind: type[Any]) -> Any:
        """As SDXL is published."""
        return kind(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)

    @property
    def config(self) -> dict[str, Any]:
        """The denoiser's configuration."""
        if self.tiny:
            pipeline = build_pipeline(self._case.family)
            part = pipeline.transformer if self._case.family is ModelFamily.FLUX else pipeline.unet
            return dict(part.config)
        return REAL if self._case.family is ModelFamily.FLUX else SDXL


def main() -> None:
    """Print the GPU, or what each case took."""
    what, *options = sys.argv[1:]
    if what == "gpu":
        print(msgspec.json.encode(find_gpu()).decode())
        return
    device = "cpu" if "--tiny" in options else "cuda"
    if device == "cuda":
        # cuDNN's attention gives wrong gradients on some GPUs; both loops go without.
        torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    for case in msgspec.json.decode(what, type=list[Case]):
        print(msgspec.json.encode(measured(case, device)).decode(), flush=True)


def find_gpu() -> Found | None:
    """The GPU that a case would be on."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    return Found(name=name, memory_mib=total // MIB, free_mib=free // MIB, torch=str(torch.__version__))


def measured(case: Case, device: str) -> Figures:
    """Take a case's steps; one that fails has its reason, and the next one has all memory."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        return train(case, device)
    except Exception as error:  # noqa: BLE001 - the table goes on without it
        return Figures(case=case, fault=f"{type(error).__name__}: {error}".splitlines()[0][:200])
    finally:
        torch.compiler.reset()
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def train(case: Case, device: str) -> Figures:
    """Load, take all steps, and give what they took."""
    step = example_step(case, device) if case.loop is Loop.EXAMPLE else our_step(case, device)
    synchronize: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds, loss = [], 0.0
    for number in range(1, WARM_UPS + STEPS + 1):
        synchronize()
        began = time.perf_counter()
        loss = step(number)
        synchronize()
        seconds.append(time.perf_counter() - began)
    return Figures(
        case=case,
        seconds_per_step=statistics.median(seconds[WARM_UPS:]),
        peak_gib=torch.cuda.max_memory_reserved() / GIB if device == "cuda" else None,
        first_step_seconds=seconds[0],
        loss=loss,
    )


def our_step(case: Case, device: str) -> Callable[[int], float]:
    """A step of the trainer, as a run makes it whose images and captions are in the cache."""
    parameters = case.parameters
    loader = RandomLoader(case, device)
    pipeline = PIPELINES[case.training_type](loader, parameters, case.execution)
    pipeline.load_denoiser()
    side = parameters.resolution // PIXELS_PER_LATENT
    items = [Item(caption="", shape=(side, side))]
    image = OneImage(side, CHANNELS[case.family])
    batches = BatchSource(items, image, pipeline.noising, parameters)
    trainer = Trainer(pipeline, batches, OneText(*text_shape(case, loader), loader.dtype))
    return lambda number: trainer.step(number, lambda: None)


def example_step(case: Case, device: str) -> Callable[[int], float]:
    """A step of diffusers' example loop."""
    loader = RandomLoader(case, device)
    denoiser = loader.denoiser(case.quantization)
    length, width, pooled = text_shape(case, loader)
    side = case.resolution // PIXELS_PER_LATENT
    inputs = {
        "latents": torch.randn(1, CHANNELS[case.family], side, side, device=device),
        "tokens": torch.ones(1, length, width, device=device, dtype=loader.dtype),
        "pooled": torch.ones(1, pooled, device=device, dtype=loader.dtype),
    }
    loop = ExampleLoop(denoiser, case, inputs)
    return lambda _: loop.step()


def text_shape(case: Case, loader: RandomLoader) -> tuple[int, int, int]:
    """Length and width of a text's embedding, and the width of what is pooled; of the CPU's tiny models fewer."""
    config = loader.config
    if case.family is ModelFamily.FLUX:
        return TEXT_TOKENS[loader.tiny], config["joint_attention_dim"], config["pooled_projection_dim"]
    times = 6 * config["addition_time_embed_dim"]
    return CLIP_TOKENS, config["cross_attention_dim"], config["projection_class_embeddings_input_dim"] - times


if __name__ == "__main__":
    main()

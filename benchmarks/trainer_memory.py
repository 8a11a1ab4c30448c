"""The memory of a process that loads a mid-sized FLUX transformer and trains a LoRA of it, beside the planner's count.

python -m benchmarks.trainer_memory none|fp8|int8|nf4    prints both in MiB, as JSON

The prediction is `training_presets.memory`'s, of a workload whose model is this one. Its activations are counted on
this module as those of FLUX.1-dev are (`benchmarks.workloads`). The context and the slack of a GPU's allocator are
left out: there is neither here.

A model of one block of each kind, as wide, is trained first, so that what libraries take when they are first used is
not measured, nor what a CPU's kernels keep for each shape that they meet (oneDNN's cache is a part of it). Memory that
is freed is to go back at once, as a GPU's does: MALLOC_MMAP_THRESHOLD_=65536 in the environment.
"""

import ctypes
import gc
import json
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from msgspec.structs import replace

from benchmarks.one_sample import OneImage, OneText
from benchmarks.workloads import FLUX_TARGETS, TEXT_TOKENS, build, flux_pass, make_lean, with_adapter
from training_presets.memory import estimate_memory
from training_presets.models import Adapter, Law, Model, Part, models
from training_presets.presets import presets
from training_presets.workload import PIXELS_PER_LATENT, Workload
from training_schemas.jobs import ModelFamily, TrainingType
from training_schemas.progress import Phase
from training_schemas.spec import FluxLoraParameters, LoraTargets, OptimizerName, Quantization
from training_schemas.validation import convert_strictly
from training_worker.engines.diffusers.diffusion.batches import BatchSource, Item
from training_worker.engines.diffusers.models.loader import ModelLoader
from training_worker.engines.diffusers.models.quantization import is_quantized
from training_worker.engines.diffusers.pipelines import PIPELINES
from training_worker.engines.diffusers.pipelines.base import TrainingPipeline
from training_worker.engines.diffusers.training.trainer import Trainer

MIB = 2**20
MODEL: dict[str, Any] = {"num_layers": 4, "num_single_layers": 8, "num_attention_heads": 6, "guidance_embeds": True}
SHORT = MODEL | {"num_layers": 1, "num_single_layers": 1}
SIZE = 512  # pixels a side: 1,024 tokens
SIDE = SIZE // PIXELS_PER_LATENT
STEPS = 3
RANK = 16
TARGETS = LoraTargets.ATTENTION


class Peak:
    """Watches this process' own memory, from now on."""

    def __init__(self) -> None:
        self.before = self.most = own_memory()
        self._stop = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def growth(self) -> int:
        """Stop, and return how much the peak was above the beginning, in bytes."""
        self._stop.set()
        return max(self.most, own_memory()) - self.before

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self.most = max(self.most, own_memory())


class MidSized(Workload, frozen=True, kw_only=True):
    """A LoRA of our model."""

    own_model: Model
    own_law: Law

    @property
    def model(self) -> Model:
        """FLUX, with another transformer."""
        return self.own_model

    @property
    def law(self) -> Law:
        """What was counted, whatever the number of units."""
        return self.own_law


def own_memory() -> int:
    """What this process holds that is in no file, in bytes."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    """Measure, and count."""
    how = Quantization(sys.argv[1])
    measured, learned = measure(how)
    predicted = sum(predict(how, learned).values())
    print(json.dumps({"predicted": predicted / MIB, "measured": measured / MIB}))


def measure(how: Quantization) -> tuple[int, int]:
    """The growth of this process in bytes from before the model is loaded, and how many numbers learn."""
    with tempfile.TemporaryDirectory() as name:
        short, whole = Path(name, "short"), Path(name, "whole")
        write_model(short, SHORT)
        write_model(whole, MODEL)
        train(short, how)
        gc.collect()
        # What the heap keeps of the short one would else be filled again without a trace.
        ctypes.CDLL(None).malloc_trim(0)
        peak = Peak()
        pipeline = train(whole, how)
        measured = peak.growth()
    return measured, sum(weight.numel() for group in pipeline.groups() for weight in group["params"])


def train(folder: Path, how: Quantization) -> TrainingPipeline[Any]:
    """Load, and take some steps."""
    settings = presets()["flux_24gb_balanced"].parameters | {
        "batchSize": 1,
        "gradientAccumulationSteps": 1,
        "quantization": how.value,
        "optimizer": OptimizerName.ADAMW.value,
        "loraRank": RANK,
        "loraTargets": TARGETS.value,
    }
    parameters = convert_strictly(settings, FluxLoraParameters)
    kind = PIPELINES[TrainingType.FLUX_LORA]
    pipeline = kind(ModelLoader(folder, kind.family, parameters.weight_dtype, "cpu"), parameters)
    pipeline.load_denoiser()
    batches = BatchSource([Item(caption="", shape=(SIDE, SIDE))], OneImage(SIDE), pipeline.noising, parameters)
    trainer = Trainer(pipeline, batches, OneText(TEXT_TOKENS, 4096, 768, torch.float32))
    for number in range(STEPS):
        trainer.step(number, lambda: None)
    return pipeline


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """Write a transformer of random weights in float32, and its scheduler."""
    FluxTransformer2DModel(**config).save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")


def predict(how: Quantization, learned: int) -> dict[str, float]:
    """What there is at the peak by the planner's estimate, in bytes by part."""
    module = build(FluxTransformer2DModel, MODEL)
    linear = [layer.weight.numel() for name, layer in module.named_modules() if is_quantized(name, layer)]
    denoiser = Part(
        parameters=sum(weight.numel() for weight in module.parameters()),
        linear=sum(linear),
        linear_layers=len(linear),
        largest_linear=max(linear),
    )
    make_lean(with_adapter(module, FLUX_TARGETS[TARGETS], RANK))
    # The counter looks for garbage again and again: what lives by now is none.
    gc.freeze()
    counted = flux_pass(module, SIZE, train=True, checkpointed=True).activations
    adapter = Adapter(layers=0, parameters=learned // RANK)
    work = MidSized(
        training_type=TrainingType.FLUX_LORA,
        width=SIZE,
        height=SIZE,
        batch_size=1,
        lora_rank=RANK,
        lora_targets=TARGETS,
        quantization=how,
        optimizer=OptimizerName.ADAMW,
        own_model=replace(models()[ModelFamily.FLUX], denoiser=denoiser, adapters={TARGETS: adapter}),
        own_law=Law(
            activations=(counted, 0.0, 0.0, 0.0), traffic=(0.0,) * 4, flops=(0.0,) * 4, attention=0.0, kernels=0.0
        ),
    )
    training = {phase.phase: phase.parts for phase in estimate_memory(work).phases}[Phase.TRAINING]
    return {part: size for part, size in training.items() if part not in ("context", "slack")}


if __name__ == "__main__":
    main()

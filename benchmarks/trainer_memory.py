"""The memory of one process that loads a mid-sized FLUX transformer and trains a LoRA of it, beside a count.

python -m benchmarks.trainer_memory none|fp8|int8|nf4    prints both in MiB, as JSON

Memory that is freed is to go back at once, as a card's does: MALLOC_MMAP_THRESHOLD_=65536 in the environment.
"""

import json
import sys
import tempfile
import threading
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from benchmarks.one_sample import OneImage, OneText
from training_presets.memory import BYTES, STATES, weight_bytes
from training_presets.models import Part, amount, training_law
from training_presets.presets import presets
from training_schemas.jobs import TrainingType
from training_schemas.spec import FluxLoraParameters, LoraTargets, OptimizerName, Quantization, WeightDtype
from training_schemas.validation import convert_strictly
from training_worker.engines.diffusers.batches import BatchSource, Item
from training_worker.engines.diffusers.models import ModelLoader
from training_worker.engines.diffusers.pipelines import PIPELINES
from training_worker.engines.diffusers.trainer import Trainer

MIB = 2**20
DOUBLE, SINGLE, HEADS = 4, 8, 6
WIDTH = HEADS * 128
SIDE = 64  # latents: 1,024 tokens
TEXT_TOKENS = 128
STEPS = 3
RANK = 16
FLUX_BLOCKS, FLUX_WIDTH = 57, 3072


class Peak:
    """Watches this process' own memory, from now on."""

    def __init__(self) -> None:
        self.before = self.most = own_memory()
        self._stop = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def growth(self) -> int:
        """Stop, and say how much the peak was above the beginning, in bytes."""
        self._stop.set()
        return max(self.most, own_memory()) - self.before

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, own_memory())


def own_memory() -> int:
    """What this process holds that is in no file, in bytes."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    """Measure, and count."""
    how = Quantization(sys.argv[1])
    settings = presets()["flux_24gb_balanced"].parameters | {
        "batchSize": 1,
        "gradientAccumulationSteps": 1,
        "quantization": how.value,
        "optimizer": "adamw",
        "loraRank": RANK,
    }
    parameters = convert_strictly(settings, FluxLoraParameters)
    with tempfile.TemporaryDirectory() as name:
        linear, total = write_model(Path(name))
        kind = PIPELINES[TrainingType.FLUX_LORA]
        pipeline = kind(ModelLoader(Path(name), kind.family, parameters.weight_dtype, "cpu"), parameters)
        peak = Peak()
        pipeline.load_denoiser()
        items = [Item(caption="", shape=(SIDE, SIDE))]
        texts = OneText(TEXT_TOKENS, 4096, WIDTH, torch.float32)
        trainer = Trainer(pipeline, BatchSource(items, OneImage(SIDE), pipeline.noising, parameters), texts)
        for number in range(STEPS):
            trainer.step(number, lambda: None)
        measured = peak.growth()
    learned = sum(weight.numel() for group in pipeline.groups() for weight in group["params"])
    predicted = count(linear, total, learned, how)
    print(json.dumps({"predicted": predicted / MIB, "measured": measured / MIB}))


def write_model(folder: Path) -> tuple[int, int]:
    """Write the transformer in float32, and its scheduler; tells its blocks' linear weights, and all of them."""
    model = FluxTransformer2DModel(
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        num_attention_heads=HEADS,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
    )
    model.save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    blocks = [*model.transformer_blocks.modules(), *model.single_transformer_blocks.modules()]
    linear = sum(module.weight.numel() for module in blocks if isinstance(module, torch.nn.Linear))
    return linear, sum(weight.numel() for weight in model.parameters())


def count(linear: int, total: int, learned: int, how: Quantization) -> float:
    """Bytes by the planner's rules: weights, what learns with gradients and states, and a pass with checkpointing.

    What the planner counts for a pass of FLUX.1-dev is taken down to this model: inputs of blocks by the number of
    blocks and the width, all else, which is of the block at work, by the width.
    """
    part = Part(parameters=total, linear=linear)
    learning = learned * (2 + STATES[OptimizerName.ADAMW]) * BYTES[WeightDtype.FLOAT32]
    tokens = (SIDE // 2) ** 2 + TEXT_TOKENS
    law = training_law(TrainingType.FLUX_LORA, LoraTargets.ATTENTION, checkpointing=True)
    bytes_kept = tokens * BYTES[WeightDtype.BFLOAT16]
    at_work = amount(law.activations, tokens, RANK) - FLUX_BLOCKS * FLUX_WIDTH * bytes_kept
    activations = (DOUBLE + SINGLE) * WIDTH * bytes_kept + at_work * WIDTH / FLUX_WIDTH
    return weight_bytes(part, WeightDtype.BFLOAT16, how) + learning + activations


if __name__ == "__main__":
    main()

"""The rows of the table of steps: what each trains, in which way, and what was measured."""

from enum import StrEnum

import msgspec

from training_presets.presets import presets
from training_presets.workload import Workload, workload_of
from training_schemas.jobs import ModelFamily, TrainingType
from training_schemas.spec import PARAMETERS, Execution, FluxLoraParameters, Quantization, SdxlParameters
from training_schemas.validation import convert_strictly

TYPES = {ModelFamily.FLUX: TrainingType.FLUX_LORA, ModelFamily.SDXL: TrainingType.SDXL_LORA}
PRESETS = {ModelFamily.FLUX: "flux_24gb_balanced", ModelFamily.SDXL: "sdxl_balanced"}


class Loop(StrEnum):
    """Whose loop takes the steps."""

    EXAMPLE = "example"
    """As diffusers' example script trains: peft's layers under autocast."""
    OURS = "ours"
    COMPILED = "compiled"
    """Ours, its blocks compiled."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What a row trains; ``stored_blocks`` and ``keep_attention`` are as in `Execution`."""

    family: ModelFamily = ModelFamily.FLUX
    quantization: Quantization = Quantization.NONE
    resolution: int = 1024
    batch_size: int = 1
    accumulation: int = 1
    checkpointing: bool = True
    stored_blocks: int = 0
    keep_attention: bool = False
    loop: Loop = Loop.OURS
    optimizer: str = "adamw"

    @property
    def training_type(self) -> TrainingType:
        """A LoRA of the family."""
        return TYPES[self.family]

    @property
    def parameters(self) -> FluxLoraParameters | SdxlParameters:
        """The settings of the run, and of the plan: rank 16 beside attention, with caches."""
        settings = presets()[PRESETS[self.family]].parameters_for(self.training_type) | {
            "resolution": self.resolution,
            "quantization": self.quantization.value,
            "batchSize": self.batch_size,
            "gradientAccumulationSteps": self.accumulation,
            "gradientCheckpointing": self.checkpointing,
            "optimizer": self.optimizer,
            "loraRank": 16,
            "loraTargets": "attention",
            "maxTrainSteps": 1000,
        }
        return convert_strictly(settings, PARAMETERS[self.family])

    @property
    def execution(self) -> Execution:
        """How its steps are computed."""
        return Execution(
            stored_blocks=self.stored_blocks,
            keep_attention=self.keep_attention,
            compiled=self.loop is Loop.COMPILED,
            data_on_device=True,
        )

    @property
    def workload(self) -> Workload:
        """What the planner sees of it."""
        return workload_of(self.training_type, self.parameters)

    @property
    def name(self) -> str:
        """A short name of the row."""
        kept = f" {self.stored_blocks} stored" if self.stored_blocks else ""
        kept += " attention kept" if self.keep_attention else ""
        checkpoints = f"checkpointed{kept}" if self.checkpointing else "stored"
        base = "bf16" if self.quantization is Quantization.NONE else self.quantization.value
        samples = f"{self.batch_size}x{self.accumulation}"
        return f"{self.family} {base} {self.resolution} {samples} {checkpoints} {self.optimizer} {self.loop}"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The GPU as torch sees it: all its memory, and what nobody else uses."""

    name: str
    memory_mib: int
    free_mib: int
    torch: str


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a case: seconds a step (median), and GiB that torch reserved at most; or why nothing was."""

    case: Case
    seconds_per_step: float | None = None
    peak_gib: float | None = None
    first_step_seconds: float | None = None
    loss: float | None = None
    fault: str | None = None


def flux_cases() -> list[list[Case]]:
    """What is measured of FLUX, a list for each process; the most telling first, and what compiles last."""
    bf16 = [
        Case(loop=loop, resolution=size, batch_size=batch, checkpointing=checkpointing)
        for size, batch, checkpointing in ((1024, 1, False), (512, 4, False), (512, 1, True), (1024, 1, True))
        for loop in (Loop.OURS, Loop.EXAMPLE)
    ]
    bf16 += [
        Case(resolution=512, batch_size=4),
        Case(resolution=768, batch_size=2, checkpointing=False),
        Case(stored_blocks=30),
        Case(resolution=512, batch_size=1, checkpointing=False),
    ]
    nf4 = [
        Case(quantization=Quantization.NF4, resolution=512, batch_size=batch, loop=loop, checkpointing=checkpointing)
        for loop, batch, checkpointing in (
            (Loop.OURS, 1, True),
            (Loop.EXAMPLE, 1, True),
            (Loop.OURS, 4, False),
        )
    ]
    nf4.append(Case(quantization=Quantization.NF4, resolution=512, batch_size=4, accumulation=2, checkpointing=False))
    eight = [Case(quantization=how, resolution=512) for how in (Quantization.FP8, Quantization.INT8)]
    compiled = [Case(loop=Loop.COMPILED, resolution=512, batch_size=4, checkpointing=False)]
    return [bf16[:6], nf4, bf16[6:], eight, compiled]


def sdxl_cases() -> list[list[Case]]:
    """The same of SDXL."""
    return [
        [
            Case(family=ModelFamily.SDXL, loop=loop, batch_size=batch, checkpointing=checkpointing)
            for loop, batch, checkpointing in (
                (Loop.OURS, 1, False),
                (Loop.EXAMPLE, 1, False),
                (Loop.OURS, 4, False),
                (Loop.OURS, 1, True),
            )
        ]
    ]


def tiny_cases() -> list[list[Case]]:
    """One of each kind, at sizes for a CPU."""
    flux = [Case(resolution=64, batch_size=2, loop=loop) for loop in (Loop.EXAMPLE, Loop.OURS)]
    quantized = [Case(resolution=64, quantization=how) for how in Quantization if how is not Quantization.NONE]
    sdxl = [Case(family=ModelFamily.SDXL, resolution=64, loop=loop) for loop in (Loop.EXAMPLE, Loop.OURS)]
    return [flux, *([case] for case in quantized), sdxl]

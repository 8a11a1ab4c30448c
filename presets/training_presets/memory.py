"""The model of memory: what is on the GPU in each phase of a run, part by part, and the peak of it.

Everything but two figures is counted: weights, gradients and optimizer states by their sizes, activations on the real
modules (`workloads.toml`). The two, `CONTEXT` and `SLACK`, are fitted to the published table (`measurements.toml`).
"""

import msgspec

from training_presets.models import Part, amount
from training_presets.workload import Workload
from training_schemas.jobs import TrainingType
from training_schemas.progress import Phase
from training_schemas.spec import OptimizerName, Quantization, WeightDtype

GIB = 2**30
MIB = 2**20

# What the driver, the libraries and their workspaces take before the first tensor.
CONTEXT = 0.6 * GIB
# How much more the allocator holds than what it has handed out: blocks of other sizes, kept for later.
SLACK = 0.06

# NCCL's buffers for each GPU that one exchanges with: 4 MiB in 16 channels there and back (NCCL_BUFFSIZE); not
# measured. In a ring there are two such GPUs. Gradients travel in pieces, each copied once.
NCCL = 2 * 2 * 16 * 4 * 2**20
PIECE = 32 * 2**20

BYTES = {WeightDtype.FLOAT32: 4.0, WeightDtype.FLOAT16: 2.0, WeightDtype.BFLOAT16: 2.0}

# Bytes of a quantized weight: nf4 keeps a float32 scale for each block of 64 (QLoRA, Dettmers et al. 2023, without
# double quantization), fp8 and int8 a scale a row, which is nothing.
QUANTIZED_BYTES = {Quantization.FP8: 1.0, Quantization.INT8: 1.0, Quantization.NF4: 0.5 + 4 / 64}

# States of an optimizer in numbers a parameter, and the bytes of each. Adam has two moments; Prodigy two more, the
# start and its distance from there; Adafactor keeps rows and columns, next to nothing. In 8 bits a moment is a byte,
# and a scale for each block of 256 (Dettmers et al. 2022).
STATES = {
    OptimizerName.ADAMW: 2.0,
    OptimizerName.ADAMW_8BIT: 2.0,
    OptimizerName.PRODIGY: 4.0,
    OptimizerName.ADAFACTOR: 0.01,
}
EIGHT_BIT = 1 + 4 / 256

# Computing in float32 keeps twice the bytes of what was counted in bfloat16.
FULL_PRECISION = 2.0


class PhaseMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What is on the GPU in one phase, in bytes by part."""

    phase: Phase
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """All parts together, in bytes."""
        return sum(self.parts.values())


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """A run's phases in their order."""

    phases: tuple[PhaseMemory, ...]

    @property
    def peak(self) -> PhaseMemory:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak_gib(self) -> float:
        """What the whole run needs, in GiB."""
        return self.peak.total / GIB

    @property
    def peak_mib(self) -> int:
        """The same in MiB, rounded up."""
        return -int(-self.peak.total // 2**20)


def estimate_memory(work: Workload) -> MemoryEstimate:
    """What a run needs on its GPU."""
    return MemoryEstimate(
        phases=tuple(
            _phase(phase, parts)
            for phase, parts in (
                (Phase.CACHING_TEXT, _caching_text(work)),
                (Phase.CACHING_LATENTS, _caching_latents(work)),
                (Phase.LOADING_MODEL, _loading(work)),
                (Phase.TRAINING, _training(work)),
                (Phase.SAMPLING, _sampling(work)),
            )
            if parts
        )
    )


def training_bytes(work: Workload) -> float:
    """What the phase of training needs, in bytes."""
    return _phase(Phase.TRAINING, _training(work)).total


def weight_bytes(part: Part, dtype: WeightDtype, quantization: Quantization = Quantization.NONE) -> float:
    """What a part's weights take; a quantization is of its linear weights alone."""
    if quantization is Quantization.NONE:
        return part.parameters * BYTES[dtype]
    return part.linear * QUANTIZED_BYTES[quantization] + (part.parameters - part.linear) * BYTES[dtype]


def optimizer_bytes(work: Workload) -> float:
    """What the optimizer keeps of each parameter from step to step."""
    match work.optimizer:
        case OptimizerName.ADAMW_8BIT:
            size = EIGHT_BIT
        case OptimizerName.ADAMW:
            # The built-in trainer steps weights of 16 bits in 32, and keeps their moments so.
            size = BYTES[WeightDtype.FLOAT32]
        case _:
            size = BYTES[trained_dtype(work)]
    return work.trained_parameters * STATES[work.optimizer] * size


def _phase(phase: Phase, parts: dict[str, float]) -> PhaseMemory:
    allocated = sum(parts.values())
    return PhaseMemory(phase=phase, parts={"context": CONTEXT, **parts, "slack": SLACK * allocated})


def _caching_text(work: Workload) -> dict[str, float]:
    if work.encoders_resident:
        return {}
    return {"textEncoders": weight_bytes(work.model.encoders, work.weight_dtype)}


def _caching_latents(work: Workload) -> dict[str, float]:
    if not work.cache_latents:
        return {}
    resident = {"textEncoders": _encoders(work)} if work.encoders_resident else {}
    return resident | {"vae": _vae(work), "activations": _activations(work, "encoding", work.latents)}


def _loading(work: Workload) -> dict[str, float]:
    # Weights are quantized one layer after the other: the largest is there twice for a moment.
    return {**_resident(work), "dequantised": _dequantized(work)}


def _training(work: Workload) -> dict[str, float]:
    gradients = 0.0 if work.fused_backward else work.trained_parameters * BYTES[trained_dtype(work)]
    encoding = 0.0 if work.cache_latents else _activations(work, "encoding", work.latents)
    return {
        **_resident(work),
        "gradients": gradients,
        **({"exchange": NCCL + PIECE} if work.gpu_count > 1 else {}),
        "optimizer": optimizer_bytes(work),
        "castWeights": _cast_weights(work),
        "dequantised": _dequantized(work),
        "activations": max(_scaled(work, _kept(work)), encoding),
        **({"data": work.images * work.cached_bytes} if work.data_on_device else {}),
    }


def _kept(work: Workload) -> float:
    """Numbers that a pass keeps, in 16 bits.

    The law of checkpointed blocks is fitted through a peak that moves with the rank, and may be over that of stored
    ones at the least sizes: to keep less never needs more.
    """
    units = work.units * work.batch_size
    return min(amount(law.activations, units, work.rank) for law in (work.law, work.stored_law))


def _sampling(work: Workload) -> dict[str, float]:
    if not work.validation_prompts:
        return {}
    passing = _activations(work, "sampling", work.units * work.model.guidance_passes)
    decoding = _activations(work, "decoding", work.latents)
    kept = _training(work) | {"vae": _vae(work), "activations": max(passing, decoding)}
    return kept | {"castWeights": 0.0}


def _resident(work: Workload) -> dict[str, float]:
    """What stays for as long as it trains, gradients and optimizer aside."""
    parts = {"denoiser": _denoiser(work)}
    if work.encoders_resident:
        parts["textEncoders"] = _encoders(work)
    if not work.cache_latents:
        parts["vae"] = _vae(work)
    if work.averaged:
        parts["average"] = work.trained_parameters * BYTES[trained_dtype(work)]
    if work.training_type is not TrainingType.SDXL_FINETUNE:
        parts["trained"] = work.trained_parameters * BYTES[trained_dtype(work)]
    return parts


def _denoiser(work: Workload) -> float:
    if work.training_type is TrainingType.SDXL_FINETUNE:
        return work.model.denoiser.parameters * BYTES[trained_dtype(work)]
    return weight_bytes(work.model.denoiser, work.weight_dtype, work.quantization)


def _encoders(work: Workload) -> float:
    learns = work.training_type is TrainingType.SDXL_FINETUNE and work.train_text_encoder
    return weight_bytes(work.model.encoders, trained_dtype(work) if learns else work.weight_dtype)


def _vae(work: Workload) -> float:
    # float16 overflows in it: it is kept in float32 then.
    dtype = WeightDtype.FLOAT32 if work.weight_dtype is WeightDtype.FLOAT16 else work.weight_dtype
    return weight_bytes(work.model.vae, dtype)


def trained_dtype(work: Workload) -> WeightDtype:
    """What the weights that learn are in."""
    if work.trained_dtype is not None:
        return work.trained_dtype
    # An adapter learns in float32 whatever its base is in; a finetune in what the weights are in.
    return work.weight_dtype if work.training_type is TrainingType.SDXL_FINETUNE else WeightDtype.FLOAT32


def _cast_weights(work: Workload) -> float:
    """Autocast keeps a copy of each float32 weight that learns, in half of its size, for a pass."""
    if trained_dtype(work) is not WeightDtype.FLOAT32:
        return 0.0
    return work.trained_parameters * 2.0


def _dequantized(work: Workload) -> float:
    if work.quantization is Quantization.NONE or work.training_type is TrainingType.SDXL_FINETUNE:
        return 0.0
    return work.model.denoiser.largest_linear * BYTES[work.weight_dtype]


def _activations(work: Workload, what: str, units: float) -> float:
    return _scaled(work, amount(work.inference_law(what).activations, units, 0))


def _scaled(work: Workload, counted: float) -> float:
    return counted * (FULL_PRECISION if work.weight_dtype is WeightDtype.FLOAT32 else 1.0)

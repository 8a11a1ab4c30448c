"""The model of time: how long a step takes on a card, and the whole run, phase by phase.

A pass takes as long as its matrix products at the card's sustained rate and the bytes of everything else at its
bandwidth; but no less than it takes to start all its kernels. FLOP, bytes and kernels are counted on the real modules
(`workloads.toml`). The few figures here are fitted to the published table (`measurements.toml`).
"""

import msgspec

from training_presets.cards import CardSpec
from training_presets.memory import BYTES, QUANTISED_BYTES, trained_dtype, weight_bytes
from training_presets.models import Law, Part, amount
from training_presets.workload import Workload
from training_schemas.progress import Phase
from training_schemas.spec import OptimizerName, Quantization, WeightDtype

# Seconds that Python, PyTorch and the driver take to start a kernel.
LAUNCH = 25e-6
# Of the bytes that are counted, some never leave the card's caches.
TRAFFIC = 0.4
# Matrix products in float32 run beside the tensor cores.
FLOAT32_RATE = 0.2

# Kernels that restore a quantised layer's weights for one pass, and that take one tensor's step where an optimizer goes
# from tensor to tensor. AdamW takes all at once.
KERNELS_TO_DEQUANTISE = 3
KERNELS_A_TENSOR = {
    OptimizerName.ADAMW: 0,
    OptimizerName.ADAMW_8BIT: 2,
    OptimizerName.ADAFACTOR: 20,
    OptimizerName.PRODIGY: 12,
}

# Passes through a layer in a step: forth, back, and forth again where activations are made anew.
PASSES = {True: 3, False: 2}

# Bytes a second between two cards of a host. PCIe 4.0 carries 32 GB/s in 16 lanes; half of it is assumed, for no
# published row of the table is of several cards. NVLink is faster.
LINK_RATE = 16e9

# Imports, and checking the data set; bytes a second from a local disk into memory and onto the card; seconds that a
# checkpoint and the export take.
STARTING = 12.0
LOADING_RATE = 1.5e9
SAVING = 2.0
EXPORTING = 3.0


class TimeEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of an optimizer step, and of each phase of the run."""

    seconds_per_step: float
    phases: dict[Phase, float]

    @property
    def seconds(self) -> float:
        """The whole run."""
        return sum(self.phases.values())

    @property
    def hours(self) -> float:
        """The whole run, in hours."""
        return self.seconds / 3600


def estimate_time(work: Workload, card: CardSpec, *, measured: float | None = None) -> TimeEstimate:
    """How long a run takes on a card; ``measured`` are seconds a step that it has taken there before."""
    step = measured or seconds_per_step(work, card)
    model, encoders = work.model, weight_bytes(work.model.encoders, work.weight_dtype)
    text = 0.0 if work.encoders_resident else (work.images + work.validation_prompts) * _encode_text(work, card)
    phases = {
        Phase.STARTING: STARTING,
        Phase.CACHING_TEXT: encoders / LOADING_RATE + text,
        Phase.CACHING_LATENTS: _loading(model.vae, work) + work.images * _encode_image(work, card),
        # Quantised or not, the file is read as it is.
        Phase.LOADING_MODEL: _loading(model.denoiser, work),
        Phase.TRAINING: work.steps * step,
        Phase.CHECKPOINTING: work.checkpoints * SAVING,
        Phase.SAMPLING: 2 * work.validation_prompts * seconds_per_sample(work, card),
        Phase.EXPORTING: EXPORTING,
    }
    return TimeEstimate(seconds_per_step=step, phases=phases)


def seconds_per_step(work: Workload, card: CardSpec) -> float:
    """An optimizer step: a card's micro-batches, the sum of all cards' gradients, and the optimizer."""
    passes = work.accumulation / work.gpu_count
    return passes * seconds_per_pass(work, card) + _exchange(work) + _optimize(work, card)


def seconds_per_pass(work: Workload, card: CardSpec) -> float:
    """A micro-batch, forth and back."""
    law, kernels = work.law, 0.0
    busy = _law_seconds(law, work, card, samples=work.batch_size, units=work.units)
    if work.quantization is not Quantization.NONE:
        passes = PASSES[work.gradient_checkpointing]
        size = QUANTISED_BYTES[work.quantization] + 2 * BYTES[work.weight_dtype]
        busy += passes * work.model.denoiser.linear * size / (card.bandwidth_gbs * 1e9)
        kernels += passes * work.model.denoiser.linear_layers * KERNELS_TO_DEQUANTISE
    if work.encoders_resident:
        busy += work.batch_size * _encode_text(work, card)
    if not work.cache_latents:
        busy += work.batch_size * _encode_image(work, card)
    return max(busy, (law.kernels + kernels) * LAUNCH)


def seconds_per_sample(work: Workload, card: CardSpec) -> float:
    """One picture: all its inference steps, and its decoding."""
    law = work.inference_law("sampling")
    passes = work.model.guidance_passes
    once = max(_law_seconds(law, work, card, samples=passes, units=work.units), law.kernels * LAUNCH)
    decoding = _law_seconds(work.inference_law("decoding"), work, card, samples=1, units=work.latents)
    return work.validation_inference_steps * once + decoding


def _law_seconds(law: Law, work: Workload, card: CardSpec, *, samples: float, units: float) -> float:
    flops = amount(law.flops, samples * units, work.rank) + samples * law.attention * units**2
    traffic = amount(law.traffic, samples * units, work.rank)
    full = work.weight_dtype is WeightDtype.FLOAT32
    rate = card.sustained_tflops * 1e12 * (FLOAT32_RATE if full else 1.0)
    return flops / rate + TRAFFIC * traffic * (2.0 if full else 1.0) / (card.bandwidth_gbs * 1e9)


def _exchange(work: Workload) -> float:
    # Round a ring, each card sends and receives all but its own part twice (Patarasuk and Yuan 2009).
    share = 2 * (work.gpu_count - 1) / work.gpu_count
    return share * work.trained_parameters * BYTES[trained_dtype(work)] / LINK_RATE


def _optimize(work: Workload, card: CardSpec) -> float:
    # Weights, gradients and states are read, and weights and states written.
    traffic = work.trained_parameters * 4 * 7
    tensors = 2 * (work.adapter.layers if work.is_lora else work.model.denoiser.linear_layers)
    return traffic / (card.bandwidth_gbs * 1e9) + tensors * KERNELS_A_TENSOR[work.optimizer] * LAUNCH


def _encode_text(work: Workload, card: CardSpec) -> float:
    tokens = work.text_tokens or work.model.text_tokens
    return 2 * work.model.encoders.linear * tokens / (card.sustained_tflops * 1e12)


def _encode_image(work: Workload, card: CardSpec) -> float:
    return _law_seconds(work.inference_law("encoding"), work, card, samples=1, units=work.latents)


def _loading(part: Part, work: Workload) -> float:
    return part.parameters * BYTES[work.weight_dtype] / LOADING_RATE

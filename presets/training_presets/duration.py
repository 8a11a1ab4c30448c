"""The model of time: how long a step takes on a GPU, and the whole run, phase by phase.

A pass takes as long as its matrix products, its attention forward and backward, the bytes of everything else and the
weights that are restored from few bits, each at its own rate; but no less than it takes to start all its operations.
The amounts are counted on the real modules (`workloads.toml`), the rates are a GPU's own (`rates.py`).
"""

import msgspec

from training_presets.cards import CardSpec
from training_presets.memory import BYTES, trained_dtype, weight_bytes
from training_presets.models import Law, Part, amount
from training_presets.rates import Compiling, rates_of, restored_per_second
from training_presets.workload import Workload
from training_schemas.progress import Phase
from training_schemas.selftest import GpuRates
from training_schemas.spec import OptimizerName, Quantization, WeightDtype

# Matrix products in float32 run beside the tensor cores.
FLOAT32_RATE = 0.2

# Operations that restore a quantized layer's weights for one pass, and (fitted) that take one tensor's step where an
# optimizer goes from tensor to tensor. AdamW takes all at once; that of 8 bits has a rate of its own.
OPERATIONS_TO_RESTORE = 2
OPERATIONS_A_TENSOR = {OptimizerName.ADAFACTOR: 5, OptimizerName.PRODIGY: 4}

# Passes through a layer in a step: forth and back. Where activations are made again, forth once more.
PASSES = 2

# Bytes a second between two GPUs of a host, or from its memory to a GPU. PCIe 4.0 carries 32 GB/s in 16 lanes; half of
# it is assumed, for no published row of the table is of several GPUs. NVLink is faster.
LINK_RATE = 16e9

# Imports, and checking the data set; bytes a second from a local disk into memory and onto the GPU; seconds that a
# checkpoint and the export take.
STARTING = 12.0
LOADING_RATE = 1.5e9
SAVING = 2.0
EXPORTING = 3.0

# Without figures of their own, compiled blocks are as fast as others.
NO_GAIN = Compiling()


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a GPU is, and what compiling brings there."""

    rates: GpuRates
    compiling: Compiling = NO_GAIN


# What an operation of our own layers takes to start, by that of torch's: they are functions in Python, and one that
# adds a list of gradients starts a kernel for each. On an H100 a step of one image of 512 pixels, which waits for the
# host, took 0.375 s for 5,738 operations, where peft's took 0.697 for 14,939.
OWN_OPERATION = 1.42


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


def estimate_time(
    work: Workload,
    card: CardSpec,
    *,
    measured: float | None = None,
    rates: GpuRates | None = None,
    compiling: Compiling = NO_GAIN,
) -> TimeEstimate:
    """How long a run takes on a GPU whose self-test measured ``rates``.

    ``measured`` are seconds a step that such a run has taken there before: they go before the model.
    """
    speed = Speed(rates=rates_of(card, rates), compiling=compiling)
    step = measured or step_seconds(work, speed)
    encoders = weight_bytes(work.model.encoders, work.weight_dtype)
    text = 0.0 if work.encoders_resident else (work.images + work.validation_prompts) * _encode_text(work, speed)
    phases = {
        Phase.STARTING: STARTING + (compiling.seconds if work.compiled else 0.0),
        Phase.CACHING_TEXT: encoders / LOADING_RATE + text,
        Phase.CACHING_LATENTS: _loading(work.model.vae, work) + work.images * _encode_image(work, speed),
        # Quantized or not, the file is read as it is.
        Phase.LOADING_MODEL: _loading(work.model.denoiser, work),
        Phase.TRAINING: work.steps * step,
        Phase.CHECKPOINTING: work.checkpoints * SAVING,
        Phase.SAMPLING: 2 * work.validation_prompts * _sample_seconds(work, speed),
        Phase.EXPORTING: EXPORTING,
    }
    return TimeEstimate(seconds_per_step=step, phases=phases)


def seconds_per_step(work: Workload, card: CardSpec, rates: GpuRates | None = None) -> float:
    """An optimizer step on a GPU of this kind, by its measured ``rates`` where there are any."""
    return step_seconds(work, Speed(rates=rates_of(card, rates)))


def seconds_per_pass(work: Workload, card: CardSpec, rates: GpuRates | None = None) -> float:
    """A micro-batch, forth and back, on a GPU of this kind."""
    return pass_seconds(work, Speed(rates=rates_of(card, rates)))


def step_seconds(work: Workload, speed: Speed) -> float:
    """An optimizer step: a GPU's micro-batches, the sum of all GPUs' gradients, and the optimizer."""
    passes = work.accumulation / work.gpu_count
    return passes * pass_seconds(work, speed) + _exchange(work) + _optimize(work, speed.rates)


def pass_seconds(work: Workload, speed: Speed) -> float:
    """A micro-batch, forth and back."""
    rates, law = speed.rates, work.law
    through = PASSES + work.recomputed_share
    busy = _busy(law, work, speed, samples=work.batch_size, units=work.units)
    operations = law.kernels * (speed.compiling.operations if work.compiled else 1.0)
    if work.quantization is not Quantization.NONE:
        busy += through * work.model.denoiser.linear / restored_per_second(rates, work.quantization)
        operations += through * work.model.denoiser.linear_layers * OPERATIONS_TO_RESTORE
    if work.encoders_resident:
        busy += work.batch_size * _encode_text(work, speed)
    if not work.cache_latents:
        busy += work.batch_size * _encode_image(work, speed)
    started = operations * rates.launch_seconds * (1.0 if work.peft_layers else OWN_OPERATION)
    return max(busy, started) + _copying(work)


def _sample_seconds(work: Workload, speed: Speed) -> float:
    """One sample image: all its inference steps, and its decoding."""
    law = work.inference_law("sampling")
    passes = work.model.guidance_passes
    once = max(_inference(law, work, speed, samples=passes, units=work.units), law.kernels * speed.rates.launch_seconds)
    decoding = _inference(work.inference_law("decoding"), work, speed, samples=1, units=work.latents)
    return work.validation_inference_steps * once + decoding


def _busy(law: Law, work: Workload, speed: Speed, *, samples: float, units: float) -> float:
    """What the GPU itself takes for a pass forth and back, launches aside."""
    rates = speed.rates
    # Forward and backward passes of attention have kernels of their own, and rates of their own.
    backward = work.attention_backward
    forward = law.attention - backward
    squares = samples * units**2
    traffic = amount(law.traffic, samples * units, work.rank) * (speed.compiling.traffic if work.compiled else 1.0)
    half = (
        amount(law.flops, samples * units, work.rank) / rates.product_flops
        + squares * forward / rates.attention_forward_flops
        + squares * backward / rates.attention_backward_flops
    )
    return _in_type(work, half, traffic / rates.bytes_per_second)


def _inference(law: Law, work: Workload, speed: Speed, *, samples: float, units: float) -> float:
    """What the GPU takes for a pass without gradients."""
    rates = speed.rates
    products = amount(law.flops, samples * units, work.rank) / rates.product_flops
    attention = samples * law.attention * units**2 / rates.attention_forward_flops
    return _in_type(
        work, products + attention, amount(law.traffic, samples * units, work.rank) / rates.bytes_per_second
    )


def _in_type(work: Workload, products: float, traffic: float) -> float:
    full = work.weight_dtype is WeightDtype.FLOAT32
    return products / (FLOAT32_RATE if full else 1.0) + traffic * (2.0 if full else 1.0)


def _copying(work: Workload) -> float:
    """What encoders made of a micro-batch comes over the bus, unless it lies on the GPU."""
    return 0.0 if work.data_on_device else work.batch_size * work.cached_bytes / LINK_RATE


def _exchange(work: Workload) -> float:
    # Round a ring, each GPU sends and receives all but its own part twice (Patarasuk and Yuan 2009).
    share = 2 * (work.gpu_count - 1) / work.gpu_count
    return share * work.trained_parameters * BYTES[trained_dtype(work)] / LINK_RATE


def _optimize(work: Workload, rates: GpuRates) -> float:
    # Weights, gradients and states are read, and weights and states written.
    traffic = work.trained_parameters * 4 * 7
    tensors = 2 * (work.adapter.layers if work.is_lora else work.model.denoiser.linear_layers)
    return traffic / rates.bytes_per_second + tensors * _seconds_a_tensor(work.optimizer, rates)


def _seconds_a_tensor(optimizer: OptimizerName, rates: GpuRates) -> float:
    if optimizer is OptimizerName.ADAMW_8BIT:
        return rates.optimizer_seconds
    return OPERATIONS_A_TENSOR.get(optimizer, 0) * rates.launch_seconds


def _encode_text(work: Workload, speed: Speed) -> float:
    tokens = work.text_tokens or work.model.text_tokens
    return 2 * work.model.encoders.linear * tokens / speed.rates.product_flops


def _encode_image(work: Workload, speed: Speed) -> float:
    return _inference(work.inference_law("encoding"), work, speed, samples=1, units=work.latents)


def _loading(part: Part, work: Workload) -> float:
    return part.parameters * BYTES[work.weight_dtype] / LOADING_RATE

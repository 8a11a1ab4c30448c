"""The run's spec: what a trainer is told, in ``spec.json`` of its run folder.

A spec is resolved: presets, overrides and defaults are settled, and a trainer never has to guess.
"""

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta

from training_schemas.base import JobId, StrictWire, Text
from training_schemas.jobs import EngineName, TrainingType

SPEC_FILE = "spec.json"
PROGRESS_FILE = "progress.jsonl"
LEASE_FILE = "lease"
REQUESTS_FILE = "requests.jsonl"
STDOUT_FILE = "stdout.log"
STDERR_FILE = "stderr.log"

Positive = Annotated[int, Meta(ge=1)]


class TimestepSampler(StrEnum):
    """How the noise level of a sample is drawn: uniform in [0, 1], or that pushed towards noise by the shift."""

    SHIFT = "shift"
    UNIFORM = "uniform"


class WeightDtype(StrEnum):
    """The precision of the frozen base model's weights."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Quantization(StrEnum):
    """How the frozen base model's linear weights are kept in memory: as ``weightDtype`` says, or smaller."""

    NONE = "none"
    FP8 = "fp8"
    INT8 = "int8"
    NF4 = "nf4"


class OptimizerName(StrEnum):
    """What turns gradients into steps."""

    ADAMW = "adamw"
    ADAMW_8BIT = "adamw8bit"
    ADAFACTOR = "adafactor"
    PRODIGY = "prodigy"


class LoraTargets(StrEnum):
    """Which layers of the denoiser an adapter is put beside."""

    ATTENTION = "attention"
    ATTENTION_AND_FEED_FORWARD = "attentionAndFeedForward"
    ALL_LINEAR = "allLinear"


class TrainingParameters(StrictWire, frozen=True, kw_only=True):
    """The settings that every type of training has. Sizes are pixels, intervals are optimizer steps, 0 for never.

    One optimizer step sees ``batch_size * gradient_accumulation_steps`` images. What is cached is computed once, before
    training, and the model that made it is not in memory while it trains.
    """

    resolution: Annotated[int, Meta(ge=64, le=2048, multiple_of=16)]
    batch_size: Annotated[int, Meta(ge=1, le=64)]
    gradient_accumulation_steps: Annotated[int, Meta(ge=1, le=256)]
    max_train_steps: Annotated[int, Meta(ge=1, le=1_000_000)]
    learning_rate: Annotated[float, Meta(gt=0, le=1)]
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    gradient_checkpointing: bool
    weight_dtype: WeightDtype
    quantization: Quantization
    cache_text_encoder_outputs: bool
    cache_vae_outputs: bool
    train_text_encoder: bool
    optimizer: OptimizerName
    weight_decay: Annotated[float, Meta(ge=0, le=1)]
    max_grad_norm: Annotated[float, Meta(gt=0, le=1_000)]
    checkpoint_every: Annotated[int, Meta(ge=0)]
    validation_prompts: Annotated[list[Text], Meta(max_length=16)]
    validation_inference_steps: Annotated[int, Meta(ge=1, le=200)]


class FluxLoraParameters(TrainingParameters, frozen=True, kw_only=True):
    """Every setting of a FLUX LoRA run. Lengths are tokens."""

    lora_rank: Annotated[int, Meta(ge=1, le=256)]
    lora_targets: LoraTargets
    timestep_sampler: TimestepSampler
    discrete_flow_shift: Annotated[float, Meta(ge=1, le=5)]
    guidance_scale: Annotated[float, Meta(ge=0.5, le=2)]
    clip_tokenizer_max_length: Annotated[int, Meta(ge=1, le=77)]
    t5_tokenizer_max_length: Annotated[int, Meta(ge=1, le=512)]


class SdxlParameters(TrainingParameters, frozen=True, kw_only=True):
    """The settings of an SDXL run; a full finetune and a textual inversion have no use for rank and targets."""

    lora_rank: Annotated[int, Meta(ge=1, le=256)]
    lora_targets: LoraTargets


class RunSpec(StrictWire, frozen=True, kw_only=True):
    """One attempt at one job.

    ``model_path`` is a diffusers pipeline folder. ``attempt_path`` is the attempt's own folder: checkpoints, samples
    and the result go there and nowhere else. ``resume_from`` is a checkpoint folder of an earlier attempt. ``device``
    is a torch device; the daemon has already made the one card it means the only one visible.
    """

    job_id: JobId
    attempt: Positive
    training_type: TrainingType
    engine: EngineName
    model_path: Text
    dataset_path: Text
    attempt_path: Text
    resume_from: Text | None
    device: Annotated[str, Meta(pattern=r"^(cpu|cuda)\Z")]
    parameters: dict[str, Any]


class RunLease(StrictWire, frozen=True, kw_only=True):
    """Until when the daemon owns the job; the daemon rewrites the file at each renewal.

    ``deadline`` is in unix seconds. A trainer that finds it more than ``max_isolation`` seconds in the past is an
    orphan: it saves a checkpoint and stops by itself.
    """

    deadline: float
    max_isolation: float


class RunRequest(StrEnum):
    """What a trainer is asked for while it runs: a line each in ``requests.jsonl``, honoured at the next step."""

    CHECKPOINT = "checkpoint"
    SAMPLE = "sample"


class RequestLine(StrictWire, frozen=True, kw_only=True):
    """One line of ``requests.jsonl``, which the daemon appends to."""

    request: RunRequest

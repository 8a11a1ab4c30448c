"""The run's spec: what a trainer is given, in ``spec.json`` of its run folder.

A spec is resolved: presets, overrides and defaults are applied, and a trainer never has to guess.
"""

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta

from training_schemas.base import JobId, StrictWire, Text
from training_schemas.jobs import EngineName, GpuCount, ModelFamily, TrainingType

SPEC_FILE = "spec.json"
PROGRESS_FILE = "progress.jsonl"
LEASE_FILE = "lease"
REQUESTS_FILE = "requests.jsonl"
STDOUT_FILE = "stdout.log"
STDERR_FILE = "stderr.log"

Positive = Annotated[int, Meta(ge=1)]


class TimestepSampler(StrEnum):
    """The distributions that the noise level of a sample is drawn from.

    ``uniform`` is uniform in [0, 1]; the shifted ones are pushed towards noise, by a shift that the job gives or by one
    that grows with the number of image tokens, as in FLUX. ``sigmoid`` is that of a normal variable: mostly middle
    levels.
    """

    SHIFT = "shift"
    UNIFORM = "uniform"
    SIGMOID = "sigmoid"
    RESOLUTION_SHIFT = "resolutionShift"


class WeightDtype(StrEnum):
    """The precision of the frozen base model's weights."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Quantization(StrEnum):
    """The ways to keep the frozen base model's linear weights in memory: as ``weightDtype`` states, or smaller."""

    NONE = "none"
    FP8 = "fp8"
    INT8 = "int8"
    NF4 = "nf4"


class OptimizerName(StrEnum):
    """The optimizers that a run can use."""

    ADAMW = "adamw"
    ADAMW_8BIT = "adamw8bit"
    ADAFACTOR = "adafactor"
    PRODIGY = "prodigy"


class LrScheduler(StrEnum):
    """The schedules of the learning rate over a run, by the names of diffusers."""

    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"


class LoraTargets(StrEnum):
    """The layers of the denoiser that get an adapter."""

    ATTENTION = "attention"
    ATTENTION_AND_FEED_FORWARD = "attentionAndFeedForward"
    ALL_LINEAR = "allLinear"


class TrainingParameters(StrictWire, frozen=True, kw_only=True):
    """The settings that every type of training has. Sizes are pixels, intervals are optimizer steps, 0 for never.

    One optimizer step uses ``batch_size * gradient_accumulation_steps`` images. What is cached is computed once, before
    training, and the model that made it is not in memory while it trains. ``trigger_word`` is put before captions that
    do not contain it, ``caption_prefix`` before all; ``caption_dropout`` is the share of samples that are trained
    without a caption, and captions are shuffled by their parts between commas. Rates of text encoders are only used
    where these are trained.
    """

    resolution: Annotated[int, Meta(ge=64, le=2048, multiple_of=16)]
    aspect_ratio_buckets: bool
    random_crop: bool
    random_flip: bool
    masked_loss: bool
    trigger_word: Annotated[str, Meta(max_length=128)]
    caption_prefix: Annotated[str, Meta(max_length=1024)]
    caption_dropout: Annotated[float, Meta(ge=0, le=1)]
    shuffle_captions: bool
    batch_size: Annotated[int, Meta(ge=1, le=64)]
    gradient_accumulation_steps: Annotated[int, Meta(ge=1, le=256)]
    max_train_steps: Annotated[int, Meta(ge=1, le=1_000_000)]
    learning_rate: Annotated[float, Meta(gt=0, le=1)]
    text_encoder_learning_rate: Annotated[float, Meta(gt=0, le=1)]
    lr_scheduler: LrScheduler
    lr_warmup_steps: Annotated[int, Meta(ge=0)]
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
    ema_decay: Annotated[float, Meta(ge=0, lt=1)]
    checkpoint_every: Annotated[int, Meta(ge=0)]
    keep_checkpoints: Annotated[int, Meta(ge=1, le=1_000)]
    sample_every: Annotated[int, Meta(ge=0)]
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
    """The settings of an SDXL run.

    Rank and targets are those of a LoRA. Textual inversion teaches ``embedding_vectors`` new tokens that stand where
    ``trigger_word`` does in a caption, and begin as ``initial_token`` where one is given. 0 switches the weighting by
    ``min_snr_gamma`` off, and ``noise_offset``.
    """

    lora_rank: Annotated[int, Meta(ge=1, le=256)]
    lora_targets: LoraTargets
    min_snr_gamma: Annotated[float, Meta(ge=0, le=100)]
    noise_offset: Annotated[float, Meta(ge=0, le=1)]
    embedding_vectors: Annotated[int, Meta(ge=1, le=32)]
    initial_token: Annotated[str, Meta(max_length=128)]


PARAMETERS: dict[ModelFamily, type[FluxLoraParameters | SdxlParameters]] = {
    ModelFamily.FLUX: FluxLoraParameters,
    ModelFamily.SDXL: SdxlParameters,
}
"""The settings of each family's runs."""


class AttentionKernel(StrEnum):
    """A kernel of torch's scaled dot-product attention, by the name of its ``SDPBackend``, in lower case."""

    FLASH = "flash_attention"
    CUDNN = "cudnn_attention"
    EFFICIENT = "efficient_attention"
    MATH = "math"


class Execution(StrictWire, frozen=True, kw_only=True, omit_defaults=False):
    """How a GPU computes a step: nothing here changes what is learned, but for rounding.

    ``attention_kernels`` are those that may be used, the fastest first; without any that was tested, cuDNN's is left
    out: its backward pass is wrong on some GPUs. Of the blocks that gradient checkpointing computes again, the first
    ``stored_blocks`` keep their activations instead, and with ``keep_attention`` the others keep what attention gave.
    ``compiled`` blocks are compiled once and for all shapes. With ``data_on_device`` latents and embeddings stay on
    the GPU.
    """

    attention_kernels: Annotated[tuple[AttentionKernel, ...], Meta(min_length=1)] = (
        AttentionKernel.FLASH,
        AttentionKernel.EFFICIENT,
        AttentionKernel.MATH,
    )
    stored_blocks: Annotated[int, Meta(ge=0, le=1_000)] = 0
    keep_attention: bool = False
    compiled: bool = False
    data_on_device: bool = False


class RunSpec(StrictWire, frozen=True, kw_only=True, omit_defaults=False):
    """One attempt at one job.

    ``model_path`` is a diffusers pipeline folder. ``attempt_path`` is the attempt's own folder: checkpoints, samples
    and the result go there and nowhere else. ``cache_path`` is the host's own folder of encoder outputs, shared by its
    runs, each of which leaves at most ``cache_limit_mib`` there; without one, a run keeps them in its own folder.
    ``resume_from`` is a checkpoint folder of an earlier attempt. ``device`` is a torch device; the daemon has already
    made the run's ``gpu_count`` GPUs the only visible ones. ``engine_config`` is the run in the format of an engine
    that is not ours, except its paths.
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
    cache_path: Text | None = None
    cache_limit_mib: Annotated[int, Meta(ge=0)] = 0
    gpu_count: GpuCount = 1
    engine_config: dict[str, Any] = {}
    execution: Execution = Execution()


class RunLease(StrictWire, frozen=True, kw_only=True):
    """Until when the daemon owns the job; the daemon rewrites the file at each renewal.

    ``deadline`` is in unix seconds. A trainer that finds it more than ``max_isolation`` seconds in the past is an
    orphan: it saves a checkpoint and stops by itself.
    """

    deadline: float
    max_isolation: float


class RunRequest(StrEnum):
    """The requests to a running trainer: one line each in ``requests.jsonl``, honoured at the next step."""

    CHECKPOINT = "checkpoint"
    SAMPLE = "sample"


class RequestLine(StrictWire, frozen=True, kw_only=True):
    """One line of ``requests.jsonl``, which the daemon appends to."""

    request: RunRequest

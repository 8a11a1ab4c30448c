"""The workload: what is trained, with which settings, as the models of memory and time see it."""

import msgspec

from training_presets.models import Adapter, Law, Model, inference_law, models, training_law
from training_schemas.jobs import ModelFamily, TrainingType
from training_schemas.spec import (
    FluxLoraParameters,
    LoraTargets,
    OptimizerName,
    Quantization,
    SdxlParameters,
    WeightDtype,
)

# Pixels a side of what a unit stands for: FLUX packs two by two latents into a token.
PIXELS_PER_UNIT = {ModelFamily.FLUX: 16, ModelFamily.SDXL: 8}
PIXELS_PER_LATENT = 8

# What nobody has said yet when a plan is made: how many images there are, each with its caption.
USUAL_IMAGES = 20


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """One training run. Sizes are pixels, and ``batch_size`` images are in memory at once.

    ``trained`` is how many parameters of the denoiser learn, where it is not what ``lora_rank`` and ``lora_targets``
    make: tools differ in what they put adapters beside. ``fused_backward`` frees each gradient as soon as its weight
    has taken its step; ``averaged`` keeps a running mean of the weights that learn. ``gpu_count`` cards share the
    micro-batches of a step.
    """

    training_type: TrainingType
    width: int
    height: int
    batch_size: int
    accumulation: int = 1
    steps: int = 1
    lora_rank: int = 16
    lora_targets: LoraTargets = LoraTargets.ATTENTION
    weight_dtype: WeightDtype = WeightDtype.BFLOAT16
    trained_dtype: WeightDtype | None = None
    quantization: Quantization = Quantization.NONE
    optimizer: OptimizerName = OptimizerName.ADAMW
    gradient_checkpointing: bool = True
    cache_text: bool = True
    cache_latents: bool = True
    train_text_encoder: bool = False
    text_tokens: int | None = None
    images: int = USUAL_IMAGES
    validation_prompts: int = 0
    validation_inference_steps: int = 28
    checkpoints: int = 0
    trained: int | None = None
    fused_backward: bool = False
    averaged: bool = False
    gpu_count: int = 1

    @property
    def family(self) -> ModelFamily:
        """The family of the base model."""
        return self.training_type.family

    @property
    def model(self) -> Model:
        """The base model."""
        return models()[self.family]

    @property
    def is_lora(self) -> bool:
        """Whether an adapter is trained."""
        return self.training_type in (TrainingType.FLUX_LORA, TrainingType.SDXL_LORA)

    @property
    def rank(self) -> int:
        """The adapter's rank; 0 without one."""
        return self.lora_rank if self.is_lora else 0

    @property
    def _targets(self) -> LoraTargets:
        # Two of the sets are the same layers in SDXL.
        return self.lora_targets if self.lora_targets in self.model.adapters else LoraTargets.ALL_LINEAR

    @property
    def adapter(self) -> Adapter:
        """What the adapter is put beside."""
        return self.model.adapters[self._targets]

    @property
    def trained_parameters(self) -> int:
        """How many parameters learn."""
        if self.trained is not None:
            return self.trained
        match self.training_type:
            case TrainingType.SDXL_TEXTUAL_INVERSION:
                # Of both encoders' embeddings the few new ones learn, but gradients and states are of the whole tables.
                return self.model.encoders.token_embeddings
            case TrainingType.SDXL_FINETUNE:
                return self.model.denoiser.parameters + self._trained_encoders
            case _:
                return self.lora_rank * self.adapter.parameters + self._encoder_adapter

    @property
    def _trained_encoders(self) -> int:
        return self.model.encoders.parameters if self.train_text_encoder else 0

    @property
    def _encoder_adapter(self) -> int:
        # Attention of CLIP-L (12 layers of 768) and, in SDXL, of bigG (32 of 1,280): four matrices a layer each.
        if not self.train_text_encoder:
            return 0
        widths = 12 * 768 if self.family is ModelFamily.FLUX else 12 * 768 + 32 * 1280
        return self.lora_rank * widths * 4 * 2

    @property
    def encoders_resident(self) -> bool:
        """Whether the text encoders are in memory while it trains."""
        inverts = self.training_type is TrainingType.SDXL_TEXTUAL_INVERSION
        return not self.cache_text or self.train_text_encoder or inverts

    @property
    def units(self) -> float:
        """Tokens or positions of a sample that goes through the denoiser."""
        side = PIXELS_PER_UNIT[self.family]
        text = self.model.text_tokens if self.text_tokens is None else self.text_tokens
        return self.width * self.height / side**2 + (text if self.family is ModelFamily.FLUX else 0)

    @property
    def latents(self) -> float:
        """Positions of a sample's latents."""
        return self.width * self.height / PIXELS_PER_LATENT**2

    @property
    def law(self) -> Law:
        """What a pass forth and back takes."""
        return training_law(self.training_type, self._targets, checkpointing=self.gradient_checkpointing)

    def inference_law(self, what: str) -> Law:
        """What a pass without gradients takes."""
        return inference_law(self.family, what)


def workload_of(
    training_type: TrainingType,
    parameters: FluxLoraParameters | SdxlParameters,
    *,
    images: int = USUAL_IMAGES,
    gpu_count: int = 1,
) -> Workload:
    """The workload of a run with these settings."""
    every = parameters.checkpoint_every
    return Workload(
        training_type=training_type,
        width=parameters.resolution,
        height=parameters.resolution,
        batch_size=parameters.batch_size,
        accumulation=parameters.gradient_accumulation_steps,
        steps=parameters.max_train_steps,
        lora_rank=parameters.lora_rank,
        lora_targets=parameters.lora_targets,
        weight_dtype=parameters.weight_dtype,
        quantization=parameters.quantization,
        optimizer=parameters.optimizer,
        gradient_checkpointing=parameters.gradient_checkpointing,
        cache_text=parameters.cache_text_encoder_outputs,
        cache_latents=parameters.cache_vae_outputs,
        train_text_encoder=parameters.train_text_encoder,
        averaged=parameters.ema_decay > 0,
        text_tokens=parameters.t5_tokenizer_max_length if isinstance(parameters, FluxLoraParameters) else None,
        images=images,
        validation_prompts=len(parameters.validation_prompts),
        validation_inference_steps=parameters.validation_inference_steps,
        checkpoints=parameters.max_train_steps // every if every else 0,
        gpu_count=gpu_count,
    )

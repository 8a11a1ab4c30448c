"""The workload: what is trained, with which settings, as the models of memory and time see it."""

import msgspec

from training_presets.models import Adapter, Law, Model, inference_law, models, partly_stored, peft_law, training_law
from training_schemas.jobs import ModelFamily, TrainingType
from training_schemas.spec import (
    Execution,
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

# What encoders make of a sample, as it is kept: float32 latents, and of a caption's tokens two bytes a number: 4,096 of
# T5's, 2,048 of SDXL's.
LATENT_BYTES = 4
CAPTION_BYTES = {ModelFamily.FLUX: 4096 * 2, ModelFamily.SDXL: 2048 * 2}

# What is not known yet when a plan is made: how many images there are, each with its caption.
USUAL_IMAGES = 20


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """One training run. Sizes are pixels, and ``batch_size`` images are in memory at once.

    ``trained`` is how many parameters of the denoiser learn, where it is not what ``lora_rank`` and ``lora_targets``
    make: tools differ in what they put adapters beside. ``fused_backward`` frees each gradient as soon as its weight
    has taken its step; ``averaged`` keeps a running mean of the weights that learn. ``gpu_count`` GPUs share the
    micro-batches of a step.

    ``stored_blocks``, ``keep_attention``, ``compiled`` and ``data_on_device`` are those of `Execution`. ``peft_layers``
    are peft's own, as in other tools; ``float32_kept`` are activations after a norm that those left in float32.
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
    stored_blocks: int = 0
    keep_attention: bool = False
    compiled: bool = False
    data_on_device: bool = False
    peft_layers: bool = False
    float32_kept: bool = False

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
    def cached_bytes(self) -> float:
        """What the cache holds of a sample."""
        latents = self.latents * self.model.latent_channels * LATENT_BYTES if self.cache_latents else 0.0
        tokens = self.model.text_tokens if self.text_tokens is None else self.text_tokens
        return latents + (tokens * CAPTION_BYTES[self.family] if self.cache_text else 0.0)

    @property
    def kept_blocks(self) -> int:
        """How many blocks keep their activations, of those that can be checkpointed one by one."""
        blocks = self.model.denoiser.blocks
        return min(self.stored_blocks, blocks) if self.gradient_checkpointing else blocks

    @property
    def recomputed_share(self) -> float:
        """The share of the blocks whose activations are made again in the backward pass."""
        if not self.gradient_checkpointing:
            return 0.0
        blocks = self.model.denoiser.blocks
        return 1 - self.kept_blocks / blocks if blocks else 1.0

    @property
    def attention_backward(self) -> float:
        """FLOP of attention's backward pass, by the square of a sample's units."""
        return self._whole_law(checkpointing=False).attention - self.inference_law("sampling").attention

    @property
    def law(self) -> Law:
        """What a pass forth and back takes."""
        stored = self.stored_law
        if not self.recomputed_share:
            return stored
        law, blocks = self._whole_law(checkpointing=True), self.model.denoiser.blocks
        if not blocks:
            return law
        law = partly_stored(law, stored, self.kept_blocks, blocks)
        return self._with_attention_kept(law, stored) if self.keep_attention else law

    @property
    def stored_law(self) -> Law:
        """What a pass takes that computes nothing again."""
        return self._whole_law(checkpointing=False)

    def _with_attention_kept(self, law: Law, stored: Law) -> Law:
        """Attention is computed once, and what it gave is kept: in all blocks but the one that is made again then."""
        fixed, by_unit, by_both, by_rank = law.activations
        kept = (self.model.denoiser.blocks - 1 - self.kept_blocks) * self.model.denoiser.attention_bytes
        activations = fixed, by_unit + kept, by_both, by_rank
        return msgspec.structs.replace(law, activations=activations, attention=stored.attention)

    def _whole_law(self, *, checkpointing: bool) -> Law:
        if self.peft_layers and self.training_type is TrainingType.FLUX_LORA:
            return peft_law(self._targets, float32=self.float32_kept, checkpointing=checkpointing)
        return training_law(self.training_type, self._targets, checkpointing=checkpointing)

    def inference_law(self, what: str) -> Law:
        """What a pass without gradients takes."""
        return inference_law(self.family, what)


def workload_of(
    training_type: TrainingType,
    parameters: FluxLoraParameters | SdxlParameters,
    *,
    images: int = USUAL_IMAGES,
    gpu_count: int = 1,
    execution: Execution | None = None,
) -> Workload:
    """The workload of a run with these settings, computed by the means of ``execution``."""
    execution = execution or Execution()
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
        stored_blocks=execution.stored_blocks,
        keep_attention=execution.keep_attention,
        compiled=execution.compiled,
        data_on_device=execution.data_on_device,
    )

"""A LoRA of FLUX: beside its transformer, and if the job asks for it, beside its CLIP text encoder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from training_schemas.spec import Execution, FluxLoraParameters
from training_worker.engines.common.export.files import ADAPTER_FILE
from training_worker.engines.common.export.kohya import flux_to_kohya
from training_worker.engines.diffusers.diffusion.batches import Batch, Noising
from training_worker.engines.diffusers.diffusion.losses import flow_losses
from training_worker.engines.diffusers.diffusion.noise_levels import draw_sigma
from training_worker.engines.diffusers.diffusion.text_embeddings import Texts
from training_worker.engines.diffusers.export.artifacts import export_adapter
from training_worker.engines.diffusers.export.metadata import Implementation, Result
from training_worker.engines.diffusers.models.families import FLUX
from training_worker.engines.diffusers.models.lean_flux import make_lean
from training_worker.engines.diffusers.models.lora import Adapters, clip_layers, flux_layers
from training_worker.engines.diffusers.optim.optimizers import Group
from training_worker.engines.diffusers.pipelines.base import TrainingPipeline, draw_normal

LATENTS_PER_TOKEN = 4


class FluxLora(TrainingPipeline[FluxLoraParameters]):
    """Teaches an adapter by rectified flow."""

    family = FLUX
    weights_file = ADAPTER_FILE

    def __init__(self, loader: Any, parameters: FluxLoraParameters, execution: Execution | None = None) -> None:
        super().__init__(loader, parameters, execution)
        self._adapters = Adapters(parameters.lora_rank, parameters.seed)

    @property
    def noising(self) -> Noising:
        """By a share of noise for each sample."""

        def draw_level(generator: torch.Generator, shape: torch.Size) -> torch.Tensor:
            return draw_sigma(generator, shape[-2] * shape[-1] // LATENTS_PER_TOKEN, self.parameters)

        return Noising(draw_level=draw_level, draw_noise=draw_normal, fixed_level=torch.tensor)

    @property
    def text_lengths(self) -> Sequence[int]:
        """Of CLIP and of T5."""
        return self.parameters.clip_tokenizer_max_length, self.parameters.t5_tokenizer_max_length

    def load_encoders(self) -> None:
        """Load both; CLIP may learn."""
        super().load_encoders()
        self.encoders.tokenizer_max_length = self.parameters.clip_tokenizer_max_length
        if self.parameters.train_text_encoder:
            rate = self.parameters.text_encoder_learning_rate
            self._adapters.add("text_encoder", self.encoders.text_encoder, clip_layers(), rate)

    def prepare_denoiser(self) -> None:
        """Put the adapter into the transformer."""
        settings = self.parameters
        layers = flux_layers(settings.lora_targets)
        self._adapters.add(FLUX.denoiser, self.denoiser, layers, settings.learning_rate)

    def make_denoiser_lean(self) -> None:
        """Replace what computes, not what is kept."""
        make_lean(self.denoiser, self.loader.dtype, self.execution)

    def embed(self, texts: Sequence[str]) -> Texts:
        """Embed texts by T5, and by CLIP as a whole, cut to the lengths that the job allows."""
        length = self.parameters.t5_tokenizer_max_length
        tokens, pooled, _ = self.encoders.encode_prompt(list(texts), max_sequence_length=length)
        return Texts(tokens=tokens, pooled=pooled)

    def groups(self) -> list[Group]:
        """The transformer's adapter, then the encoder's."""
        return self._adapters.groups()

    def losses(self, batch: Batch, texts: Texts) -> torch.Tensor:
        """Compute the rectified flow's loss of each sample (batch)."""
        return flow_losses(self.denoiser, batch, texts, self.parameters.guidance_scale)

    def weights(self) -> dict[str, torch.Tensor]:
        """The adapters' weights, by diffusers' keys."""
        return self._adapters.weights()

    def restore(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set the adapters' weights."""
        self._adapters.restore(weights)

    def export(self, folder: Path, result: Result) -> dict[Path, str]:
        """Write the adapter in the keys of diffusers, and in those of kohya."""
        return export_adapter(self.weights(), flux_to_kohya, Implementation.FLUX, folder, result)

    def drawing(self, vae: Any) -> Any:
        """FLUX's own pipeline."""
        return FluxPipeline(
            scheduler=self.loader.scheduler(FlowMatchEulerDiscreteScheduler),
            vae=vae,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=self.denoiser,
        )

    def unpacked(self, drawn: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Undo the packing of 2 x 2 latents."""
        latents: torch.Tensor = FluxPipeline._unpack_latents(drawn, height, width, 8)  # noqa: SLF001 # no public twin
        return latents

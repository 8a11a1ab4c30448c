"""A LoRA of SDXL: beside its UNet, and if the job asks for it, beside both of its text encoders."""

from collections.abc import Mapping
from pathlib import Path

import torch

from training_schemas.spec import SdxlParameters
from training_worker.engines.diffusers.adapters import (
    ADAPTER_FILE,
    adapter_weights,
    add_adapter,
    clip_layers,
    restore_adapters,
    sdxl_layers,
)
from training_worker.engines.diffusers.export import export_adapter
from training_worker.engines.diffusers.families import SDXL
from training_worker.engines.diffusers.kohya import sdxl_to_kohya
from training_worker.engines.diffusers.model_spec import Implementation, Result
from training_worker.engines.diffusers.models import ModelLoader
from training_worker.engines.diffusers.optimizers import Group
from training_worker.engines.diffusers.pipelines.sdxl import SdxlPipeline

ENCODERS = ("text_encoder", "text_encoder_2")


class SdxlLora(SdxlPipeline):
    """Teaches an adapter."""

    weights_file = ADAPTER_FILE

    def __init__(self, loader: ModelLoader, parameters: SdxlParameters) -> None:
        super().__init__(loader, parameters)
        self._groups: list[Group] = []

    def load_encoders(self) -> None:
        """Load both; both may learn."""
        super().load_encoders()
        if self.parameters.train_text_encoder:
            settings = self.parameters
            added = [
                weight
                for name in ENCODERS
                for weight in add_adapter(
                    getattr(self.encoders, name), clip_layers(), settings.lora_rank, settings.seed
                )
            ]
            self._groups.append({"params": added, "lr": settings.text_encoder_learning_rate})

    def prepare_denoiser(self) -> None:
        """Put the adapter into the UNet."""
        settings = self.parameters
        added = add_adapter(self.denoiser, sdxl_layers(settings.lora_targets), settings.lora_rank, settings.seed)
        self._groups.insert(0, {"params": added, "lr": settings.learning_rate})

    def groups(self) -> list[Group]:
        """The UNet's adapter, then those of the encoders."""
        return self._groups

    def weights(self) -> dict[str, torch.Tensor]:
        """The adapters' weights, by diffusers' keys."""
        return adapter_weights(self._parts)

    def restore(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set the adapters' weights."""
        restore_adapters(self._parts, weights)

    def export(self, folder: Path, result: Result) -> dict[Path, str]:
        """Write the adapter in the keys of diffusers, and in those of kohya."""
        return export_adapter(self.weights(), sdxl_to_kohya, Implementation.SDXL, folder, result)

    @property
    def _parts(self) -> dict[str, torch.nn.Module]:
        learning = ENCODERS if self.parameters.train_text_encoder else ()
        return {SDXL.denoiser: self.denoiser, **{name: getattr(self.encoders, name) for name in learning}}

"""A LoRA of SDXL: beside its UNet, and if the job asks for it, beside both of its text encoders."""

from collections.abc import Mapping
from pathlib import Path

import torch

from training_schemas.spec import Execution, SdxlParameters
from training_worker.engines.common.export.files import ADAPTER_FILE
from training_worker.engines.common.export.kohya import sdxl_to_kohya
from training_worker.engines.diffusers.export.artifacts import export_adapter
from training_worker.engines.diffusers.export.metadata import Implementation, Result
from training_worker.engines.diffusers.models.families import SDXL
from training_worker.engines.diffusers.models.lean_sdxl import make_lean
from training_worker.engines.diffusers.models.loader import ModelLoader
from training_worker.engines.diffusers.models.lora import Adapters, clip_layers, sdxl_layers
from training_worker.engines.diffusers.optim.optimizers import Group
from training_worker.engines.diffusers.pipelines.sdxl import ENCODERS, SdxlPipeline


class SdxlLora(SdxlPipeline):
    """Teaches an adapter."""

    weights_file = ADAPTER_FILE

    def __init__(self, loader: ModelLoader, parameters: SdxlParameters, execution: Execution | None = None) -> None:
        super().__init__(loader, parameters, execution)
        self._adapters = Adapters(parameters.lora_rank, parameters.seed)

    def load_encoders(self) -> None:
        """Load both; both may learn."""
        super().load_encoders()
        if self.parameters.train_text_encoder:
            rate = self.parameters.text_encoder_learning_rate
            for name in ENCODERS:
                self._adapters.add(name, getattr(self.encoders, name), clip_layers(), rate)

    def prepare_denoiser(self) -> None:
        """Put the adapter into the UNet."""
        settings = self.parameters
        layers = sdxl_layers(settings.lora_targets)
        self._adapters.add(SDXL.denoiser, self.denoiser, layers, settings.learning_rate)

    def make_denoiser_lean(self) -> None:
        """Replace what computes beside the adapter, not what is kept."""
        make_lean(self.denoiser, self.loader.dtype)

    def groups(self) -> list[Group]:
        """The UNet's adapter, then those of the encoders."""
        return self._adapters.groups()

    def weights(self) -> dict[str, torch.Tensor]:
        """The adapters' weights, by diffusers' keys."""
        return self._adapters.weights()

    def restore(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set the adapters' weights."""
        self._adapters.restore(weights)

    def export(self, folder: Path, result: Result) -> dict[Path, str]:
        """Write the adapter in the keys of diffusers, and in those of kohya."""
        return export_adapter(self.weights(), sdxl_to_kohya, Implementation.SDXL, folder, result)

"""A full finetune of SDXL: all weights of its UNet learn, and if the job asks for it, those of its text encoders."""

from collections.abc import Mapping
from pathlib import Path

import torch

from training_worker.engines.diffusers.export.artifacts import export_pipeline
from training_worker.engines.diffusers.export.metadata import Result
from training_worker.engines.diffusers.models.families import SDXL
from training_worker.engines.diffusers.optim.optimizers import Group
from training_worker.engines.diffusers.pipelines.sdxl import ENCODERS, SdxlPipeline


class SdxlFinetune(SdxlPipeline):
    """Teaches the model itself, in the type that its weights are kept in."""

    weights_file = "weights.safetensors"

    def load_encoders(self) -> None:
        """Load both; both may learn."""
        super().load_encoders()
        if self.parameters.train_text_encoder:
            for name in ENCODERS:
                encoder = getattr(self.encoders, name).requires_grad_(requires_grad=True)
                if self.parameters.gradient_checkpointing:
                    # It only does so in training; there is no dropout in it that would begin then.
                    encoder.train().gradient_checkpointing_enable()

    def prepare_denoiser(self) -> None:
        """All of the UNet learns."""
        self.denoiser.requires_grad_(requires_grad=True)

    def groups(self) -> list[Group]:
        """The UNet, then the encoders."""
        settings = self.parameters
        rates = {SDXL.denoiser: settings.learning_rate}
        return [
            {
                "params": [weight for weight in module.parameters() if weight.requires_grad],
                "lr": rates.get(name, settings.text_encoder_learning_rate),
            }
            for name, module in self._parts.items()
        ]

    def weights(self) -> dict[str, torch.Tensor]:
        """All weights that learn, by the part and its own name."""
        return {
            f"{part}.{name}": weight.detach()
            for part, module in self._parts.items()
            for name, weight in module.named_parameters()
        }

    def restore(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set all weights that learn."""
        with torch.no_grad():
            for part, module in self._parts.items():
                for name, weight in module.named_parameters():
                    weight.copy_(weights[f"{part}.{name}"])

    def export(self, folder: Path, _: Result) -> dict[Path, str]:
        """Write a whole pipeline's folder, of which only what learned is new."""
        return export_pipeline(self._parts, self.loader.folder, folder)

    @property
    def _parts(self) -> dict[str, torch.nn.Module]:
        learning = ENCODERS if self.parameters.train_text_encoder else ()
        return {SDXL.denoiser: self.denoiser, **{name: getattr(self.encoders, name) for name in learning}}

"""What the types of training have in common, and what each must define."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from training_schemas.spec import Execution, TrainingParameters
from training_worker.engines.diffusers.diffusion.batches import Batch, Noising
from training_worker.engines.diffusers.diffusion.text_embeddings import Texts
from training_worker.engines.diffusers.export.metadata import Result
from training_worker.engines.diffusers.models.families import Family
from training_worker.engines.diffusers.models.loader import ModelLoader
from training_worker.engines.diffusers.optim.optimizers import Group

P = TypeVar("P", bound=TrainingParameters)


class TrainingPipeline(ABC, Generic[P]):
    """One type of training: which model, what of it learns and from what, and what comes out.

    Its text encoders and its denoiser are there from when they are loaded until they are dropped.
    """

    family: ClassVar[Family]
    weights_file: ClassVar[str]
    """The name of the file that `weights` are kept in, in a checkpoint."""
    live_texts: ClassVar[bool] = False
    """Whether the encoders are needed at each step, whatever the job's settings are."""

    def __init__(self, loader: ModelLoader, parameters: P, execution: Execution | None = None) -> None:
        self.loader = loader
        self.parameters = parameters
        self.execution = execution or Execution()
        self.encoders: Any = None
        self.denoiser: Any = None

    @property
    @abstractmethod
    def noising(self) -> Noising:
        """How samples are noised."""

    @property
    @abstractmethod
    def text_lengths(self) -> Sequence[int]:
        """How many tokens the text encoders see at most, each."""

    @property
    def keeps_encoders(self) -> bool:
        """Whether the text encoders stay in memory while it trains."""
        settings = self.parameters
        return self.live_texts or settings.train_text_encoder or not settings.cache_text_encoder_outputs

    def load_encoders(self) -> None:
        """Load the text encoders, and what of them learns."""
        self.encoders = self.loader.text_encoders()

    def drop_encoders(self) -> None:
        """Forget the text encoders."""
        self.encoders = None

    def load_denoiser(self) -> None:
        """Load the denoiser, and what of it learns."""
        self.denoiser = self.loader.denoiser(self.parameters.quantization)
        self.prepare_denoiser()
        if self.parameters.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self.make_denoiser_lean()

    def prepare_denoiser(self) -> None:
        """Make of the frozen denoiser what learns."""

    def make_denoiser_lean(self) -> None:
        """Let it compute the same in fewer operations, where there is a way."""

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> Texts:
        """Embed texts by the loaded encoders; with gradients, where they learn."""

    @abstractmethod
    def groups(self) -> list[Group]:
        """The weights that learn, each group with its rate."""

    @abstractmethod
    def losses(self, batch: Batch, texts: Texts) -> torch.Tensor:
        """Compute the loss of each sample (batch), in float32."""

    @abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """What has been learned, by the names that it has in `weights_file`."""

    @abstractmethod
    def restore(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set what has been learned to `weights` of a run with the same settings."""

    @abstractmethod
    def export(self, folder: Path, result: Result) -> dict[Path, str]:
        """Write the result below a folder, each file with its kind."""

    @abstractmethod
    def drawing(self, vae: Any) -> Any:
        """The pipeline of diffusers that draws images with the denoiser as it is."""

    @abstractmethod
    def unpacked(self, drawn: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Turn latents as the drawing pipeline gives them into (1, channels, height / 8, width / 8)."""

    def prompt_arguments(self, prompt: str, embed: Callable[[str], Texts]) -> dict[str, torch.Tensor]:
        """What the drawing pipeline is called with for a prompt."""
        texts = embed(prompt)
        return {"prompt_embeds": texts.tokens, "pooled_prompt_embeds": texts.pooled}


def draw_normal(generator: torch.Generator, shape: torch.Size) -> torch.Tensor:
    """Noise as it is."""
    return torch.randn(shape, generator=generator)

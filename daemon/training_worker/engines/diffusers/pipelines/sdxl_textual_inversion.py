"""A textual inversion of SDXL: new tokens for both of its text encoders, and nothing else (arXiv:2208.01618)."""

from collections.abc import Mapping
from pathlib import Path

import torch

from training_schemas.progress import FailureReason
from training_schemas.spec import Execution, SdxlParameters
from training_worker.engines.common.export.files import EMBEDDINGS_FILE
from training_worker.engines.common.protocol.failures import TrainingFailure
from training_worker.engines.diffusers.export.artifacts import export_embeddings
from training_worker.engines.diffusers.export.metadata import Result
from training_worker.engines.diffusers.models.loader import ModelLoader
from training_worker.engines.diffusers.models.token_embeddings import add_tokens, new_tokens
from training_worker.engines.diffusers.optim.optimizers import Group
from training_worker.engines.diffusers.pipelines.sdxl import SdxlPipeline

# The two encoders by the names that files of SDXL embeddings give them.
NAMES = {"clip_l": ("tokenizer", "text_encoder"), "clip_g": ("tokenizer_2", "text_encoder_2")}


class SdxlTextualInversion(SdxlPipeline):
    """Teaches the embeddings of new tokens."""

    weights_file = EMBEDDINGS_FILE
    live_texts = True

    def __init__(self, loader: ModelLoader, parameters: SdxlParameters, execution: Execution | None = None) -> None:
        super().__init__(loader, parameters, execution)
        self._vectors: dict[str, torch.nn.Parameter] = {}

    def load_encoders(self) -> None:
        """Load both, and give each the new tokens. Raises `TrainingFailure` if the initial token is not one token."""
        super().load_encoders()
        settings = self.parameters
        tokens = new_tokens(settings.trigger_word, settings.embedding_vectors)
        for name, (tokenizer, encoder) in NAMES.items():
            try:
                self._vectors[name] = add_tokens(
                    getattr(self.encoders, tokenizer),
                    getattr(self.encoders, encoder),
                    tokens,
                    settings.initial_token,
                    settings.seed,
                )
            except ValueError as error:
                raise TrainingFailure(FailureReason.CONFIG_INVALID, f"cannot add tokens: {error}") from error

    def groups(self) -> list[Group]:
        """The new embeddings of both encoders."""
        return [{"params": list(self._vectors.values()), "lr": self.parameters.learning_rate}]

    def weights(self) -> dict[str, torch.Tensor]:
        """The new embeddings, each (vectors, width)."""
        return {name: vectors.detach() for name, vectors in self._vectors.items()}

    def restore(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set the new embeddings."""
        with torch.no_grad():
            for name, vectors in self._vectors.items():
                vectors.copy_(weights[name])

    def export(self, folder: Path, result: Result) -> dict[Path, str]:
        """Write the file that other programs take embeddings of SDXL from."""
        return export_embeddings(self.weights(), folder, result)

"""The file of a textual inversion: what the new tokens mean to SDXL's two text encoders."""

from collections.abc import Mapping
from pathlib import Path

import torch

from training_worker.engines.common.export.metadata import write_with_metadata


def embeddings_file(clip_l: torch.Tensor, clip_g: torch.Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the embeddings of CLIP-L, (vectors, 768), and of CLIP-G, (vectors, 1280), by the names that all read."""
    both = {"clip_l": clip_l, "clip_g": clip_g}
    tensors = {name: embeddings.detach().to("cpu", torch.float32).contiguous() for name, embeddings in both.items()}
    write_with_metadata(tensors, path, metadata)

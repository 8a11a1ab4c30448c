"""The parts of a pipeline, loaded one after another so that not all of them are in memory at once.

Only local files and only safetensors are read.
"""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError

from training_schemas.progress import FailureReason
from training_schemas.spec import Quantization, WeightDtype
from training_worker.engines.common.protocol.failures import TrainingFailure
from training_worker.engines.diffusers.models.families import Family
from training_worker.engines.diffusers.models.layerwise_loading import load_denoiser

LOCAL = {"local_files_only": True}
LOCAL_WEIGHTS = {**LOCAL, "use_safetensors": True}


class ModelLoader:
    """Loads parts of one pipeline folder in a weight type, to a device, frozen and ready for inference."""

    def __init__(self, folder: Path, family: Family, dtype: WeightDtype, device: str) -> None:
        self.folder = folder
        self.family = family
        self.dtype: torch.dtype = getattr(torch, dtype.value)
        self.device = torch.device(device)

    def text_encoders(self) -> Any:
        """Load both text encoders and their tokenizers, as a pipeline that can do no more than encode prompts."""
        nothing = {self.family.denoiser: None, "vae": None}
        with self._loading("text encoders"):
            pipeline = self.family.pipeline.from_pretrained(
                self.folder, torch_dtype=self.dtype, **nothing, **LOCAL_WEIGHTS
            )
        for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
            encoder.requires_grad_(requires_grad=False).eval()
        return pipeline.to(self.device)

    @property
    def vae_dtype(self) -> torch.dtype:
        """The type of the autoencoder: float32 where the weights are float16, which its activations overflow."""
        return torch.float32 if self.dtype == torch.float16 else self.dtype

    def vae(self) -> AutoencoderKL:
        """Load the autoencoder."""
        with self._loading("vae"):
            vae, info = AutoencoderKL.from_pretrained(
                self.folder, subfolder="vae", torch_dtype=self.vae_dtype, output_loading_info=True, **LOCAL_WEIGHTS
            )
            _refuse_missing(info)
        return vae.to(self.device).requires_grad_(requires_grad=False).eval()

    def denoiser(self, quantization: Quantization = Quantization.NONE) -> Any:
        """Load the part that predicts, its blocks' weights in the type of `quantization`."""
        part = self.family.denoiser
        with self._loading(part):
            return load_denoiser(self.family.denoiser_class, self.folder / part, self.dtype, self.device, quantization)

    def scheduler(self, kind: Any) -> Any:
        """Load a scheduler, of a kind that reads the model's configuration."""
        with self._loading("scheduler"):
            return kind.from_pretrained(self.folder, subfolder="scheduler", **LOCAL)

    @contextmanager
    def _loading(self, part: str) -> Iterator[None]:
        try:
            with warnings.catch_warnings():
                # diffusers 0.42 renames torch_dtype; the versions before pass over the new name in silence.
                warnings.simplefilter("ignore", FutureWarning)
                yield
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            message = f"cannot load {part} of model {self.folder}: {error}"
            raise TrainingFailure(FailureReason.MODEL_INVALID, message) from error


def release_memory() -> None:
    """Give the memory of parts that nobody holds any longer back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _refuse_missing(info: dict[str, list[str]]) -> None:
    """Refuse weights that diffusers would have filled with random numbers and a warning."""
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{len(missing)} weights are missing, the first is {missing[0]}")

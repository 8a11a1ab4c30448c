"""The parts of a FLUX pipeline, loaded one after another so that not all of them are in memory at once.

Only local files and only safetensors are read.
"""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors import SafetensorError

from training_schemas.progress import FailureReason
from training_schemas.spec import Quantization, WeightDtype
from training_worker.engines.diffusers.failures import TrainingFailure
from training_worker.engines.diffusers.quantisation import mark, quantise

LOCAL = {"local_files_only": True}
LOCAL_WEIGHTS = {**LOCAL, "use_safetensors": True}


class ModelLoader:
    """Loads parts of one pipeline folder in a weight type, to a device, frozen and ready for inference."""

    def __init__(self, folder: Path, dtype: WeightDtype, device: str) -> None:
        self._folder = folder
        self.dtype: torch.dtype = getattr(torch, dtype.value)
        self.device = torch.device(device)

    def text_encoders(self) -> FluxPipeline:
        """Load both text encoders and their tokenizers, as a pipeline that can do no more than encode prompts."""
        with self._loading("text encoders"):
            pipeline = FluxPipeline.from_pretrained(
                self._folder, transformer=None, vae=None, torch_dtype=self.dtype, **LOCAL_WEIGHTS
            )
        return pipeline.to(self.device)

    def vae(self) -> AutoencoderKL:
        """Load the autoencoder, in float32 where the weights are float16, which its activations overflow."""
        dtype = torch.float32 if self.dtype == torch.float16 else self.dtype
        with self._loading("vae"):
            vae, info = AutoencoderKL.from_pretrained(
                self._folder, subfolder="vae", torch_dtype=dtype, output_loading_info=True, **LOCAL_WEIGHTS
            )
            _refuse_missing(info)
        return vae.to(self.device).requires_grad_(requires_grad=False).eval()

    def transformer(self, quantization: Quantization = Quantization.NONE) -> FluxTransformer2DModel:
        """Load the transformer that predicts the flow, its blocks' weights in as many bits as `quantization` says."""
        with self._loading("transformer"):
            transformer, info = FluxTransformer2DModel.from_pretrained(
                self._folder, subfolder="transformer", torch_dtype=self.dtype, output_loading_info=True, **LOCAL_WEIGHTS
            )
            _refuse_missing(info)
        if quantization is not Quantization.NONE:
            quantise(transformer, quantization, self.device)
        transformer = transformer.to(self.device).requires_grad_(requires_grad=False).eval()
        mark(transformer, quantization)
        return transformer

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """Load the scheduler that samples are drawn with."""
        with self._loading("scheduler"):
            return FlowMatchEulerDiscreteScheduler.from_pretrained(self._folder, subfolder="scheduler", **LOCAL)

    @contextmanager
    def _loading(self, part: str) -> Iterator[None]:
        try:
            with warnings.catch_warnings():
                # diffusers 0.42 renames torch_dtype; the versions before pass over the new name in silence.
                warnings.simplefilter("ignore", FutureWarning)
                yield
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            message = f"cannot load {part} of model {self._folder}: {error}"
            raise TrainingFailure(FailureReason.MODEL_INVALID, message) from error


def release_memory() -> None:
    """Give the memory of parts that nobody holds any longer back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_vram_mib() -> int | None:
    """The most that this program has held of its card, in MiB, but for the driver's own part; None without a card."""
    return torch.cuda.max_memory_reserved() // 2**20 if torch.cuda.is_available() else None


def _refuse_missing(info: dict[str, list[str]]) -> None:
    """Refuse weights that diffusers would have filled with random numbers and a warning."""
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{len(missing)} weights are missing, the first is {missing[0]}")

"""The weights of a denoiser, read from its folder one layer after the other.

`from_pretrained` of diffusers reads all of them before any can be quantized. Here a layer is quantized as soon as it is
read, so that the full weights of one layer at a time are beside what stays: loading needs no more than training does.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from training_schemas.spec import Quantization
from training_worker.engines.diffusers.models.quantization import is_quantized, mark, quantized

HOST = torch.device("cpu")

Denoiser = TypeVar("Denoiser", bound=ModelMixin)


class Index(msgspec.Struct, frozen=True):
    """The index of weights in several files: the file's name for each tensor."""

    weight_map: dict[str, str]


class Source(Protocol):
    """What gives a tensor when it is its turn."""

    def read(self) -> torch.Tensor:
        """The tensor, on any device."""
        ...


class FileSource(msgspec.Struct, frozen=True):
    """Where a tensor is: an open file of safetensors, and its name in there."""

    file: Any
    name: str

    def shape(self) -> torch.Size:
        """Look its shape up, in the file's header."""
        return torch.Size(self.file.get_slice(self.name).get_shape())

    def read(self) -> torch.Tensor:
        """Map it into memory, on the CPU."""
        tensor: torch.Tensor = self.file.get_tensor(self.name)
        return tensor


def load_denoiser(
    kind: type[Denoiser], folder: Path, dtype: torch.dtype, device: torch.device, quantization: Quantization
) -> Denoiser:
    """Load a frozen model, its weights in a type but for those that are quantized, from its part of a pipeline folder.

    The folder holds ``config.json``, and the weights as safetensors in one file or in several and an index.

    Raises:
        OSError: A file is missing.
        ValueError: A file is damaged, or holds other tensors than the model has; it names the first.
    """
    model = empty_model(kind, kind.load_config(folder, local_files_only=True), dtype)
    with ExitStack() as stack:
        return fill_model(model, _find_sources(model, folder, stack), dtype, device, quantization)


def empty_model(kind: type[Denoiser], config: Mapping[str, Any], dtype: torch.dtype) -> Denoiser:
    """Build a model from its configuration, all its weights without memory."""
    with _default_dtype(dtype), init_empty_weights(include_buffers=False):
        model: Denoiser = kind.from_config(config)
    return model


def fill_model(
    model: Denoiser,
    sources: Mapping[str, Source],
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization,
) -> Denoiser:
    """Give an empty model its tensors by their names, layer by layer, and freeze it; what is quantized is replaced."""
    _fill(model, sources, dtype, device, quantization)
    # What has no source was computed on the CPU.
    model = model.to(device).requires_grad_(requires_grad=False).eval()
    mark(model, quantization)
    return model


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _find_sources(model: ModelMixin, folder: Path, stack: ExitStack) -> dict[str, FileSource]:
    """Open all files and find each of the model's tensors in them; nothing but headers is read."""
    found: dict[str, FileSource] = {}
    for path in _weight_files(folder):
        file = stack.enter_context(_open(path))
        found |= {name: FileSource(file, name) for name in file.keys()}  # noqa: SIM118 # it cannot be iterated over
    # Old files have other names for the same layers.
    model._fix_state_dict_keys_on_load(found)  # noqa: SLF001 # no public twin
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    _refuse("missing", expected.keys() - found.keys())
    _refuse("unexpected", found.keys() - expected.keys())
    _refuse("of another shape", {name for name, shape in expected.items() if found[name].shape() != shape})
    return found


def _weight_files(folder: Path) -> list[Path]:
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return [folder / SAFETENSORS_WEIGHTS_NAME]
    try:
        names = msgspec.json.decode(index.read_bytes(), type=Index).weight_map.values()
    except msgspec.DecodeError as error:
        raise ValueError(f"{index}: {error}") from error
    return [folder / name for name in sorted(set(names))]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error


def _refuse(what: str, names: set[str]) -> None:
    if names:
        raise ValueError(f"{len(names)} weights are {what}, the first is {min(names)}")


def _fill(
    model: ModelMixin,
    sources: Mapping[str, Source],
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization,
) -> None:
    """Put the tensors into the model, and layers in fewer bits in the place of those that are to be quantized."""
    for name, keys in groupby(model.state_dict(), key=lambda key: key.rpartition(".")[0]):
        layer = model.get_submodule(name)
        replaced = quantization is not Quantization.NONE and is_quantized(name, layer)
        for key in keys:
            tensor = _cast(sources[key].read(), key, model, dtype).to(HOST if replaced else device)
            _set(layer, key.rpartition(".")[2], tensor)
        if replaced:
            model.set_submodule(name, quantized(layer, quantization, device))


def _cast(tensor: torch.Tensor, key: str, model: ModelMixin, dtype: torch.dtype) -> torch.Tensor:
    """Cast as diffusers does: numbers that are not whole, and those of a few layers to float32 whatever the rest is."""
    if not tensor.is_floating_point():
        return tensor
    in_full = not set(model._keep_in_fp32_modules or ()).isdisjoint(key.split("."))  # noqa: SLF001 # no public twin
    return tensor.to(torch.float32 if in_full else dtype)


def _set(layer: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    is_parameter = isinstance(getattr(layer, name), torch.nn.Parameter)
    setattr(layer, name, torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)

"""A denoiser's weights: they are those that diffusers reads, all of them, and reading them takes little memory."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import bitsandbytes
import msgspec
import pytest
import torch
from diffusers import FluxTransformer2DModel, ModelMixin, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tests.engines.loading_memory import LoadingMemory

from training_schemas.spec import Quantization
from training_worker.engines.diffusers.models.layerwise_loading import load_denoiser

pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("ignore:.*torch_dtype:FutureWarning")]

CPU = torch.device("cpu")
FILE = "diffusion_pytorch_model.safetensors"
INDEX = f"{FILE}.index.json"

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def flux(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model's transformer, to be broken."""
    return shutil.copytree(tiny_model / "transformer", tmp_path / "transformer")


@pytest.fixture
def sdxl(tmp_path: Path) -> Path:
    """A UNet in the shape of SDXL's."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
        norm_num_groups=8,
    )
    model.save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A UNet with attention by its names of long ago, and with kernels that are in no file."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("KDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "KUpBlock2D"),
        block_out_channels=(32, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    model.save_pretrained(tmp_path / "old")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def former(name: str) -> str:
        if "transformer_blocks" in name:
            return name
        for new, old in names.items():
            name = name.replace(f".{new}.", f".{old}.")
        return name

    edit(tmp_path / "old", lambda tensors: {former(name): tensor for name, tensor in tensors.items()})
    return tmp_path / "old"


def edit(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Replace the tensors of a folder's only file."""
    save_file(change(load_file(folder / FILE)), folder / FILE)


def load(
    kind: type[ModelMixin],
    folder: Path,
    dtype: torch.dtype = torch.float32,
    quantization: Quantization = Quantization.NONE,
) -> torch.nn.Module:
    """Load to the CPU."""
    model: torch.nn.Module = load_denoiser(kind, folder, dtype, CPU, quantization)
    return model


def tensors_of(model: torch.nn.Module) -> Tensors:
    """All that a model holds, saved or not."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_same_tensors(expected: torch.nn.Module, actual: torch.nn.Module) -> None:
    """To the last bit, with their types and on their device."""
    torch.testing.assert_close(tensors_of(actual), tensors_of(expected), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("kind", "part"),
    [(FluxTransformer2DModel, "flux"), (UNet2DConditionModel, "sdxl"), (UNet2DConditionModel, "old")],
)
def test_a_model_is_the_one_that_diffusers_loads(
    request: pytest.FixtureRequest, kind: type[ModelMixin], part: str, dtype: torch.dtype
) -> None:
    """In every tensor, and ready to be trained beside: nothing learns, nothing is dropped."""
    folder: Path = request.getfixturevalue(part)

    model = load(kind, folder, dtype)

    assert_same_tensors(kind.from_pretrained(folder, torch_dtype=dtype), model)
    assert not model.training
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_the_default_type_of_new_tensors_stays_what_it_was(flux: Path) -> None:
    """The model is built in its own."""
    load(FluxTransformer2DModel, flux, torch.bfloat16)

    assert torch.float32 == torch.get_default_dtype()


def test_layers_that_a_class_keeps_in_full_are_kept(flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As diffusers does: float32 in a model of 16 bits."""
    monkeypatch.setattr(FluxTransformer2DModel, "_keep_in_fp32_modules", ["norm_out"])

    model = load(FluxTransformer2DModel, flux, torch.bfloat16)

    assert torch.float32 == model.get_parameter("norm_out.linear.weight").dtype
    assert_same_tensors(FluxTransformer2DModel.from_pretrained(flux, torch_dtype=torch.bfloat16), model)


@pytest.mark.parametrize("quantization", [Quantization.NONE, Quantization.NF4])
def test_weights_in_several_files_are_the_same(flux: Path, tmp_path: Path, quantization: Quantization) -> None:
    """A layer's weight and its bias may be in two of them."""
    shards = tmp_path / "shards"
    FluxTransformer2DModel.from_pretrained(flux).save_pretrained(shards, max_shard_size="8KB")
    files = json.loads((shards / INDEX).read_text())["weight_map"]
    linear = "transformer_blocks.0.ff.net.2"

    model = load(FluxTransformer2DModel, shards, quantization=quantization)

    assert files[f"{linear}.weight"] != files[f"{linear}.bias"]
    assert_same_tensors(load(FluxTransformer2DModel, flux, quantization=quantization), model)


def four_bits(weight: torch.Tensor) -> list[torch.Tensor]:
    """The numbers and the scales of bitsandbytes."""
    packed, state = bitsandbytes.functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=False, quant_type="nf4"
    )
    return [packed, state.absmax]


def eight_bits(weight: torch.Tensor) -> list[torch.Tensor]:
    """The whole numbers, and the scales that take each row's largest to 127."""
    scales = weight.float().abs().amax(dim=1, keepdim=True) / 127
    return [(weight.float() / scales).round(), scales]


def eight_bit_floats(weight: torch.Tensor) -> list[torch.Tensor]:
    """The numbers, and the scales that take each row's largest to 448."""
    scales = weight.float().abs().amax(dim=1, keepdim=True) / 448
    return [(weight.float() / scales).to(torch.float8_e4m3fn).float(), scales]


@pytest.mark.parametrize(
    ("kind", "part", "inside"),
    [
        (FluxTransformer2DModel, "flux", {"transformer_blocks", "single_transformer_blocks"}),
        (UNet2DConditionModel, "sdxl", {"attentions"}),
    ],
)
@pytest.mark.parametrize("quantization", [Quantization.NF4, Quantization.INT8, Quantization.FP8])
def test_linear_layers_inside_of_blocks_are_quantized_and_nothing_else(
    request: pytest.FixtureRequest, kind: type[ModelMixin], part: str, inside: set[str], quantization: Quantization
) -> None:
    """They are what the formats make of the full weights in their type; the rest is as it was."""
    folder: Path = request.getfixturevalue(part)
    full = load(kind, folder, torch.bfloat16)
    expected = {
        f"{name}.weight"
        for name, layer in full.named_modules()
        if isinstance(layer, torch.nn.Linear) and inside & set(name.split("."))
    }

    model = load(kind, folder, torch.bfloat16, quantization)

    weights = dict(full.named_parameters())
    found = {name for name, weight in model.named_parameters() if weight.dtype != torch.bfloat16}
    assert expected == found
    named: Iterable[tuple[str, Any]] = model.named_parameters()
    for name, weight in named:
        if name not in found:
            assert torch.equal(weights[name], weight)
        elif quantization is Quantization.NF4:
            torch.testing.assert_close([weight.data, weight.quant_state.absmax], four_bits(weights[name]))
        else:
            scale = model.get_buffer(name.removesuffix("weight") + "scale")
            expect = eight_bits if quantization is Quantization.INT8 else eight_bit_floats
            torch.testing.assert_close([weight.data.float(), scale], expect(weights[name]))


@pytest.mark.parametrize("quantization", list(Quantization))
def test_a_quantized_unet_predicts_nearly_the_same(sdxl: Path, quantization: Quantization) -> None:
    """What rounding costs is little beside the prediction."""
    generator = torch.Generator().manual_seed(0)
    given = {
        "sample": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([100, 900]),
        "encoder_hidden_states": torch.randn(2, 7, 32, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, 32, generator=generator),
            "time_ids": torch.tensor([[8.0, 8, 0, 0, 8, 8]] * 2),
        },
    }
    full = UNet2DConditionModel.from_pretrained(sdxl)

    with torch.no_grad():
        expected = full(**given).sample
        actual = load(UNet2DConditionModel, sdxl, quantization=quantization)(**given).sample

    assert (actual - expected).norm() < 0.15 * expected.norm()
    assert (quantization is Quantization.NONE) == torch.equal(expected, actual)


def without(name: str) -> Callable[[Tensors], Tensors]:
    """Leave a tensor out."""
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("proj_out.bias"), "1 weights are missing, the first is proj_out.bias"),
        (
            lambda tensors: {**tensors, "b.weight": torch.ones(1), "a.weight": torch.ones(1)},
            "2 weights are unexpected, the first is a.weight",
        ),
        (
            lambda tensors: {**tensors, "proj_out.bias": torch.ones(3)},
            "1 weights are of another shape, the first is proj_out.bias",
        ),
    ],
)
def test_other_weights_than_the_models_are_refused(
    flux: Path, change: Callable[[Tensors], Tensors], message: str
) -> None:
    """None is made up, none is left out."""
    edit(flux, change)

    with pytest.raises(ValueError, match=message):
        load(FluxTransformer2DModel, flux)


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_a_file_that_was_broken_off_is_named(flux: Path, kept: int) -> None:
    """Wherever it ends: before its header, within, or just before its end."""
    (flux / FILE).write_bytes((flux / FILE).read_bytes()[:kept])

    with pytest.raises(ValueError, match=FILE):
        load(FluxTransformer2DModel, flux)


@pytest.mark.parametrize("index", [b"", b"{}", b'{"weight_map": [1]}'])
def test_a_broken_index_is_named(flux: Path, index: bytes) -> None:
    """It goes before a file of all weights, as with diffusers."""
    (flux / INDEX).write_bytes(index)

    with pytest.raises(ValueError, match=INDEX):
        load(FluxTransformer2DModel, flux)


@pytest.mark.parametrize("file", [FILE, "config.json"])
def test_a_missing_file_is_named(flux: Path, file: str) -> None:
    """The index, if there is none, is not missed."""
    (flux / file).unlink()

    with pytest.raises(OSError, match=file):
        load(FluxTransformer2DModel, flux)


def test_a_missing_one_of_several_files_is_named(flux: Path) -> None:
    """By the index."""
    (flux / INDEX).write_text(json.dumps({"weight_map": {"a": FILE, "b": "more.safetensors"}}))

    with pytest.raises(OSError, match=r"more\.safetensors"):
        load(FluxTransformer2DModel, flux)


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small one, and one of many layers and 78 million weights in float32."""
    folder = tmp_path_factory.mktemp("transformers")
    for name, blocks, width in (("small", 1, 16), ("big", 6, 64)):
        torch.manual_seed(0)
        FluxTransformer2DModel(
            num_layers=blocks,
            num_single_layers=blocks,
            attention_head_dim=width,
            num_attention_heads=8,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            axes_dims_rope=(width // 4, width // 4, width // 2),
        ).save_pretrained(folder / name)
    return folder / "small", folder / "big"


@pytest.mark.parametrize(
    ("quantization", "share"),
    [(Quantization.NONE, 1.0), (Quantization.INT8, 0.5), (Quantization.FP8, 0.5), (Quantization.NF4, 0.28)],
)
def test_loading_takes_little_more_memory_than_what_is_loaded(
    transformers: tuple[Path, Path], quantization: Quantization, share: float
) -> None:
    """The most that there is at a time is the model as it stays, and less than a fourth of its 16-bit weights more."""
    small, big = transformers
    full = 2 * sum(weight.numel() for weight in load_file(big / FILE).values())
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        # What is freed is given back at once, as what is large always is: of a real model, all layers.
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-m", "tests.engines.loading_memory", str(small), str(big), quantization.value]

    ended = subprocess.run(command, env=environment, capture_output=True, check=True)

    memory = msgspec.json.decode(ended.stdout, type=LoadingMemory)
    assert memory.held == pytest.approx(share * full, rel=0.05)
    assert memory.held < 1.02 * memory.peak
    assert memory.peak < memory.held + full / 4

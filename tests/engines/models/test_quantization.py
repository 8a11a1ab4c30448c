"""The base model in fewer bits: it still teaches its adapter, and a run goes on exactly."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from msgspec.structs import replace
from tests.engines.loading_memory import held_bytes
from torch.utils._python_dispatch import TorchDispatchMode

from training_schemas.spec import FluxLoraParameters, LoraTargets, OptimizerName, Quantization, WeightDtype
from training_worker.engines.diffusers.models.families import FLUX
from training_worker.engines.diffusers.models.loader import ModelLoader
from training_worker.engines.diffusers.models.lora import add_adapter
from training_worker.engines.diffusers.models.quantization import FP8, EightBitLinear, is_quantized
from training_worker.engines.diffusers.training.checkpoints import Tally, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from tests.engines.trainers import BuildTrainer

pytestmark = pytest.mark.trainer

TALLY = Tally(losses=[1.0] * 3, fixed_loss_before=1.0)


def linear_bytes(transformer: torch.nn.Module) -> dict[str, int]:
    """What the weights of all blocks' linear layers take, by the kind of layer."""
    found: dict[str, int] = {}
    for name, module in transformer.named_modules():
        weight = getattr(module, "weight", None)
        if "blocks." in name and isinstance(module, torch.nn.Linear) and weight is not None:
            found[type(module).__name__] = found.get(type(module).__name__, 0) + weight.numel() * weight.element_size()
    return found


@pytest.mark.parametrize(
    ("how", "layer", "share"),
    [
        (Quantization.NF4, "Linear4bit", 0.25),
        (Quantization.INT8, "EightBitLinear", 0.5),
        (Quantization.FP8, "EightBitLinear", 0.5),
    ],
)
def test_every_linear_layer_of_the_blocks_is_replaced(
    tiny_model: Path, how: Quantization, layer: str, share: float
) -> None:
    """Their weights take a fourth, or half, of what they do in 16 bits."""
    loader = ModelLoader(tiny_model, FLUX, WeightDtype.BFLOAT16, "cpu")
    whole = linear_bytes(loader.denoiser())

    quantized = linear_bytes(loader.denoiser(how))

    assert quantized == {layer: whole["Linear"] * share}


@pytest.mark.parametrize("how", [Quantization.NF4, Quantization.INT8, Quantization.FP8])
def test_a_quantized_model_predicts_nearly_the_same(
    build: "BuildTrainer", parameters: FluxLoraParameters, how: Quantization
) -> None:
    """The loss on fixed samples is that of the full weights, but for what rounding costs; and not the very same."""
    full = build(parameters).fixed_loss(0, lambda: None)

    rounded = build(replace(parameters, quantization=how)).fixed_loss(0, lambda: None)

    assert rounded == pytest.approx(full, rel=0.05)
    assert rounded != full


@pytest.mark.parametrize("how", [Quantization.NF4, Quantization.INT8, Quantization.FP8])
@pytest.mark.parametrize("optimizer", [OptimizerName.ADAMW, OptimizerName.ADAMW_8BIT])
def test_an_adapter_learns_over_a_quantized_base(
    build: "BuildTrainer", parameters: FluxLoraParameters, how: Quantization, optimizer: OptimizerName
) -> None:
    """After some steps the loss on fixed samples is lower than before the first, checkpointing or not."""
    trainer = build(replace(parameters, quantization=how, optimizer=optimizer, gradient_checkpointing=True))
    before = trainer.fixed_loss(0, lambda: None)

    for number in range(1, 13):
        trainer.step(number, lambda: None)

    assert trainer.fixed_loss(12, lambda: None) < before


@pytest.mark.parametrize(
    ("how", "of_weight", "of_row"),
    [(Quantization.NF4, 0.5 + 4 / 64, 0), (Quantization.INT8, 1, 4), (Quantization.FP8, 1, 4)],
)
def test_a_quantized_model_holds_its_numbers_and_their_scales(
    tiny_model: Path, how: Quantization, of_weight: float, of_row: int
) -> None:
    """Bytes of all that it holds: a scale for each 64 weights or for each row, and two for each weight of the rest."""
    loader = ModelLoader(tiny_model, FLUX, WeightDtype.BFLOAT16, "cpu")
    full = loader.denoiser()
    linear = [layer.weight for name, layer in full.named_modules() if is_quantized(name, layer)]
    weights, rows = sum(weight.numel() for weight in linear), sum(len(weight) for weight in linear)

    held = held_bytes(loader.denoiser(how))

    assert of_weight * weights + of_row * rows == held - (held_bytes(full) - 2 * weights)


FORMATS = [FP8, torch.int8]


def make_layers(
    dtype: torch.dtype, form: torch.dtype, *, bias: bool = True
) -> tuple[torch.nn.Linear, EightBitLinear, torch.nn.Linear]:
    """A linear layer, the same in 8 bits, and one whose weight is that of the second, multiplied out."""
    torch.manual_seed(0)
    full = torch.nn.Linear(48, 32, bias=bias, dtype=dtype)
    rounded = EightBitLinear(full, form, torch.device("cpu"))
    same = torch.nn.Linear(48, 32, bias=bias, dtype=dtype)
    same.load_state_dict({**full.state_dict(), "weight": rounded.full_weight(dtype)})
    return full, rounded, same


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_eight_bit_float_is_off_by_a_sixteenth_at_most(dtype: torch.dtype) -> None:
    """Three bits of mantissa; what is near to zero is off by half of the smallest step. The largest is exact."""
    full, rounded, _ = make_layers(dtype, FP8)
    weight = full.weight.detach().float()

    actual = rounded.full_weight(torch.float32)

    allowed = torch.maximum(weight.abs() / 16, rounded.scale * 2**-10)
    assert bool(((actual - weight).abs() <= allowed * (1 + 1e-5)).all())
    torch.testing.assert_close(actual.abs().amax(dim=1), weight.abs().amax(dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_eight_bit_integer_is_off_by_half_a_step_at_most(dtype: torch.dtype) -> None:
    """A step is a 127th of its row's largest, which is exact."""
    full, rounded, _ = make_layers(dtype, torch.int8)
    weight = full.weight.detach().float()

    actual = rounded.full_weight(torch.float32)

    assert bool(((actual - weight).abs() <= rounded.scale / 2 * (1 + 1e-5)).all())
    torch.testing.assert_close(actual.abs().amax(dim=1), weight.abs().amax(dim=1))


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_zeros_stay_zeros(form: torch.dtype) -> None:
    """They have no largest value to be scaled by."""
    linear = torch.nn.Linear(4, 2)
    torch.nn.init.zeros_(linear.weight)

    assert torch.equal(torch.zeros(2, 4), EightBitLinear(linear, form, torch.device("cpu")).full_weight(torch.float32))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_an_eight_bit_layer_is_the_linear_layer_of_its_weight(
    form: torch.dtype, dtype: torch.dtype, bias: bool
) -> None:
    """In its outputs and in the gradient of its inputs, to the last bit; and near to that of the full weight."""
    full, rounded, same = make_layers(dtype, form, bias=bias)
    first = torch.randn(5, 7, 48, dtype=dtype).requires_grad_()
    second = first.detach().clone().requires_grad_()

    actual, expected = rounded(first), same(second)
    actual.square().sum().backward()
    expected.square().sum().backward()

    assert torch.equal(expected, actual)
    assert first.grad is not None
    assert second.grad is not None
    assert torch.equal(second.grad, first.grad)
    exact = full(second)
    assert (actual - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("form", FORMATS)
def test_autocast_is_heeded(form: torch.dtype) -> None:
    """A layer of float32 computes in bfloat16, and the gradient comes back in float32."""
    _, rounded, same = make_layers(torch.float32, form)
    first = torch.randn(5, 48).requires_grad_()
    second = first.detach().clone().requires_grad_()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = rounded(first), same(second)
    actual.sum().backward()
    expected.sum().backward()

    assert torch.bfloat16 == actual.dtype
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(first.grad, second.grad)


@pytest.mark.parametrize("dtype", [WeightDtype.BFLOAT16, WeightDtype.FLOAT16])
def test_four_bits_give_autocasts_type_whatever_goes_in(tiny_model: Path, dtype: WeightDtype) -> None:
    """A norm's float32 does not stay float32 from there on; beside peft's adapter neither."""
    denoiser = ModelLoader(tiny_model, FLUX, dtype, "cpu").denoiser(Quantization.NF4)
    plain = denoiser.transformer_blocks[0].ff.net[2]
    add_adapter(denoiser, r".*\.attn\.to_q", 4, 0)
    adapted = denoiser.transformer_blocks[0].attn.to_q
    inputs = {layer: torch.randn(5, layer.in_features).requires_grad_() for layer in (plain, adapted)}

    with torch.autocast("cpu", dtype=getattr(torch, dtype)):
        outputs = [layer(given) for layer, given in inputs.items()]

    assert {getattr(torch, dtype)} == {output.dtype for output in outputs}
    for output, given in zip(outputs, inputs.values(), strict=True):
        output.sum().backward()
        assert given.grad is not None
        assert torch.float32 == given.grad.dtype


class Weights(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lists the types of all tensors of a weight's shape that are computed."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.types: set[torch.dtype] = set()
        self._shape = shape

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.shape == self._shape:
            self.types.add(result.dtype)
        return result


@pytest.mark.parametrize("form", FORMATS)
def test_autocast_multiplies_the_weight_out_in_its_own_type(form: torch.dtype) -> None:
    """Not in float32 first, which would take twice as much."""
    _, rounded, _ = make_layers(torch.float32, form)

    with torch.autocast("cpu", dtype=torch.bfloat16), Weights((32, 48)) as computed:
        rounded(torch.randn(5, 48).requires_grad_()).sum().backward()

    assert {torch.bfloat16} == computed.types


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_larger_than_eight_bits_is_kept_for_the_backward_pass(form: torch.dtype) -> None:
    """The weight as it is, and its scales."""
    _, rounded, _ = make_layers(torch.bfloat16, form)
    inputs = torch.randn(5, 48, dtype=torch.bfloat16).requires_grad_()
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((tensor.dtype, tuple(tensor.shape)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        rounded(inputs)

    assert [(form, (32, 48)), (torch.float32, (32, 1))] == kept


@pytest.mark.parametrize("how", [Quantization.NF4, Quantization.INT8, Quantization.FP8])
def test_the_inputs_of_a_layer_do_not_live_until_the_backward_pass(
    build: "BuildTrainer", parameters: FluxLoraParameters, how: Quantization
) -> None:
    """Not even where autograd does not know of them, in what a function keeps by itself: checkpointing misses that."""
    trainer = build(replace(parameters, quantization=how))
    block = trainer.pipeline.denoiser.transformer_blocks[0]
    layer = block.ff.net[2]
    inputs = torch.randn(5, layer.in_features, dtype=layer.compute_dtype).requires_grad_()
    passing = inputs * 2
    alive = weakref.ref(passing.untyped_storage())

    outputs = layer(passing)
    del passing
    gc.collect()

    assert alive() is None
    outputs.sum().backward()
    assert inputs.grad is not None


@pytest.mark.parametrize("how", [Quantization.INT8, Quantization.FP8])
@pytest.mark.parametrize("dtype", [WeightDtype.FLOAT32, WeightDtype.BFLOAT16])
def test_an_adapter_begins_the_same_over_eight_bits(
    build: "BuildTrainer", parameters: FluxLoraParameters, dtype: WeightDtype, how: Quantization
) -> None:
    """It does not take its type from a base whose numbers have three bits of mantissa, or none."""
    from tests.engines.trainers import weights  # noqa: PLC0415

    full = weights(build(replace(parameters, weight_dtype=dtype)))

    over = weights(build(replace(parameters, weight_dtype=dtype, quantization=how)))

    assert {torch.float32} == {weight.dtype for weight in over.values()}
    torch.testing.assert_close(over, full, rtol=0, atol=0)


def test_a_run_with_eight_bit_states_goes_on_to_the_last_bit(
    build: "BuildTrainer", parameters: FluxLoraParameters, tmp_path: Path
) -> None:
    """Stopped after three steps and gone on from the checkpoint, six steps give the same weights as without a stop."""
    from tests.engines.trainers import DATASET, take_steps, weights  # noqa: PLC0415

    # At rank 160 a matrix has more than 4,096 numbers, from where on the states are in 8 bits.
    settings = replace(parameters, quantization=Quantization.NF4, optimizer=OptimizerName.ADAMW_8BIT, lora_rank=160)
    whole, first, second = build(settings), build(settings), build(settings)
    take_steps(whole, 1, 6)
    take_steps(first, 1, 3)
    save_checkpoint(tmp_path / "step-3", first, DATASET, TALLY)

    load_checkpoint(tmp_path / "step-3", second, DATASET)
    take_steps(second, 4, 6)

    states = [state["state1"].dtype for state in second.optimizer.state.values()]
    assert torch.uint8 in states
    torch.testing.assert_close(weights(second), weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (LoraTargets.ATTENTION, 8 + 3),
        (LoraTargets.ATTENTION_AND_FEED_FORWARD, 8 + 4 + 3),
        (LoraTargets.ALL_LINEAR, 8 + 4 + 3 + 2),
    ],
)
def test_an_adapter_is_put_beside_the_layers_that_a_job_names(
    build: "BuildTrainer", parameters: FluxLoraParameters, targets: LoraTargets, layers: int
) -> None:
    """Counted in one block of each kind: attention, its feed-forward, all linear layers but modulation."""
    trainer = build(replace(parameters, lora_targets=targets))

    config = trainer.pipeline.denoiser.config
    blocks = {"transformer_blocks.0.", "single_transformer_blocks.0."}
    found = {
        name.partition(".lora_")[0]
        for name, _ in trainer.pipeline.denoiser.named_parameters()
        if ".lora_" in name and any(name.startswith(block) for block in blocks)
    }
    assert config.num_layers >= 1
    assert len(found) == layers
    assert not [
        name for name, _ in trainer.pipeline.denoiser.named_parameters() if ".lora_" in name and "blocks" not in name
    ]

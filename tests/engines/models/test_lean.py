"""The lean step: the gradients of peft and diffusers, by other operations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from tests.engines.conftest import PARAMETERS, SDXL_PARAMETERS
from tests.engines.lean import Gradients, build_plain, build_truth, distance, gradients
from tests.engines.trainers import BuildTrainer, never, take_steps, weights
from torch.utils._python_dispatch import TorchDispatchMode

from training_schemas.jobs import TrainingType
from training_schemas.spec import Execution, LoraTargets, Quantization, WeightDtype
from training_worker.engines.diffusers.models import compiled
from training_worker.engines.diffusers.models.attention import KEPT
from training_worker.engines.diffusers.models.rotary import SHAPES, RotaryTables
from training_worker.engines.diffusers.pipelines.flux_lora import FluxLora
from training_worker.engines.diffusers.training.trainer import Trainer

pytestmark = pytest.mark.trainer

Flavour = tuple[WeightDtype, Quantization]
FLUX_LORA, SDXL_LORA = TrainingType.FLUX_LORA, TrainingType.SDXL_LORA
HALF = WeightDtype.BFLOAT16
BASES: list[Flavour] = [(HALF, how) for how in Quantization]
SEEDS = (3, 4, 5)


def stir(trainer: Trainer, seed: int = 3) -> None:
    """Give all adapters the same values, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in trainer.pipeline.weights().values():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))


def settings_of(training_type: TrainingType, base: Flavour, targets: LoraTargets, **others: Any) -> Any:
    """Settings of a run."""
    dtype, quantization = base
    common = PARAMETERS if training_type is FLUX_LORA else SDXL_PARAMETERS
    return replace(common, weight_dtype=dtype, quantization=quantization, lora_targets=targets, **others)


@pytest.mark.parametrize("targets", LoraTargets)
@pytest.mark.parametrize("base", BASES, ids=lambda base: base[1].value)
@pytest.mark.parametrize("training_type", [FLUX_LORA, SDXL_LORA])
def test_gradients_are_as_near_to_float32_as_those_of_peft(
    build: BuildTrainer,
    monkeypatch: pytest.MonkeyPatch,
    training_type: TrainingType,
    base: Flavour,
    targets: LoraTargets,
) -> None:
    """With the same numbers in the base, of every way to keep it: rounding is all that is between them."""
    settings = settings_of(training_type, base, targets)
    lean, plain = build(settings, training_type), build_plain(monkeypatch, build, settings, training_type)
    truth = build_truth(monkeypatch, build, settings, training_type, plain.pipeline.denoiser)
    ours, theirs = [], []
    for seed in SEEDS:
        start = truth.batches.state()
        found: list[Gradients] = []
        for trainer in (lean, plain, truth):
            stir(trainer, seed)
            trainer.batches.restore(start)
            found.append(gradients(trainer))
        ours.append(distance(found[0], found[2]))
        theirs.append(distance(found[1], found[2]))

    # Of so small a model, one draw of rounding errors is a fifth larger or smaller than another.
    assert sum(ours) <= (1.1 if training_type is FLUX_LORA else 1.25) * sum(theirs)


@pytest.mark.parametrize("quantization", [Quantization.NONE, Quantization.NF4])
@pytest.mark.parametrize("training_type", [FLUX_LORA, SDXL_LORA])
def test_a_base_in_float32_has_the_gradients_of_peft(
    build: BuildTrainer, monkeypatch: pytest.MonkeyPatch, training_type: TrainingType, quantization: Quantization
) -> None:
    """But for the order of sums."""
    settings = settings_of(training_type, (WeightDtype.FLOAT32, quantization), LoraTargets.ALL_LINEAR)
    lean, plain = build(settings, training_type), build_plain(monkeypatch, build, settings, training_type)
    for trainer in (lean, plain):
        stir(trainer)

    assert distance(gradients(lean), gradients(plain)) < 1e-5


def with_execution(
    build: BuildTrainer, monkeypatch: pytest.MonkeyPatch, execution: Execution, settings: Any
) -> Trainer:
    """Build a trainer of a FLUX LoRA that computes in a given way."""
    make = FluxLora.__init__

    def made(self: FluxLora, loader: Any, parameters: Any, _: Any = None) -> None:
        make(self, loader, parameters, execution)

    with monkeypatch.context() as patch:
        patch.setattr(FluxLora, "__init__", made)
        trainer = build(settings)
    stir(trainer)
    return trainer


@pytest.mark.parametrize("base", BASES, ids=lambda base: base[1].value)
def test_what_is_kept_for_the_backward_pass_changes_nothing(
    build: BuildTrainer, monkeypatch: pytest.MonkeyPatch, base: Flavour
) -> None:
    """All of it, nothing but inputs, that of some blocks, what attention gave, and both."""
    settings = settings_of(FLUX_LORA, base, LoraTargets.ALL_LINEAR, gradient_accumulation_steps=2)
    expected = gradients(with_execution(build, monkeypatch, Execution(), settings))
    checkpointed = replace(settings, gradient_checkpointing=True)
    for execution in (
        Execution(),
        Execution(stored_blocks=3),
        Execution(keep_attention=True),
        Execution(stored_blocks=1, keep_attention=True),
    ):
        found = gradients(with_execution(build, monkeypatch, execution, checkpointed))

        torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Attentions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often attention is computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.times = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.times += func in KEPT
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("execution", "times"),
    [(Execution(), 8), (Execution(stored_blocks=1), 7), (Execution(keep_attention=True), 4)],
)
def test_attention_is_computed_again_only_where_it_is_not_kept(
    build: BuildTrainer, monkeypatch: pytest.MonkeyPatch, execution: Execution, times: int
) -> None:
    """Of the four blocks of the tiny model, once forth and once more on the way back."""
    settings = settings_of(FLUX_LORA, (HALF, Quantization.NONE), LoraTargets.ATTENTION, gradient_checkpointing=True)
    trainer = with_execution(build, monkeypatch, execution, settings)

    with Attentions() as counted:
        trainer.accumulate(1, never)

    assert times == counted.times


def test_weights_that_are_set_are_those_that_compute(build: BuildTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever sets them: the copies are made again for each pass."""
    trainer = build(settings_of(FLUX_LORA, (HALF, Quantization.NONE), LoraTargets.ATTENTION))
    before = trainer.fixed_loss(0, never)
    stir(trainer)

    assert trainer.fixed_loss(0, never) != before

    trainer.pipeline.restore({name: torch.zeros_like(weight) for name, weight in weights(trainer).items()})
    assert trainer.fixed_loss(0, never) == pytest.approx(before)


@pytest.mark.parametrize("training_type", [FLUX_LORA, SDXL_LORA])
def test_adapters_of_text_encoders_learn_beside_it(build: BuildTrainer, training_type: TrainingType) -> None:
    """Their gradients come through what modulates, in float32 as with peft."""
    base = (HALF, Quantization.NONE)
    settings = settings_of(training_type, base, LoraTargets.ATTENTION, train_text_encoder=True)
    trainer = build(replace(settings, cache_text_encoder_outputs=False, gradient_checkpointing=True), training_type)
    stir(trainer)
    before = weights(trainer)
    take_steps(trainer, 1, 1)

    changed = {name.partition(".")[0] for name, weight in weights(trainer).items() if not weight.equal(before[name])}
    assert {name.partition(".")[0] for name in before} == changed
    assert "text_encoder" in changed


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trace what would be compiled, and run it as it is; gives the graphs that were traced."""
    graphs: list[str] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(str(module.graph))
        run: Callable[..., Any] = aot_eager(module, inputs)
        return run

    aot_eager: Any = torch._dynamo.lookup_backend("aot_eager")
    torch._dynamo.reset()
    monkeypatch.setattr(compiled.CompiledBlock, "backend", staticmethod(backend))
    return graphs


@pytest.mark.parametrize("quantization", [Quantization.NONE, Quantization.FP8])
def test_blocks_can_be_compiled_whole(
    build: BuildTrainer, monkeypatch: pytest.MonkeyPatch, traced: list[str], quantization: Quantization
) -> None:
    """One graph for double blocks and one for single ones, and one for the first of all: its inputs do not learn."""
    base = (WeightDtype.FLOAT32, quantization)
    settings = settings_of(FLUX_LORA, base, LoraTargets.ATTENTION, gradient_checkpointing=True)
    expected = gradients(with_execution(build, monkeypatch, Execution(), settings))

    found = gradients(with_execution(build, monkeypatch, Execution(compiled=True), settings))

    assert distance(found, expected) < 1e-5
    assert len(traced) == 3


def test_a_compiler_that_fails_is_done_without(build: BuildTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is logged once for each block."""

    def backend(_: torch.fx.GraphModule, __: Any) -> Callable[..., Any]:
        raise RuntimeError("no compiler here")

    torch._dynamo.reset()
    monkeypatch.setattr(compiled.CompiledBlock, "backend", staticmethod(backend))
    settings = settings_of(FLUX_LORA, (HALF, Quantization.NONE), LoraTargets.ATTENTION)
    expected = gradients(with_execution(build, monkeypatch, Execution(), settings))
    trainer = with_execution(build, monkeypatch, Execution(compiled=True), settings)

    with pytest.warns(RuntimeWarning, match="no compiler here"):
        found = gradients(trainer)

    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_positions_have_one_table_each() -> None:
    """A tall image has as many tokens as a wide one; tables that were not used for long are forgotten."""
    made = []

    def embed(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made.append(positions)
        angles = positions.repeat_interleave(2, dim=1)
        return angles.cos(), angles.sin()

    tables, text = RotaryTables(embed), torch.zeros(1, 2)
    tall, wide = (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))

    first, second = tables.of(text, tall), tables.of(text, wide)

    assert not first.equal(second)
    assert tables.of(text, tall) is first
    for _ in range(SHAPES):
        tables.of(text, torch.zeros(1, 2))
    assert len(made) == 2 + SHAPES
    assert tables.of(text, tall).equal(first)
    assert len(made) == 3 + SHAPES

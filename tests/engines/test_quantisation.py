"""The base model in fewer bits: it still teaches its adapter, and a run goes on exactly."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from msgspec.structs import replace

from training_schemas.spec import FluxLoraParameters, LoraTargets, OptimizerName, Quantization, WeightDtype
from training_worker.engines.diffusers.checkpoints import Tally, load_checkpoint, save_checkpoint
from training_worker.engines.diffusers.models import ModelLoader

if TYPE_CHECKING:
    from tests.engines.trainers import BuildTrainer

pytestmark = pytest.mark.trainer

TALLY = Tally(step=3, first_loss=1.0, last_loss=1.0, fixed_loss_before=1.0)


def linear_bytes(transformer: torch.nn.Module) -> dict[str, int]:
    """What the weights of all blocks' linear layers take, by the kind of layer."""
    found: dict[str, int] = {}
    for name, module in transformer.named_modules():
        weight = getattr(module, "weight", None)
        if "blocks." in name and isinstance(module, torch.nn.Linear) and weight is not None:
            found[type(module).__name__] = found.get(type(module).__name__, 0) + weight.numel() * weight.element_size()
    return found


@pytest.mark.parametrize(
    ("how", "layer", "share"), [(Quantization.NF4, "Linear4bit", 0.25), (Quantization.INT8, "Linear8bitLt", 0.5)]
)
def test_every_linear_layer_of_the_blocks_is_replaced(
    tiny_model: Path, how: Quantization, layer: str, share: float
) -> None:
    """Their weights take a fourth, or half, of what they do in 16 bits."""
    loader = ModelLoader(tiny_model, WeightDtype.BFLOAT16, "cpu")
    whole = linear_bytes(loader.transformer())

    quantised = linear_bytes(loader.transformer(how))

    assert quantised == {layer: whole["Linear"] * share}


@pytest.mark.parametrize("how", [Quantization.NF4, Quantization.INT8])
def test_a_quantised_model_predicts_nearly_the_same(
    build: "BuildTrainer", parameters: FluxLoraParameters, how: Quantization
) -> None:
    """The loss on fixed samples is that of the full weights, but for what rounding costs; and not the very same."""
    full = build(parameters).fixed_loss(0, lambda: None)

    rounded = build(replace(parameters, quantization=how)).fixed_loss(0, lambda: None)

    assert rounded == pytest.approx(full, rel=0.05)
    assert rounded != full


@pytest.mark.parametrize("how", [Quantization.NF4, Quantization.INT8])
@pytest.mark.parametrize("optimizer", [OptimizerName.ADAMW, OptimizerName.ADAMW_8BIT])
def test_an_adapter_learns_over_a_quantised_base(
    build: "BuildTrainer", parameters: FluxLoraParameters, how: Quantization, optimizer: OptimizerName
) -> None:
    """After some steps the loss on fixed samples is lower than before the first, checkpointing or not."""
    trainer = build(replace(parameters, quantization=how, optimizer=optimizer, gradient_checkpointing=True))
    before = trainer.fixed_loss(0, lambda: None)

    for number in range(1, 13):
        trainer.step(number, lambda: None)

    assert trainer.fixed_loss(12, lambda: None) < before


def test_a_run_with_eight_bit_states_goes_on_to_the_last_bit(
    build: "BuildTrainer", parameters: FluxLoraParameters, tmp_path: Path
) -> None:
    """Stopped after three steps and gone on from the checkpoint, six steps give the same weights as without a stop."""
    from tests.engines.trainers import IMAGES, take_steps, weights  # noqa: PLC0415

    # At rank 160 a matrix has more than 4,096 numbers, from where on the states are in 8 bits.
    settings = replace(parameters, quantization=Quantization.NF4, optimizer=OptimizerName.ADAMW_8BIT, lora_rank=160)
    whole, first, second = build(settings), build(settings), build(settings)
    take_steps(whole, 1, 6)
    take_steps(first, 1, 3)
    save_checkpoint(tmp_path / "step-3", first, IMAGES, TALLY)

    load_checkpoint(tmp_path / "step-3", second, IMAGES)
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

    config = trainer.transformer.config
    blocks = {"transformer_blocks.0.", "single_transformer_blocks.0."}
    found = {
        name.partition(".lora_")[0]
        for name, _ in trainer.transformer.named_parameters()
        if ".lora_" in name and any(name.startswith(block) for block in blocks)
    }
    assert config.num_layers >= 1
    assert len(found) == layers
    assert not [name for name, _ in trainer.transformer.named_parameters() if ".lora_" in name and "blocks" not in name]

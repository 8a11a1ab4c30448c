"""All four types of training: what learns, that it learns, and that a run goes on exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file
from tests.engines.conftest import PARAMETERS, SDXL_PARAMETERS, Train, WriteRun
from tests.engines.trainers import DATASET, BuildTrainer, never, take_steps, weights

from training_schemas.jobs import TrainingType
from training_schemas.progress import CheckpointRecord, DoneRecord, StepRecord
from training_schemas.spec import LoraTargets, LrScheduler, OptimizerName, WeightDtype
from training_worker.engines.diffusers.training.checkpoints import Tally, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.trainer

TALLY = Tally(losses=[1.0, 1.0, 1.0], fixed_loss_before=1.0)
WORD = "<robot>"

# Everything that a checkpoint must keep beside weights: two groups of them, a running mean, a rate that changes.
ALL_AT_ONCE: dict[str, Any] = {
    "train_text_encoder": True,
    "ema_decay": 0.9,
    "lr_scheduler": LrScheduler.COSINE,
    "lr_warmup_steps": 2,
    "caption_dropout": 0.3,
}


# The losses of five steps, and that on fixed samples after them.
GOLDEN: dict[TrainingType, list[float]] = {
    TrainingType.FLUX_LORA: [3.60795, 3.52507, 3.53701, 3.51417, 3.47857, 3.29108],
    TrainingType.SDXL_LORA: [0.95037, 0.75797, 1.0484, 1.11336, 0.65038, 0.99541],
    TrainingType.SDXL_TEXTUAL_INVERSION: [0.96235, 0.75109, 1.05634, 1.10934, 0.63065, 0.99576],
    TrainingType.SDXL_FINETUNE: [0.95037, 0.78951, 0.97301, 1.07282, 0.58025, 0.84616],
}


def settings_of(training_type: TrainingType, **changes: Any) -> Any:
    """Settings of a short run; captions hold the word that an inversion learns."""
    if training_type is TrainingType.FLUX_LORA:
        return replace(PARAMETERS, **changes)
    word = WORD if training_type is TrainingType.SDXL_TEXTUAL_INVERSION else ""
    return replace(SDXL_PARAMETERS, trigger_word=word, **changes)


def checkpoint_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read all that a checkpoint holds in tensors: weights, states, the running mean, generators and losses."""
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 2
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    ("training_type", "rate", "share"),
    [
        (TrainingType.FLUX_LORA, 0.03, 0.9),
        (TrainingType.SDXL_LORA, 0.03, 0.95),
        (TrainingType.SDXL_TEXTUAL_INVERSION, 1.0, 0.998),
        (TrainingType.SDXL_FINETUNE, 0.01, 0.75),
    ],
)
def test_a_few_images_are_learned_by_heart(
    build: BuildTrainer, training_type: TrainingType, rate: float, share: float
) -> None:
    """The loss on fixed samples falls; how far random weights of another base let it is in the table."""
    settings = settings_of(
        training_type,
        batch_size=3,
        max_train_steps=40,
        lora_rank=16,
        learning_rate=rate,
        lora_targets=LoraTargets.ALL_LINEAR,
    )
    trainer = build(settings, training_type)
    before = trainer.fixed_loss(0, never)
    take_steps(trainer, 1, 40)

    assert trainer.fixed_loss(40, never) < share * before


@pytest.mark.parametrize(("training_type", "golden"), GOLDEN.items())
def test_the_curve_is_the_one_that_it_always_was(
    build: BuildTrainer, training_type: TrainingType, golden: list[float]
) -> None:
    """A change of any part of a step shows here; one that is meant is written down again."""
    trainer = build(settings_of(training_type), training_type)

    assert pytest.approx(golden, rel=2e-3) == [*take_steps(trainer, 1, 5), trainer.fixed_loss(5, never)]


@pytest.mark.parametrize("training_type", TrainingType)
@pytest.mark.parametrize("optimizer", OptimizerName)
def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(
    tmp_path: Path, build: BuildTrainer, training_type: TrainingType, optimizer: OptimizerName
) -> None:
    """To the last bit: losses, rates, weights and their running mean."""
    rate = 1.0 if optimizer is OptimizerName.PRODIGY else 0.01
    settings = settings_of(training_type, optimizer=optimizer, learning_rate=rate, **ALL_AT_ONCE)
    trainer = build(settings, training_type)
    take_steps(trainer, 1, 3)
    save_checkpoint(tmp_path / "step", trainer, DATASET, TALLY)
    expected = take_steps(trainer, 4, 6)

    other = build(settings, training_type)
    assert load_checkpoint(tmp_path / "step", other, DATASET) == TALLY

    assert expected == take_steps(other, 4, 6)
    assert trainer.rate == other.rate
    torch.testing.assert_close(weights(trainer), weights(other), rtol=0, atol=0)
    with trainer.result_weights(), other.result_weights():
        torch.testing.assert_close(weights(trainer), weights(other), rtol=0, atol=0)


@pytest.mark.parametrize("training_type", TrainingType)
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_that_goes_on_from_any_step_ends_with_the_same_weights(
    write_run: WriteRun, train: Train, training_type: TrainingType, step: int
) -> None:
    """As one that was not interrupted, to the last bit; here through the program, from the checkpoint of that step."""
    word = WORD if training_type is TrainingType.SDXL_TEXTUAL_INVERSION else ""
    common = {
        "training_type": training_type,
        "checkpoint_every": 1,
        "keep_checkpoints": 6,
        "trigger_word": word,
        "ema_decay": 0.5,
    }
    whole = write_run("whole", **common)
    _, records = train(whole)
    saved = {record.step: record.path for record in records if isinstance(record, CheckpointRecord)}

    resumed = write_run("resumed", **common, resume_from=saved[step])
    code, others = train(resumed)

    done, other = records[-1], others[-1]
    assert code == 0
    assert list(range(step + 1, 7)) == [record.step for record in others if isinstance(record, StepRecord)]
    assert isinstance(done, DoneRecord)
    assert isinstance(other, DoneRecord)
    assert (done.first_loss, done.last_loss, done.fixed_loss_before, done.fixed_loss_after) == (
        other.first_loss,
        other.last_loss,
        other.fixed_loss_before,
        other.fixed_loss_after,
    )
    last = Path(saved[6]).name
    first, second = (checkpoint_weights(run / "attempt" / "checkpoints" / last) for run in (whole, resumed))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("training_type", [TrainingType.FLUX_LORA, TrainingType.SDXL_LORA, TrainingType.SDXL_FINETUNE])
def test_text_encoders_learn_at_their_own_rate(build: BuildTrainer, training_type: TrainingType) -> None:
    """And only where the job asks for it."""
    settings = settings_of(training_type, train_text_encoder=True, text_encoder_learning_rate=1e-9)
    trainer = build(settings, training_type)
    plain = build(replace(settings, train_text_encoder=False), training_type)
    before = weights(trainer)
    take_steps(trainer, 1, 2)
    moved = {name: (weight - before[name]).abs().max().item() for name, weight in weights(trainer).items()}
    encoders = [change for name, change in moved.items() if name.startswith("text_encoder")]

    assert not [name for name in weights(plain) if name.startswith("text_encoder")]
    assert 0 < max(encoders) < 1e-7
    assert max(change for name, change in moved.items() if not name.startswith("text_encoder")) > 1e-3


def test_a_rate_follows_its_schedule(write_run: WriteRun, train: Train) -> None:
    """It rises for two steps, then falls to nothing; each record has the rate of its own step."""
    _, records = train(write_run(lr_scheduler=LrScheduler.LINEAR, lr_warmup_steps=2, learning_rate=0.01))
    rates = [record.learning_rate for record in records if isinstance(record, StepRecord)]

    assert pytest.approx([0, 0.005, 0.01, 0.0075, 0.005, 0.0025]) == rates


def test_a_running_mean_is_the_result(build: BuildTrainer) -> None:
    """After the run the weights that learn are what they were."""
    trainer = build(settings_of(TrainingType.FLUX_LORA, ema_decay=0.9))
    take_steps(trainer, 1, 3)
    last = weights(trainer)
    with trainer.result_weights():
        mean = weights(trainer)

    torch.testing.assert_close(last, weights(trainer), rtol=0, atol=0)
    assert any(not torch.equal(last[name], mean[name]) for name in last)


def test_a_finetune_of_16_bits_learns_with_small_steps(build: BuildTrainer) -> None:
    """Updates that bfloat16 would round to nothing are rounded up as often as they should be."""
    kind = TrainingType.SDXL_FINETUNE
    settings = settings_of(
        kind, weight_dtype=WeightDtype.BFLOAT16, learning_rate=1e-5, optimizer=OptimizerName.ADAFACTOR
    )
    trainer = build(settings, kind)
    assert trainer.rounding is not None
    before = weights(trainer)["unet.conv_in.weight"]
    take_steps(trainer, 1, 3)
    after = weights(trainer)["unet.conv_in.weight"]

    assert torch.bfloat16 == after.dtype
    assert not torch.equal(before, after)


@pytest.mark.parametrize("training_type", TrainingType)
def test_accumulation_gives_the_gradients_of_one_large_batch(build: BuildTrainer, training_type: TrainingType) -> None:
    """Whatever learns."""

    def gradients(batch_size: int, accumulation: int) -> list[torch.Tensor]:
        settings = settings_of(training_type, batch_size=batch_size, gradient_accumulation_steps=accumulation)
        trainer = build(settings, training_type)
        trainer.accumulate(1, never)
        return [weight.grad for group in trainer.pipeline.groups() for weight in group["params"]]

    whole = gradients(4, 1)

    assert any(gradient.abs().max() > 0 for gradient in whole)
    torch.testing.assert_close(whole, gradients(1, 4), rtol=1e-3, atol=1e-6)

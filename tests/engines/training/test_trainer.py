"""Single steps of training, and the checkpoints that keep what they did."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from tests.engines.trainers import DATASET, BuildTrainer, never, take_steps, weights

from training_schemas.progress import FailureReason
from training_schemas.spec import FluxLoraParameters, WeightDtype
from training_worker.engines.common.protocol.failures import TrainingFailure, TrainingStopped
from training_worker.engines.diffusers.diffusion.sample_order import Sample
from training_worker.engines.diffusers.training import checkpoints
from training_worker.engines.diffusers.training.checkpoints import (
    STATE_FILE,
    TENSORS_FILE,
    CheckpointError,
    Tally,
    load_checkpoint,
    save_checkpoint,
)

pytestmark = pytest.mark.trainer

TALLY = Tally(losses=[1.5, 1.3, 1.25], fixed_loss_before=1.375)


def test_the_same_seed_gives_the_same_weights(build: BuildTrainer, parameters: FluxLoraParameters) -> None:
    """And another seed gives others."""
    trainers = [build(parameters), build(parameters), build(replace(parameters, seed=8))]
    for trainer in trainers:
        take_steps(trainer, 1, 3)
    first, second, other = map(weights, trainers)

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_accumulation_gives_the_gradients_of_one_large_batch(
    build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """A job that ran out of memory can take smaller batches and learn the same."""

    def gradients(batch_size: int, accumulation: int) -> list[torch.Tensor]:
        settings = replace(parameters, batch_size=batch_size, gradient_accumulation_steps=accumulation)
        trainer = build(settings)
        trainer.accumulate(1, never)
        return [weight.grad for weight in trainer.pipeline.denoiser.parameters() if weight.grad is not None]

    whole = gradients(4, 1)

    assert any(gradient.abs().max() > 0 for gradient in whole)
    torch.testing.assert_close(whole, gradients(1, 4), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(whole, gradients(2, 2), rtol=1e-4, atol=1e-7)


def test_gradient_checkpointing_changes_memory_and_nothing_else(
    build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """Activations are computed again instead of kept."""
    kept, again = build(parameters), build(replace(parameters, gradient_checkpointing=True))

    assert again.pipeline.denoiser.is_gradient_checkpointing
    assert take_steps(kept, 1, 3) == take_steps(again, 1, 3)


def test_only_the_adapter_learns_and_in_float32(build: BuildTrainer, parameters: FluxLoraParameters) -> None:
    """Updates of a small rate would be lost in the 16 bits of the base."""
    trainer = build(replace(parameters, weight_dtype=WeightDtype.BFLOAT16))
    base = {name: weight.clone() for name, weight in trainer.pipeline.denoiser.named_parameters() if "lora" not in name}
    before = weights(trainer)
    take_steps(trainer, 1, 2)
    after = dict(trainer.pipeline.denoiser.named_parameters())

    assert {torch.float32} == {weight.dtype for weight in before.values()}
    assert {torch.bfloat16} == {weight.dtype for weight in base.values()}
    torch.testing.assert_close(base, {name: after[name].data for name in base}, rtol=0, atol=0)
    assert any(not torch.equal(before[key], weight) for key, weight in weights(trainer).items())


def test_the_adapter_sits_on_all_attention_of_both_kinds_of_blocks(
    build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """Two double blocks of eight layers, two single blocks of three, each with A and B of the rank."""
    adapter = weights(build(parameters))

    assert 2 * (2 * 8 + 2 * 3) == len(adapter)
    assert (4, 32) == adapter["transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight"].shape
    assert (32, 4) == adapter["transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight"].shape


def test_a_stop_within_a_step_undoes_the_step(build: BuildTrainer, parameters: FluxLoraParameters) -> None:
    """So that the run can go on from a checkpoint as if it had never begun that step."""
    settings = replace(parameters, gradient_accumulation_steps=3)
    plain, stopped = build(settings), build(settings)
    checks = iter([False, False, True])

    def stop_at_third() -> None:
        if next(checks):
            raise TrainingStopped("test")

    with pytest.raises(TrainingStopped):
        stopped.step(1, stop_at_third)

    assert take_steps(plain, 1, 2) == take_steps(stopped, 1, 2)


def test_a_loss_that_is_no_number_ends_training_before_it_spoils_the_weights(
    build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """The failure names the step."""
    trainer = build(parameters)
    take_steps(trainer, 1, 1)
    before = weights(trainer)
    with torch.no_grad():
        trainer.pipeline.denoiser.proj_out.bias.fill_(torch.nan)

    with pytest.raises(TrainingFailure, match="the loss of step 2 is nan") as raised:
        trainer.step(2, never)

    assert FailureReason.LOSS_NOT_FINITE == raised.value.reason
    torch.testing.assert_close(before, weights(trainer), rtol=0, atol=0)


def test_a_gradient_that_is_no_number_is_distinguished_from_such_a_loss(
    build: BuildTrainer, parameters: FluxLoraParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It too leaves the weights as they were."""
    trainer = build(parameters)
    before = weights(trainer)
    plain = trainer._losses

    def poisoned(*arguments: Any) -> torch.Tensor:
        losses = plain(*arguments)
        losses.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[no-untyped-call]
        return losses

    monkeypatch.setattr(trainer, "_losses", poisoned)

    with pytest.raises(TrainingFailure, match=r"the gradient of step 1 is (nan|inf)"):
        trainer.step(1, never)

    torch.testing.assert_close(before, weights(trainer), rtol=0, atol=0)


def test_a_step_reads_from_its_device_once(
    build: BuildTrainer, parameters: FluxLoraParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the optimizer's turn, and however many micro-batches it has: each read waits for all that was asked."""
    trainer = build(replace(parameters, batch_size=1, gradient_accumulation_steps=4))
    # What is drawn is drawn on the CPU, and reading that waits for nobody.
    drawn = [trainer._draw((Sample(number, 0),)) for number in range(4)]
    monkeypatch.setattr(trainer.batches, "next_step", lambda *_: [])
    monkeypatch.setattr(trainer._prefetcher, "take", lambda _: iter(drawn))
    monkeypatch.setattr(trainer, "_draws_ahead", False)
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
    monkeypatch.setattr(trainer.schedule, "step", lambda: None)
    reads: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        plain = getattr(torch.Tensor, name)

        def read(tensor: torch.Tensor, *, name: str = name, plain: Callable[..., Any] = plain) -> Any:
            reads.append(name)
            return plain(tensor)

        monkeypatch.setattr(torch.Tensor, name, read)

    trainer.step(1, never)

    assert reads == ["tolist"]


def test_the_fixed_loss_leaves_no_trace(build: BuildTrainer, parameters: FluxLoraParameters) -> None:
    """It is the same twice, and training goes on as without it."""
    plain, measured = build(parameters), build(parameters)

    assert measured.fixed_loss(0, never) == measured.fixed_loss(0, never)
    assert take_steps(plain, 1, 2) == take_steps(measured, 1, 2)


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(
    tmp_path: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """To the last bit, in the middle of a pass over the data set."""
    trainer = build(parameters)
    take_steps(trainer, 1, 3)
    save_checkpoint(tmp_path / "step", trainer, DATASET, TALLY)
    losses = take_steps(trainer, 4, 6)

    other = build(parameters)
    tally = load_checkpoint(tmp_path / "step", other, DATASET)

    assert TALLY == tally
    assert losses == take_steps(other, 4, 6)
    torch.testing.assert_close(weights(trainer), weights(other), rtol=0, atol=0)


def test_a_checkpoint_of_before_begins_with_the_images_that_waited(
    tmp_path: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """For others of their shape, which no image does any more; samples are counted on from those that were drawn."""
    trainer = build(parameters)
    take_steps(trainer, 1, 3)
    save_checkpoint(tmp_path / "step", trainer, DATASET, TALLY)
    state = json.loads((tmp_path / "step" / STATE_FILE).read_bytes())
    (tmp_path / "step" / STATE_FILE).write_text(json.dumps({**state, "order": [0, 1], "waiting": [2]}))

    other = build(parameters)
    load_checkpoint(tmp_path / "step", other, DATASET)

    assert other.batches.next_step() == [(Sample(6, 2), Sample(7, 0))]
    assert other.batches.state().order[0] == 1


def test_a_checkpoint_leaves_no_partial_folder(
    tmp_path: Path, build: BuildTrainer, parameters: FluxLoraParameters
) -> None:
    """Also where an earlier try was killed half-way."""
    (tmp_path / ".step.partial").mkdir()
    save_checkpoint(tmp_path / "step", build(parameters), DATASET, TALLY)

    assert ["step"] == [path.name for path in tmp_path.iterdir()]


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, build: BuildTrainer, parameters: FluxLoraParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, half a checkpoint would only be in the way."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", fail)

    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "step", build(parameters), DATASET, TALLY)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", [STATE_FILE, TENSORS_FILE, "pytorch_lora_weights.safetensors"])
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(
    tmp_path: Path, build: BuildTrainer, parameters: FluxLoraParameters, file: str
) -> None:
    """Whichever of its files is damaged."""
    trainer = build(parameters)
    take_steps(trainer, 1, 1)
    save_checkpoint(tmp_path / "step", trainer, DATASET, TALLY)
    content = (tmp_path / "step" / file).read_bytes()
    (tmp_path / "step" / file).write_bytes(content[: len(content) // 2])
    other, fresh = build(parameters), build(parameters)

    with pytest.raises(CheckpointError, match="cannot resume from"):
        load_checkpoint(tmp_path / "step", other, DATASET)

    assert take_steps(fresh, 1, 2) == take_steps(other, 1, 2)


@pytest.mark.parametrize(("rank", "dataset"), [(4, "another"), (8, DATASET)])
def test_a_checkpoint_of_another_job_is_refused(
    tmp_path: Path, build: BuildTrainer, parameters: FluxLoraParameters, rank: int, dataset: str
) -> None:
    """Its order would point to other images, its weights would not fit."""
    save_checkpoint(tmp_path / "step", build(parameters), DATASET, TALLY)

    with pytest.raises(CheckpointError, match=r"another|other"):
        load_checkpoint(tmp_path / "step", build(replace(parameters, lora_rank=rank)), dataset)

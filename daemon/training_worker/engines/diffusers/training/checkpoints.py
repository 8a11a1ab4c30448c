"""Checkpoints: all that a later attempt needs to go on as if nothing had happened.

A checkpoint is a folder which is either complete or not there. It holds the file of the weights that learn, the tensors
of the optimizer, of the running mean, of the generators and of the losses so far, and the rest as JSON; nothing in it
is pickled.
"""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from training_worker.engines.common.protocol.fsync import flush
from training_worker.engines.diffusers.diffusion.sample_order import OrderState
from training_worker.engines.diffusers.training.trainer import Trainer

TENSORS_FILE = "training.safetensors"
STATE_FILE = "state.json"
SHUFFLER = "shuffler"
ROUNDING = "rounding"
LOSSES = "losses"
OPTIMIZER = "optimizer."
MEAN = "mean."
SHARED = {"qmap1", "qmap2"}


class Tally(msgspec.Struct, kw_only=True):
    """How far the job is: the loss of each optimizer step that was taken, and that of fixed samples before them all."""

    losses: list[float]
    fixed_loss_before: float

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return len(self.losses)


class CheckpointState(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of a checkpoint.

    ``dataset`` is the hash of the data set that ``order`` points into, and ``drawn`` counts the samples so far. In
    checkpoints from before steps were drawn as a whole, ``waiting`` are images that had not found others of their
    shape: they come first. ``groups`` are the numbers of the optimizer's groups of weights, ``schedule`` is where the
    learning rate stands, ``averaged`` how many steps are in the running mean.
    """

    fixed_loss_before: float
    dataset: str
    drawn: int
    order: list[int]
    optimizer: str
    groups: list[dict[str, Any]]
    schedule: dict[str, Any]
    averaged: int
    waiting: list[int] = []


class CheckpointError(Exception):
    """A checkpoint cannot be resumed from."""


def save_checkpoint(folder: Path, trainer: Trainer, dataset: str, tally: Tally) -> None:
    """Write a checkpoint beside its place, flush it, and move it there; a failed try leaves nothing behind."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_files(partial, trainer, dataset, tally)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # of a full disk above all
        raise
    flush(folder.parent)


def load_checkpoint(folder: Path, trainer: Trainer, dataset: str) -> Tally:
    """Read a checkpoint back; nothing is changed before all of it has been read.

    Raises:
        CheckpointError: It is missing, damaged, or of other settings or another data set.
    """
    try:
        state = _read_state(folder, dataset, _name(trainer.optimizer))
        tensors = load_file(folder / TENSORS_FILE)
        weights = load_file(folder / trainer.pipeline.weights_file)
        _require_same_shapes(weights, trainer.pipeline.weights())
    except (OSError, ValueError, msgspec.DecodeError, SafetensorError) as error:
        raise CheckpointError(f"cannot resume from {folder}: {error}") from error
    trainer.pipeline.restore(weights)
    shuffler = tensors.pop(SHUFFLER)
    trainer.batches.restore(OrderState(drawn=state.drawn, shuffler=shuffler, order=[*state.waiting, *state.order]))
    losses = tensors.pop(LOSSES).tolist()
    if trainer.rounding is not None:
        trainer.rounding.set_state(tensors.pop(ROUNDING))
    _restore_mean(trainer, tensors, state.averaged)
    _unpack_optimizer(trainer.optimizer, state.groups, tensors)
    # Its functions of the step are those that it was made with.
    functions = {"lr_lambdas": [None] * len(state.groups)}
    trainer.schedule.load_state_dict({**state.schedule, **functions})
    return Tally(losses=losses, fixed_loss_before=state.fixed_loss_before)


def _write_files(folder: Path, trainer: Trainer, dataset: str, tally: Tally) -> None:
    batches, averages = trainer.batches.state(), trainer.averages
    save_file(_contiguous(trainer.pipeline.weights()), folder / trainer.pipeline.weights_file)
    tensors = {
        **{f"{OPTIMIZER}{key}": tensor for key, tensor in _flat_state(trainer.optimizer)},
        **({} if averages is None else {f"{MEAN}{i}": mean for i, mean in enumerate(averages.shadow_params)}),
        **({} if trainer.rounding is None else {ROUNDING: trainer.rounding.get_state()}),
        SHUFFLER: batches.shuffler,
        LOSSES: torch.tensor(tally.losses, dtype=torch.float64),
    }
    save_file(_contiguous(tensors), folder / TENSORS_FILE)
    state = CheckpointState(
        fixed_loss_before=tally.fixed_loss_before,
        dataset=dataset,
        drawn=batches.drawn,
        order=batches.order,
        optimizer=_name(trainer.optimizer),
        groups=[_numbers(group) for group in trainer.optimizer.param_groups],
        schedule=_numbers(trainer.schedule.state_dict()),
        averaged=0 if averages is None else averages.optimization_step,
    )
    (folder / STATE_FILE).write_bytes(msgspec.json.encode(state))
    for path in [*folder.iterdir(), folder]:
        flush(path)


def _name(optimizer: torch.optim.Optimizer) -> str:
    return type(optimizer).__name__


def _read_state(folder: Path, dataset: str, optimizer: str) -> CheckpointState:
    state = msgspec.json.decode((folder / STATE_FILE).read_bytes(), type=CheckpointState)
    if state.dataset != dataset:
        raise ValueError("the data set holds other images or captions now")
    if state.optimizer != optimizer:
        raise ValueError(f"it is of optimizer {state.optimizer}, and the job's is {optimizer}")
    return state


def _require_same_shapes(weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> None:
    if {name: weight.shape for name, weight in weights.items()} != {name: one.shape for name, one in own.items()}:
        raise ValueError("it holds other weights than those that learn in this job")


def _restore_mean(trainer: Trainer, tensors: dict[str, torch.Tensor], averaged: int) -> None:
    if trainer.averages is None:
        return
    means = [tensors.pop(f"{MEAN}{index}") for index in range(len(trainer.averages.shadow_params))]
    trainer.averages.optimization_step = averaged
    for mean, saved in zip(trainer.averages.shadow_params, means, strict=True):
        mean.copy_(saved)


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """What of a group or a schedule is a number, or a list of them; JSON knows none that is not finite."""
    return {key: value for key, value in values.items() if _is_number(value) or _are_numbers(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and bool(values) and all(map(_is_number, values))


def _flat_state(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """Flatten the optimizer's state to ``<parameter's index>.<name>``, with more names between where it is nested."""
    for index, state in optimizer.state_dict()["state"].items():
        yield from _flat(str(index), state)


def _flat(prefix: str, state: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in state.items():
        key = f"{prefix}.{name}"
        if isinstance(value, dict):
            yield from _flat(key, value)
        elif not isinstance(value, torch.Tensor):
            # Some count their steps in a number of Python's.
            yield key, torch.tensor(value)
        else:
            # States in 8 bits share their map of values, and a file of safetensors shares nothing.
            yield key, value.clone() if name in SHARED else value


def _unpack_optimizer(
    optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], tensors: dict[str, torch.Tensor]
) -> None:
    """Undo `_flat_state`, and set the numbers of the groups."""
    state: dict[Any, Any] = {}
    for key, tensor in tensors.items():
        index, *folders, name = key.removeprefix(OPTIMIZER).split(".")
        place = state.setdefault(int(index), {})
        for folder in folders:
            place = place.setdefault(folder, {})
        # What was a number has no dimension, and is whole; torch's own counts are not.
        place[name] = tensor.item() if tensor.ndim == 0 and not tensor.is_floating_point() else tensor
    own = optimizer.state_dict()
    numbers = [{**group, **saved} for group, saved in zip(own["param_groups"], groups, strict=True)]
    optimizer.load_state_dict({**own, "param_groups": numbers, "state": state})

"""Checkpoints: all that a later attempt needs to go on as if nothing had happened.

A checkpoint is a folder which is either complete or not there. It holds the adapter's file, the tensors of the
optimizer and of the batches' generator, and the rest as JSON; nothing in it is pickled.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec.structs import replace
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from training_worker.engines.diffusers.adapters import read_adapter, restore_adapter, save_adapter
from training_worker.engines.diffusers.batches import BatchState
from training_worker.engines.diffusers.trainer import Trainer

FOLDER = "checkpoints"
TENSORS_FILE = "training.safetensors"
STATE_FILE = "state.json"
GENERATOR = "generator"
SHARED = {"qmap1", "qmap2"}


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """How far the job is: optimizer steps taken, the losses of the first and the last, and that before them all."""

    step: int
    first_loss: float
    last_loss: float
    fixed_loss_before: float

    def after_step(self, loss: float) -> "Tally":
        """Count one more step."""
        first_loss = self.first_loss if self.step else loss
        return replace(self, step=self.step + 1, first_loss=first_loss, last_loss=loss)


class CheckpointState(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of a checkpoint; ``images`` are the data set's files by name, which ``order`` points into."""

    tally: Tally
    images: list[str]
    order: list[int]


class CheckpointError(Exception):
    """A checkpoint cannot be resumed from."""


def save_checkpoint(folder: Path, trainer: Trainer, images: list[str], tally: Tally) -> None:
    """Write a checkpoint beside its place, flush it, and move it there; a failed try leaves nothing behind."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_files(partial, trainer, images, tally)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # of a full disk above all
        raise
    flush(folder.parent)


def load_checkpoint(folder: Path, trainer: Trainer, images: list[str]) -> Tally:
    """Read a checkpoint back; nothing is changed before all of it has been read.

    Raises:
        CheckpointError: It is missing, damaged, or of another adapter or data set.
    """
    try:
        state = _read_state(folder, images)
        tensors = load_file(folder / TENSORS_FILE)
        weights = read_adapter(trainer.transformer, folder)
    except (OSError, ValueError, msgspec.DecodeError, SafetensorError) as error:
        raise CheckpointError(f"cannot resume from {folder}: {error}") from error
    restore_adapter(trainer.transformer, weights)
    trainer.batches.restore(BatchState(generator=tensors.pop(GENERATOR), order=state.order))
    _unpack_optimizer(trainer.optimizer, tensors)
    return state.tally


def flush(path: Path) -> None:
    """Make sure that a file or a folder survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_files(folder: Path, trainer: Trainer, images: list[str], tally: Tally) -> None:
    batches = trainer.batches.state()
    save_adapter(trainer.transformer, folder)
    save_file({**_pack_optimizer(trainer.optimizer), GENERATOR: batches.generator}, folder / TENSORS_FILE)
    state = CheckpointState(tally=tally, images=images, order=batches.order)
    (folder / STATE_FILE).write_bytes(msgspec.json.encode(state))
    for path in [*folder.iterdir(), folder]:
        flush(path)


def _read_state(folder: Path, images: list[str]) -> CheckpointState:
    state = msgspec.json.decode((folder / STATE_FILE).read_bytes(), type=CheckpointState)
    if state.images != images:
        raise ValueError("the data set holds other images now")
    return state


def _pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Flatten the optimizer's state to ``<parameter's index>.<name>``, with more names between where it is nested."""
    return dict(_flat_state(optimizer))


def _flat_state(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
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


def _unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Undo `_pack_optimizer`; the rates are those of the run that resumes."""
    state: dict[Any, Any] = {}
    for key, tensor in tensors.items():
        index, *folders, name = key.split(".")
        place = state.setdefault(int(index), {})
        for folder in folders:
            place = place.setdefault(folder, {})
        # What was a number has no dimension, and is whole; torch's own counts are not.
        place[name] = tensor.item() if tensor.ndim == 0 and not tensor.is_floating_point() else tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

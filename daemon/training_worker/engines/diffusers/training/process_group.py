"""Data parallelism: the processes that train one job together, one on each GPU.

The micro-batches of a step are dealt out to them, which may leave one without; gradients are then summed, and every
process takes the same optimizer step. So a job gives the same on one GPU and on several, but for the order of sums.

accelerate sets the group up. Tensors go by the backend that suits the device, everything else by gloo: it notices at
once when a process is gone, where NCCL would wait.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed

from training_worker.engines.common.protocol.failures import TrainingStopped
from training_worker.engines.common.protocol.gpu_memory import peak_vram_mib
from training_worker.engines.diffusers.training.worker_processes import LEADER

RENDEZVOUS_FILE = "rendezvous"

# The others wait for as long as the leader encodes, draws images or exports. That it has ended, they see at once.
TIMEOUT = timedelta(hours=6)

# Bytes of gradients that travel together: each piece is copied once. The planner counts one of them.
PIECE = 32 * 2**20

# All processes are on one host.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


class SingleProcess:
    """A job on one GPU: there is no other process to share with."""

    rank = LEADER
    size = 1

    def join(self) -> None:
        """Wait until all processes are there."""

    def broadcast(self, value: int) -> int:
        """Send the leader's value to all processes, and return it."""
        return value

    def share(self, weights: Iterable[torch.Tensor]) -> None:
        """Give all processes the leader's weights."""

    def give_up(self) -> None:
        """The leader stops: notify the others that this step is not taken."""

    def sum_step(self, weights: Sequence[torch.Tensor], loss: torch.Tensor) -> None:
        """Make the loss, and each weight's gradient, the sum of all processes' losses and gradients.

        Raises:
            TrainingStopped: The leader has given up the step.
        """

    def peak_mib(self) -> int | None:
        """The most that any process has held of its GPU at its last step, in MiB; None without GPUs."""
        return peak_vram_mib()


class ProcessGroup(SingleProcess):
    """The process of a ``rank`` among ``size`` of them, which meet in a run folder."""

    def __init__(self, folder: Path, rank: int, size: int, device: str) -> None:
        self.rank = rank
        self.size = size
        self._folder = folder
        self._device = device
        self._control: Any = None
        self._peaks: list[int] = []

    def join(self) -> None:
        # What a launcher would set: accelerate asks for it.
        ranks = {"RANK": self.rank, "LOCAL_RANK": self.rank, "WORLD_SIZE": self.size, "LOCAL_WORLD_SIZE": self.size}
        os.environ.update(LOOPBACK | {name: str(value) for name, value in ranks.items()})
        PartialState(
            cpu=self._device == "cpu",
            rank=self.rank,
            world_size=self.size,
            init_method=f"file://{self._folder / RENDEZVOUS_FILE}",
            timeout=TIMEOUT,
        )
        self._control = distributed.new_group(backend="gloo", timeout=TIMEOUT)

    def broadcast(self, value: int) -> int:
        sent = [value]
        distributed.broadcast_object_list(sent, src=LEADER, group=self._control)
        return sent[0]

    def share(self, weights: Iterable[torch.Tensor]) -> None:
        for weight in weights:
            distributed.broadcast(weight.detach(), src=LEADER)

    def give_up(self) -> None:
        self._gather(None)

    def sum_step(self, weights: Sequence[torch.Tensor], loss: torch.Tensor) -> None:
        self._agree_on_gradients(weights)
        distributed.all_reduce(loss)
        for piece in _pieces(weight.grad for weight in weights if weight.grad is not None):
            flat = torch.cat([gradient.flatten() for gradient in piece])
            distributed.all_reduce(flat)
            for gradient, summed in zip(piece, torch.split(flat, [one.numel() for one in piece]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def _agree_on_gradients(self, weights: Sequence[torch.Tensor]) -> None:
        """Give a weight that another process has used a gradient of zeros; one that none has used keeps none.

        So collectives are the same in all of them, and no optimizer decays a weight that one process alone would leave.
        """
        gathered = self._gather(bytes(weight.grad is not None for weight in weights))
        used = [one for one in gathered if one is not None]
        if len(used) < self.size:
            raise TrainingStopped("leader")
        for weight, *owners in zip(weights, *used, strict=True):
            if weight.grad is None and any(owners):
                weight.grad = torch.zeros_like(weight)

    def _gather(self, used: bytes | None) -> list[bytes | None]:
        """What each process gives: a byte for each weight, or nothing where it gives up."""
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, (used, peak_vram_mib()), group=self._control)
        self._peaks += [peak for _, peak in found if peak is not None]
        self._peaks = [max(self._peaks)] if self._peaks else []
        return [one for one, _ in found]

    def peak_mib(self) -> int | None:
        own = peak_vram_mib()
        return max([*self._peaks, *([] if own is None else [own])], default=None)


def _pieces(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors of one type that follow each other, up to `PIECE` bytes; a larger one is alone."""
    piece: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        if piece and (size + tensor.nbytes > PIECE or tensor.dtype is not piece[0].dtype):
            yield piece
            piece, size = [], 0
        piece.append(tensor)
        size += tensor.nbytes
    if piece:
        yield piece

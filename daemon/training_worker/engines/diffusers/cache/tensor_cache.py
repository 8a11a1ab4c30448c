"""The cache on disk: what encoders made of images and captions, for later attempts and the host's other jobs.

``entries`` holds one file a value, as many as the limit allows. ``runs`` holds a folder for each run that is open, with
a hard link to each entry that it has used: what others evict meanwhile it still has.

Nothing is flushed, for all of it can be made again. A loss of power may cut files off; safetensors' header states
how long a file must be, so that this is noticed.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from os import stat_result, utime
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from training_schemas.progress import FailureReason
from training_worker.engines.common.protocol.failures import TrainingFailure
from training_worker.engines.diffusers.cache.locked_folders import held_folder, is_unfinished_for_long, remove_abandoned

ENTRIES = "entries"
RUNS = "runs"
SUFFIX = ".safetensors"
# Of the limit: what a run may write before it looks again whether all entries are within it.
UNCHECKED_SHARE = 1 / 16

Tensors = dict[str, torch.Tensor]


class TensorCache:
    """Values of some tensors each, by keys of `content_key`; what was got or put once is there until this is closed.

    Entries together have at most ``limit_bytes`` after each eviction: at the opening, at the closing, and between them
    whenever a sixteenth of it was written. What open runs hold beyond that counts for nobody.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self._entries = folder / ENTRIES
        self._limit_bytes = limit_bytes
        self._unchecked_bytes = 0
        self._held = ExitStack()

    def __enter__(self) -> Self:
        """Remove what dead runs left, and make this run's own folder.

        Raises:
            TrainingFailure: There can be no such folder here.
        """
        runs = self.folder / RUNS
        try:
            for path in (self._entries, runs):
                path.mkdir(parents=True, exist_ok=True)
            remove_abandoned(runs)
            evict(self._entries, self._limit_bytes)
            self._links = self._held.enter_context(held_folder(runs))
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            message = f"cannot use cache {self.folder}: {error.filename}: {error.strerror}"
            raise TrainingFailure(FailureReason.HOST_UNFIT, message) from error
        return self

    def __exit__(self, *_: object) -> None:
        with self._held:
            evict(self._entries, self._limit_bytes)

    def get(self, key: str) -> Tensors | None:
        """Read a value, on the CPU; None where there is none, or none that can be read, which is then removed."""
        entry, link = self._paths(key)
        try:
            if not link.exists():
                link.hardlink_to(entry)
        except FileNotFoundError:
            return None
        try:
            utime(link)  # the entry's too: they are one file
            tensors: Tensors = load(link.read_bytes())
        except (OSError, SafetensorError):
            for path in (entry, link):
                path.unlink(missing_ok=True)
            return None
        return tensors

    def put(self, key: str, tensors: Tensors) -> None:
        """Keep a value, in place of the one that there may be.

        Raises:
            OSError: It cannot be written, and nothing is left of it.
        """
        self._write(key, _pack(tensors))

    def get_or_make(self, key: str, make: Callable[[], Tensors]) -> Tensors:
        """Read a value, or make and keep it; what comes back is the same, to its place on the CPU.

        Raises:
            OSError: It cannot be written.
        """
        tensors = self.get(key)
        if tensors is None:
            content = _pack(make())
            self._write(key, content)
            tensors = load(content)
        return tensors

    def _write(self, key: str, content: bytes) -> None:
        entry, link = self._paths(key)
        unfinished = entry.with_name(f".{key}.{self._links.name}")
        entry.parent.mkdir(exist_ok=True)
        try:
            unfinished.write_bytes(content)
            link.unlink(missing_ok=True)
            # Before anybody can evict it.
            link.hardlink_to(unfinished)
            unfinished.rename(entry)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        self._unchecked_bytes += len(content)
        if self._unchecked_bytes > self._limit_bytes * UNCHECKED_SHARE:
            evict(self._entries, self._limit_bytes)
            self._unchecked_bytes = 0

    def _paths(self, key: str) -> tuple[Path, Path]:
        name = f"{key}{SUFFIX}"
        return self._entries / key[:2] / name, self._links / name


def evict(entries: Path, limit_bytes: int) -> None:
    """Remove the entries that were used longest ago, until the others together have at most ``limit_bytes``.

    What others were writing when they died goes too, after an hour. Others may evict at the same time: all begin at the
    same end, and so do not remove more than one of them would.
    """
    files = sorted(_files(entries), key=lambda file: file[1].st_mtime_ns)
    excess = sum(status.st_size for _, status in files) - limit_bytes
    for path, status in files:
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= status.st_size


def _files(entries: Path) -> Iterator[tuple[Path, stat_result]]:
    """List the entries, and remove what was begun and never finished."""
    for path in entries.glob("*/*"):
        if is_unfinished_for_long(path):
            path.unlink(missing_ok=True)
        elif not path.name.startswith("."):
            with suppress(FileNotFoundError):
                yield path, path.stat()


def _pack(tensors: Tensors) -> bytes:
    """Put tensors into a file's bytes, each copied: safetensors takes none that are strided or share their memory."""
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    content: bytes = save(copies)
    return content

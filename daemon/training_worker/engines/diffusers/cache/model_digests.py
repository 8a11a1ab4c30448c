"""Digests of a model's parts: what they make is the same only where their files are."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from training_schemas.progress import FailureReason
from training_worker.engines.common.protocol.failures import TrainingFailure
from training_worker.engines.diffusers.cache.keys import content_key

FOLDER = "digests"
# Weights, settings, and the vocabulary of a tokenizer (vocab.json, merges.txt, spiece.model).
SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model"})
BLOCK = 64 * 2**20


class FileState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a file, which a write to it changes: its size in bytes, its time of change, its inode."""

    size: int
    mtime_ns: int
    inode: int


class FileDigest(msgspec.Struct, frozen=True, kw_only=True):
    """The SHA-256 of a file's content, and the file's state before it was read."""

    state: FileState
    sha256: str


def model_digest(folder: Path, cache_folder: Path, check_stop: Callable[[], None]) -> str:
    """Hash a model's part, as a SHA-256 in hexadecimal: its weights and settings, by name and content.

    Reading gigabytes takes seconds, so what each file had is remembered in ``digests`` of the cache; a file of another
    size, time or inode is read again. ``check_stop`` is called before each 64 MiB that are read.

    Raises:
        TrainingFailure: The folder cannot be read, or holds no such file.
        OSError: The digest cannot be remembered; the disk is full.
    """
    with _reading(folder):
        files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not files:
        reason = f"no files of a model ({', '.join(sorted(SUFFIXES))})"
        raise TrainingFailure(FailureReason.MODEL_INVALID, f"cannot read model {folder}: {reason}")
    memory = cache_folder / FOLDER
    memory.mkdir(parents=True, exist_ok=True)
    return content_key("model", files=[(path.name, _file_digest(path, memory, check_stop)) for path in files])


def _file_digest(path: Path, memory: Path, check_stop: Callable[[], None]) -> str:
    with _reading(path):
        known_path = memory / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
        # Before the content: a file that is changed while it is read has another state the next time.
        state = _state(path)
    known = _recall(known_path)
    if known is not None and known.state == state:
        return known.sha256
    with _reading(path):
        sha256 = _hash(path, check_stop)
    # Written in place: one that is half written, or by two at once, is no JSON, and as good as none.
    known_path.write_bytes(msgspec.json.encode(FileDigest(state=state, sha256=sha256)))
    return sha256


def _state(path: Path) -> FileState:
    status = path.stat()
    return FileState(size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)


def _recall(path: Path) -> FileDigest | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=FileDigest)
    except (OSError, ValueError):
        return None


def _hash(path: Path, check_stop: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        check_stop()
        while block := file.read(BLOCK):
            digest.update(block)
            check_stop()
    return digest.hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"cannot read model {path}: {error.strerror}"
        raise TrainingFailure(FailureReason.MODEL_INVALID, message) from error

"""Digests of a model's parts."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.engines.trainers import never

from training_schemas.progress import FailureReason
from training_worker.engines.common.protocol.failures import TrainingFailure, TrainingStopped
from training_worker.engines.diffusers.cache import model_digests
from training_worker.engines.diffusers.cache.model_digests import model_digest

pytestmark = pytest.mark.trainer

WEIGHTS = "model.safetensors"
FILES = {WEIGHTS: b"weights", "config.json": b"{}", "merges.txt": b"a b", "spiece.model": b"vocabulary"}


def write_part(folder: Path) -> Path:
    """Write what looks like a part of a model."""
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """A part of a model."""
    return write_part(tmp_path / "part")


@pytest.fixture
def digest(tmp_path: Path) -> Callable[[Path], str]:
    """Digests that are remembered in one cache."""
    return lambda folder: model_digest(folder, tmp_path / "cache", never)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose content is read, as that begins."""
    names = []
    read = model_digests._hash

    def hash_and_note(path: Path, check_stop: Callable[[], None]) -> str:
        names.append(path.name)
        return read(path, check_stop)

    monkeypatch.setattr(model_digests, "_hash", hash_and_note)
    return names


def test_a_copy_of_a_part_is_the_same_part(part: Path, digest: Callable[[Path], str]) -> None:
    """Wherever it lies; what nothing is loaded from makes no difference."""
    copy = write_part(part.with_name("copy"))
    (copy / "README.md").write_text("read me")

    assert digest(part) == digest(copy)


@pytest.mark.parametrize("name", FILES)
def test_another_content_of_any_file_makes_another_part(part: Path, digest: Callable[[Path], str], name: str) -> None:
    """Of weights, settings and vocabulary alike, also where the length is the same."""
    before = digest(part)
    (part / name).write_bytes(FILES[name][::-1] if name != "config.json" else b"[]")

    assert before != digest(part)


def test_another_name_makes_another_part(part: Path, digest: Callable[[Path], str]) -> None:
    """Loaders choose by names."""
    before = digest(part)
    (part / WEIGHTS).rename(part / "other.safetensors")

    assert before != digest(part)


def test_files_are_read_once(part: Path, digest: Callable[[Path], str], hashed: list[str]) -> None:
    """Their digests are remembered."""
    first = digest(part)
    assert sorted(FILES) == hashed

    assert first == digest(part)
    assert sorted(FILES) == hashed


def touch(path: Path) -> None:
    """Change the time alone."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def lengthen(path: Path) -> None:
    """Change the size alone."""
    time = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes() + b"!")
    os.utime(path, ns=(0, time))


def swap(path: Path) -> None:
    """Change the inode alone."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize("change", [touch, lengthen, swap])
def test_a_file_that_may_have_changed_is_read_again(
    part: Path, digest: Callable[[Path], str], hashed: list[str], change: Callable[[Path], None]
) -> None:
    """And it alone."""
    digest(part)
    hashed.clear()
    change(part / WEIGHTS)

    digest(part)

    assert [WEIGHTS] == hashed


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b'{"state": {"size": 7, "mti', b"{}"])
def test_a_damaged_memory_is_as_good_as_none(
    tmp_path: Path, part: Path, digest: Callable[[Path], str], hashed: list[str], content: bytes
) -> None:
    """All is read again, and remembered."""
    first = digest(part)
    for path in (tmp_path / "cache" / "digests").iterdir():
        path.write_bytes(content)
    hashed.clear()

    assert [first] * 2 == [digest(part), digest(part)]
    assert sorted(FILES) == hashed


def test_a_stop_is_heeded_in_the_middle_of_a_file(
    tmp_path: Path, part: Path, digest: Callable[[Path], str], hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of it is not taken for the whole."""
    monkeypatch.setattr(model_digests, "BLOCK", 2)
    checks = itertools.count(1)

    def stop_in_the_second_file() -> None:
        if next(checks) == 4:
            raise TrainingStopped("signal")

    with pytest.raises(TrainingStopped):
        model_digest(part, tmp_path / "cache", stop_in_the_second_file)
    assert ["config.json", "merges.txt"] == hashed
    hashed.clear()

    digest(part)
    assert sorted(FILES.keys() - {"config.json"}) == hashed


def test_a_part_that_is_missing_or_empty_is_named(tmp_path: Path, digest: Callable[[Path], str]) -> None:
    """The model is at fault."""
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, why in [(empty, "no files of a model"), (tmp_path / "missing", "No such file or directory")]:
        with pytest.raises(TrainingFailure, match=f"cannot read model {folder}: {why}") as raised:
            digest(folder)
        assert FailureReason.MODEL_INVALID == raised.value.reason

"""The file system that is soon full."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

SIZE = 64 * 1024


def test_a_small_disk_holds_its_size_and_no_more(small_disk: Callable[[Path, int], Path], tmp_path: Path) -> None:
    """The byte too many is refused as by any full disk; what came before it is there."""
    file = small_disk(tmp_path / "disk", SIZE) / "file"
    file.write_bytes(bytes(SIZE))

    with file.open("ab", buffering=0) as opened, pytest.raises(OSError, match="No space left") as refused:
        opened.write(b"x")

    assert refused.value.errno == errno.ENOSPC
    assert file.stat().st_size == SIZE

"""A file system that is soon full."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mounted(path: Path, size_bytes: int) -> Iterator[Path]:
    """Mount an empty file system of that size, rounded up to whole pages; what was written is gone afterwards.

    Raises:
        PermissionError: mounting needs root, and a container that allows it.
    """
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "small-disk", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PermissionError(f"cannot mount a small disk: {done.stderr.strip()}")
    try:
        yield path
    finally:
        # Lazily: a process that still has a file open there keeps it, and fails no test.
        subprocess.run(["umount", "--lazy", str(path)], check=True)

"""Files that survive a loss of power."""

import os
from pathlib import Path


def flush(path: Path) -> None:
    """Make sure that a file or a folder survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Processes that are not ours to wait for."""

import os
import select


def is_gone(pid: int, timeout: float) -> bool:
    """Whether a process that may be a stranger's child ends within so many seconds."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], timeout)[0])
    finally:
        os.close(fd)

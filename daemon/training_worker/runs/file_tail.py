"""Reading a file while another process writes it, woken by the kernel instead of polling."""

import asyncio
import ctypes
import os
from collections.abc import AsyncIterator
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_IN_MODIFY = 0x2

_CHUNK = 64 * 1024


class FileWatch:
    """Wakes its waiter when a file was written to, by Linux's inotify(7)."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0 or _libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_MODIFY) < 0:
            number = ctypes.get_errno()
            if self._fd >= 0:
                os.close(self._fd)
            raise OSError(number, f"cannot watch file: {os.strerror(number)}", str(path))
        self.changed = asyncio.Event()
        self._loop.add_reader(self._fd, self._on_event)

    def _on_event(self) -> None:
        os.read(self._fd, 4096)
        self.changed.set()

    def close(self) -> None:
        """Stop watching."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


async def follow_lines(path: Path, ended: asyncio.Event) -> AsyncIterator[tuple[bytes, int]]:
    """Yield the whole lines of an existing file, as they are written, until ``ended`` is set and all is read.

    Each comes with the offset after it. A last line without an end is left out: its writer died while writing it.
    """
    watch = FileWatch(path)
    finish = asyncio.create_task(_set_after(ended, watch.changed), name="tail-end")
    rest, offset = b"", 0
    try:
        with path.open("rb") as file:
            while True:
                was_ended = ended.is_set()
                watch.changed.clear()
                while chunk := file.read(_CHUNK):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        offset += len(line) + 1
                        yield line, offset
                if was_ended:
                    return
                await watch.changed.wait()
    finally:
        finish.cancel()
        watch.close()


async def _set_after(first: asyncio.Event, then: asyncio.Event) -> None:
    await first.wait()
    then.set()


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a file that may be missing, large, or no text at all."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _CHUNK))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]
    except FileNotFoundError:
        return []

"""Standby: a trainer that has its libraries loaded before there is anything to train, and waits for a run.

Its standard input is a socket: it reports there that it is ready, and reads the path of a run folder, a line. The
daemon's end closes when the daemon ends.
"""

import os
import sys
from importlib import import_module
from pathlib import Path

from training_schemas.spec import STDERR_FILE, STDOUT_FILE

READY = b"ready\n"


def load_libraries() -> None:
    """Import all that a run may need, which takes seconds, but put nothing on the GPU."""
    import_module("training_worker.engines.diffusers.training.run")


def wait_for_run() -> Path | None:
    """Report that this trainer is ready, and wait for a run folder; None if the daemon ended or wants none.

    Until it returns SIGTERM ends the program at once: there is nothing to save. Raises `OSError` if the run's output
    cannot be opened.
    """
    os.write(sys.stdin.fileno(), READY)
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return None
    folder = Path(os.fsdecode(line[:-1]))
    _take(folder)
    return folder


def _take(folder: Path) -> None:
    # The standard output is last: to the daemon, the run has begun once it is there.
    _redirect(sys.stderr.fileno(), folder / STDERR_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    _redirect(sys.stdout.fileno(), folder / STDOUT_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    # Closes the socket, by which the daemon sees that the run is taken.
    _redirect(sys.stdin.fileno(), Path(os.devnull), os.O_RDONLY)


def _redirect(stream: int, path: Path, flags: int) -> None:
    file = os.open(path, flags, 0o666)
    os.dup2(file, stream)
    os.close(file)

"""A daemon that kills itself right before or right after one of its own steps.

python stepped_daemon.py claim.Claim.announce before run --config FILE
"""

import asyncio
import functools
import importlib
import os
import signal
import sys
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def wrap(function: Any, *, before: bool) -> Any:
    """The function, with this process's end at one of its ends."""

    @functools.wraps(function)
    async def step(*args: Any, **kwargs: Any) -> Any:
        if before:
            die()
        result = await function(*args, **kwargs)
        die()
        return result

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        if before:
            die()
        result = function(*args, **kwargs)
        die()
        return result

    return step if asyncio.iscoroutinefunction(function) else plain


def replace(path: str, *, before: bool) -> None:
    """Wrap the function that ``path`` names below the package."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(["training_worker", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:-1]:
            owner = getattr(owner, name)
        setattr(owner, parts[-1], wrap(getattr(owner, parts[-1]), before=before))
        return
    raise ModuleNotFoundError(path)


if __name__ == "__main__":
    step, when = sys.argv[1:3]
    del sys.argv[1:3]
    replace(step, before=when == "before")
    from training_worker.cli import main

    main()

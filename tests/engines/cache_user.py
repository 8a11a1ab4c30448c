"""A program that uses a cache as a run does: ``python -m tests.engines.cache_user COMMAND FOLDER ...``.

``work FOLDER LIMIT_BYTES SEED ROUNDS``: open it so often, use values in a random order and check each; a line for each.
``hold FOLDER LIMIT_BYTES``: use value 0, print ``held``, and once a line comes, use it again and end.
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from training_worker.engines.diffusers.cache.keys import content_key
from training_worker.engines.diffusers.cache.tensor_cache import TensorCache

VALUES = 12
USES = 40


def key(number: int) -> str:
    """The key of a value."""
    return content_key("number", value=number)


def value(number: int) -> dict[str, torch.Tensor]:
    """Another value for each number, of 1 KiB and more."""
    return {"a": torch.full((256 + number,), float(number)), "b": torch.tensor([number])}


def use(cache: TensorCache, number: int) -> None:
    """Get or make a value and check it."""
    torch.testing.assert_close(cache.get_or_make(key(number), lambda: value(number)), value(number), rtol=0, atol=0)


def use_held(cache: TensorCache, number: int) -> None:
    """Get a value that was used before; it cannot be gone."""
    held = cache.get(key(number))
    if held is None:
        raise ValueError(f"value {number} is gone")
    torch.testing.assert_close(held, value(number), rtol=0, atol=0)


def report(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def work(folder: Path, limit_bytes: int, seed: int, rounds: int) -> None:
    """Use and check values."""
    choice = random.Random(seed)
    for _ in range(rounds):
        with TensorCache(folder, limit_bytes) as cache:
            used: set[int] = set()
            for _ in range(USES):
                number = choice.randrange(VALUES)
                (use_held if number in used else use)(cache, number)
                used.add(number)
                report(str(number))


def hold(folder: Path, limit_bytes: int) -> None:
    """Use a value before and after something happens."""
    with TensorCache(folder, limit_bytes) as cache:
        use(cache, 0)
        report("held")
        sys.stdin.readline()
        use_held(cache, 0)


COMMANDS: dict[str, Callable[..., None]] = {"work": work, "hold": hold}

if __name__ == "__main__":
    command, path, *numbers = sys.argv[1:]
    COMMANDS[command](Path(path), *map(int, numbers))

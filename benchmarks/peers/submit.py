"""A backend of one peer: it submits a task for each line that it reads, and answers with the time just before.

python -m benchmarks.peers.submit on_celery
"""

import asyncio
import importlib
import sys
import time
from collections.abc import Awaitable, Callable

Submit = Callable[[bool], Awaitable[None]]


async def main(name: str) -> None:
    """Submit through the peer's own client until the input ends."""
    submit: Submit = await importlib.import_module(f"benchmarks.peers.{name}").connect()
    while line := await asyncio.to_thread(sys.stdin.readline):
        began = time.time()
        await submit(line == "child\n")
        print(began, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

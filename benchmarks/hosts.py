"""Many workers in one process, each with a connection, a state directory and a GPU of its own.

    python -m benchmarks.hosts USER_ID SETTINGS_FILE...

They run as that user, and end when standard input does; what they train is given back.
"""

import asyncio
import os
import sys
from pathlib import Path

from training_worker.gpu.devices import worker_gpus
from training_worker.logging_config import configure_logging
from training_worker.settings import load_settings
from training_worker.worker.worker import Worker


def make_worker(file: Path) -> Worker:
    """What ``training-worker run`` would run."""
    settings = load_settings(file, {})
    return Worker(settings, worker_gpus(settings), lambda _: None)


async def until_input_ends() -> None:
    """Wait for the end of standard input."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    loop.remove_reader(sys.stdin.fileno())


async def main() -> None:
    """Run a worker for each file."""
    configure_logging()
    _, user, *files = sys.argv
    # In a thread: what threads need is imported now. The interpreter's folder may be closed to the other user.
    workers = [await asyncio.to_thread(make_worker, Path(file)) for file in files]
    if int(user) != os.geteuid():
        os.setuid(int(user))
    async with asyncio.TaskGroup() as group:
        # Signals go to whichever worker began last, and are not used here.
        for worker in workers:
            group.create_task(worker.run())
        await until_input_ends()
        for worker in workers:
            worker.release("end of benchmark")


if __name__ == "__main__":
    asyncio.run(main())

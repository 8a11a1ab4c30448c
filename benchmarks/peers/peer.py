"""A peer: its worker and a backend of it as processes of the peers' own environment."""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import aio_pika
import msgspec

from benchmarks.peers.memory import Memory, session_memory

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"

# Generous: the first job waits for the worker's start.
TIMEOUT = 60.0
STOP_TIMEOUT = 10.0


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What to start: a module with the task and its ``connect``, and the arguments of Python that start its worker."""

    name: str
    module: str
    worker: str
    queue_type: str = "classic"


KINDS = (
    Kind(name="aio-pika (classic)", module="on_aio_pika", worker="-m benchmarks.peers.on_aio_pika"),
    Kind(
        name="aio-pika (quorum)",
        module="on_aio_pika",
        worker="-m benchmarks.peers.on_aio_pika",
        queue_type="quorum",
    ),
    Kind(
        name="dramatiq",
        module="on_dramatiq",
        worker="-m dramatiq benchmarks.peers.on_dramatiq --processes 1 --threads 1",
    ),
    Kind(
        name="taskiq",
        module="on_taskiq",
        worker="-m taskiq worker benchmarks.peers.on_taskiq:broker --workers 1 --max-async-tasks 1"
        " --ack-type when_executed",
        queue_type="quorum",
    ),
    Kind(
        name="celery",
        module="on_celery",
        worker="-m celery --app benchmarks.peers.on_celery worker --concurrency 1",
    ),
)


class Peer:
    """A worker that waits, and a backend with an open connection: ``orders`` and ``answers`` are the latter's."""

    def __init__(
        self,
        worker: Process,
        *,
        orders: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        marks: asyncio.StreamReader,
        log: Path,
    ) -> None:
        self._worker = worker
        self._orders = orders
        self._answers = answers
        self._marks = marks
        self._log = log

    async def pick_up(self, *, child: bool) -> float:
        """Seconds from submit to begin of one job. Raises `RuntimeError` with the worker's log if it does not come."""
        self._orders.write(b"child\n" if child else b"nothing\n")
        try:
            async with asyncio.timeout(TIMEOUT):
                began = float(await self._marks.readline())
                sent = float(await self._answers.readline())
        except (TimeoutError, ValueError):
            raise RuntimeError(f"no job was done: {self._log.read_text()}") from None
        return began - sent

    def memory(self) -> Memory:
        """What the worker holds, with all processes that it consists of."""
        return session_memory(self._worker.pid)


@asynccontextmanager
async def start_peer(kind: Kind, url: str, queue: str, folder: Path) -> AsyncIterator[Peer]:
    """Start a worker and a backend; stop both and delete their queues afterwards."""
    marks, log = lay_out(folder)
    env = {
        "PEERS_URL": url,
        "PEERS_QUEUE": queue,
        "PEERS_QUEUE_TYPE": kind.queue_type,
        "PEERS_MARKS": str(marks),
        "dramatiq_queue_prefetch": "1",
    }
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(delete_queues, url, queue)
        reader = await stack.enter_async_context(read_pipe(marks))
        worker = await stack.enter_async_context(start(kind.worker, env, log))
        backend = await stack.enter_async_context(start(f"-m benchmarks.peers.submit {kind.module}", env))
        orders = cast("asyncio.StreamWriter", backend.stdin)
        answers = cast("asyncio.StreamReader", backend.stdout)
        yield Peer(worker, orders=orders, answers=answers, marks=reader, log=log)


def lay_out(folder: Path) -> tuple[Path, Path]:
    """Make a folder with a named pipe for the tasks' marks; where that and the worker's log are."""
    folder.mkdir()
    marks = folder / "marks"
    os.mkfifo(marks)
    return marks, folder / "log"


@asynccontextmanager
async def read_pipe(path: Path) -> AsyncIterator[asyncio.StreamReader]:
    """Read what others write into a named pipe."""
    reader = asyncio.StreamReader()
    # Open for writing, too: else it ends when the first writer closes it.
    with path.open("r+b", buffering=0) as pipe:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            yield reader
        finally:
            transport.close()


@asynccontextmanager
async def start(arguments: str, env: dict[str, str], log: Path | None = None) -> AsyncIterator[Process]:
    """Start Python in a session of its own, its output into ``log`` or a pipe; end it politely, then by force."""
    with contextlib.ExitStack() as stack:
        process = await asyncio.create_subprocess_exec(
            PYTHON,
            *arguments.split(),
            cwd=ROOT,
            env=os.environ | env,
            stdin=PIPE,
            stdout=stack.enter_context(log.open("wb")) if log else PIPE,
            stderr=STDOUT if log else None,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        await stop(process)


async def stop(process: Process) -> None:
    """End a process and whatever is left of its group."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def delete_queues(url: str, queue: str) -> None:
    """Delete what any of the peers declares."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for name in (queue, f"{queue}.DQ", f"{queue}.XQ", f"{queue}.dead"):
            await channel.queue_delete(name)
        for name in (queue, f"{queue}.control.pidbox", f"reply.{queue}.control.pidbox", f"{queue}.events"):
            await channel.exchange_delete(name)

"""Standby: a trainer on each idle GPU that has its libraries loaded, and waits for its run folder.

Its standard input is one end of a socket. It writes there that it is ready, reads the path of a run folder, and closes
it. When the daemon ends, in whatever way, so does the socket, and with it a trainer that still waits.
"""

import asyncio
import contextlib
import os
import shutil
import socket
from pathlib import Path

import structlog

from training_schemas.jobs import EngineName
from training_schemas.spec import STDERR_FILE, STDOUT_FILE
from training_worker.gpu.devices import GpuDevice
from training_worker.runs.child_process import ChildProcess
from training_worker.runs.environment import trainer_environment
from training_worker.runs.file_tail import last_lines
from training_worker.runs.run import Run
from training_worker.runs.run_directory import IDENTITY_FILE
from training_worker.settings import Settings

STANDBY_ARGUMENT = "--standby"
READY = b"ready\n"

# How long a trainer that waits may take to open its output in the run folder, seconds.
TAKE_TIMEOUT = 5.0

OUTPUT_LINES = 5

log = structlog.get_logger()


class Standby:
    """The trainers that wait on one GPU: one of each engine that is set to. None waits while a job is trained."""

    def __init__(self, device: GpuDevice, settings: Settings) -> None:
        self._env = trainer_environment(device)
        self._commands = {name: engine.command for name, engine in settings.engines.items() if engine.standby}
        self._folder = settings.state_dir / "standby" / device.uuid
        self._waiting: dict[EngineName, WaitingTrainer] = {}

    def prepare(self) -> None:
        """Start the waiting trainers. One that ended while it waited is not restarted before a job was trained."""
        for engine, command in self._commands.items():
            if engine in self._waiting:
                continue
            try:
                self._waiting[engine] = WaitingTrainer.start(command, self._env, self._folder / engine)
            except OSError as error:
                log.warning("standby_failed", engine=engine, error=str(error))

    async def hand_over(self, engine: EngineName, run: Run) -> ChildProcess | None:
        """Give the run to the engine's trainer, and end the others; None if no trainer has taken it."""
        trainer = self._waiting.pop(engine, None)
        child = None if trainer is None else await trainer.hand_over(run)
        await self.stop()
        return child

    async def stop(self) -> None:
        """End all waiting trainers."""
        while self._waiting:
            _, trainer = self._waiting.popitem()
            await trainer.stop()


class WaitingTrainer:
    """One trainer that loads its libraries, then waits. Until it has a run, its output goes to a folder of its own."""

    def __init__(self, child: ChildProcess, line: socket.socket, folder: Path) -> None:
        self._child = child
        self._line = line
        self._folder = folder
        self._ready = False
        self._watching = asyncio.create_task(self._watch(), name="standby")

    @classmethod
    def start(cls, command: list[str], env: dict[str, str], folder: Path) -> "WaitingTrainer":
        """Start the trainer. What an earlier daemon left in its folder is removed. Raises `OSError`."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # No child inherits our end: it closes when this daemon ends, or becomes another program.
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            child = ChildProcess.start(
                [*command, STANDBY_ARGUMENT],
                env=env,
                stdin=theirs.fileno(),
                stdout=folder / STDOUT_FILE,
                stderr=folder / STDERR_FILE,
                identity=folder / IDENTITY_FILE,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(child, ours, folder)

    async def _watch(self) -> None:
        with contextlib.suppress(ConnectionError):
            self._ready = await asyncio.get_running_loop().sock_recv(self._line, len(READY)) == READY
        if self._ready:
            log.info("standby_ready", pid=self._child.pid)
        end = await self._child.wait()
        self._ready = False
        output = last_lines(self._folder / STDERR_FILE, OUTPUT_LINES)
        log.warning("standby_ended", pid=self._child.pid, exit=str(end), output=output)

    async def hand_over(self, run: Run) -> ChildProcess | None:
        """Have the trainer train this run. None if it has not begun to: then it is ended, and the run is unchanged."""
        ready = self._ready
        await self._unwatch()
        if ready:
            try:
                self._identify(run)
                await self._assign(run)
            except OSError as error:
                log.warning("standby_failed", pid=self._child.pid, error=repr(error))
        if not run.has_begun:
            await self.stop()
        self._let_go()
        if run.has_begun:
            return self._child
        run.folder.identity.unlink(missing_ok=True)
        return None

    def _identify(self, run: Run) -> None:
        # Before the trainer can take a step: whenever this daemon dies, the next one knows whose run it is.
        (self._folder / IDENTITY_FILE).rename(run.folder.identity)

    async def _assign(self, run: Run) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._line, os.fsencode(run.folder.path) + b"\n")
        async with asyncio.timeout(TAKE_TIMEOUT):
            # The trainer closes its end when it has accepted the run; or when it ends.
            await loop.sock_recv(self._line, 1)

    async def stop(self) -> None:
        """End the trainer, whatever it does: it has nothing to save."""
        await self._unwatch()
        self._let_go()
        try:
            await self._child.stop(0)
        except TimeoutError:
            log.error("trainer_cannot_be_killed", pid=self._child.pid)  # noqa: TRY400 - the traceback adds nothing

    async def _unwatch(self) -> None:
        self._watching.cancel()
        await asyncio.wait({self._watching})

    def _let_go(self) -> None:
        self._line.close()
        shutil.rmtree(self._folder, ignore_errors=True)

"""The self-test's program, started with an engine's interpreter; whatever it does, the asking ends."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from training_schemas.jobs import EngineName
from training_schemas.selftest import SelfTest
from training_worker.errors import TrainingWorkerError
from training_worker.runs.child_process import KILL_TIMEOUT, Exit
from training_worker.settings import EngineSettings, Settings, program_of

PROGRAM = "training_worker.engines.diffusers.selftest"

# Seconds. A test takes less than one minute on a fast GPU; each kernel that hangs adds three quarters of one.
LIMIT = 900.0
# It loads nothing, but from a cold disk.
VERSIONS_LIMIT = 60.0

# What it says when it fails is at the end.
LAST_WORDS = 300

T = TypeVar("T")


class SelfTestError(TrainingWorkerError):
    """A self-test could not be made, so that nothing is known of the GPU's kernels."""


class SelfTestProgram:
    """The program for one engine; further ``arguments`` choose the device, or break kernels for tests."""

    def __init__(self, command: Sequence[str], arguments: Sequence[str] = ()) -> None:
        self._command = [*command, *arguments]

    async def versions(self, env: Mapping[str, str]) -> dict[str, str]:
        """On which versions a result depends. Raises `SelfTestError`."""
        return await self._ask(["--versions"], env, VERSIONS_LIMIT, dict[str, str])

    async def test(self, key: str, env: Mapping[str, str]) -> SelfTest:
        """Test the GPU that is visible in an environment. Raises `SelfTestError`."""
        return await self._ask(["--key", key], env, LIMIT, SelfTest)

    async def _ask(self, arguments: Sequence[str], env: Mapping[str, str], limit: float, kind: type[T]) -> T:
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            raise SelfTestError(f"cannot be started: {error}") from None
        try:
            said, errors = await asyncio.wait_for(process.communicate(), limit)
        except TimeoutError:
            raise SelfTestError(f"no end after {limit:g} s") from None
        finally:
            await _end(process)
        return _read(said, errors, process.returncode, kind)


def _read(said: bytes, errors: bytes, code: int | None, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(said, type=kind)
    except msgspec.MsgspecError:
        how = "" if code is None else str(Exit.of(code))
        raise SelfTestError(f"{how}: {errors.decode(errors='replace').strip()[-LAST_WORDS:]}") from None


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill it if it still runs; its own children end with it."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), KILL_TIMEOUT)


def programs(settings: Settings, arguments: Sequence[str] = ()) -> dict[EngineName, SelfTestProgram]:
    """The program for each engine that runs our own trainer; what another program computes with is its own affair."""
    return {
        name: SelfTestProgram(command_of(name, engine.command[0]), arguments)
        for name, engine in settings.engines.items()
        if _is_ours(name, engine)
    }


def command_of(engine: EngineName, python: str) -> list[str]:
    """How the program is started for an engine's interpreter, which may have nothing of ours."""
    if engine is EngineName.DIFFUSERS:
        return [python, "-m", PROGRAM]
    return [sys.executable, "-m", PROGRAM, "--attention-only", "--python", python]


def _is_ours(name: EngineName, engine: EngineSettings) -> bool:
    ours = program_of(name, engine.command[0])
    return engine.command[: len(ours)] == ours

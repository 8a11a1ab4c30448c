"""The program as users start it."""

import asyncio
import os
import subprocess
import sys

from tests.support.fleet import ROOT, Fleet


async def run(fleet: Fleet, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """``training-worker`` with these arguments, for this fleet, without a terminal."""
    path = os.pathsep.join(str(ROOT / name) for name in ("schemas", "presets", "daemon"))
    env = os.environ | {"PYTHONPATH": path, "TRAINING_AMQP_URL": fleet.url, "TRAINING_PREFIX": fleet.names.prefix}
    command = [sys.executable, "-m", "training_worker", *arguments]
    return await asyncio.to_thread(
        subprocess.run, command, env=env | {"COLUMNS": "200"}, capture_output=True, text=True, timeout=60, check=False
    )

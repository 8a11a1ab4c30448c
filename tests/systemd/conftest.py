"""A Debian with real systemd in a container, and the unit on it."""

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import pytest_asyncio
from tests.support.fleet import Fleet
from tests.support.nspawn import Machine, NoMachineError, booted, note
from tests.support.unit_host import PROGRAM, UNIT, Host


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], NoReturn]) -> Iterator[Machine]:
    """A booted Debian with the project in a virtual environment, and nothing else done yet."""
    folder = tmp_path_factory.mktemp("machine")
    try:
        with booted(folder / "root") as machine:
            machine.run("mkdir", "-p", "/datasets/set", "/models", "/weights/base")
            yield machine
            machine.run("journalctl", "--no-pager", "--unit=training-worker*", status=None)
    except NoMachineError as error:
        missing(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture
async def host(
    machine: Machine, tmp_path: Path, broker_url: str, prefix: str, request: pytest.FixtureRequest
) -> AsyncIterator[Host]:
    """The unit, installed and configured for this test, and not started."""
    note(f"\n=== {request.node.name}")
    machine.run("sh", "-c", "rm -rf /models/* /var/lib/training-worker")
    machine.run(PROGRAM, "install")
    machine.run("chown", "training-worker:", "/models")
    host = Host(machine, Fleet(tmp_path, broker_url, prefix))
    host.configure()
    yield host
    machine.run("systemctl", "status", "--no-pager", UNIT, status=None)
    machine.run("systemctl", "stop", UNIT)
    machine.run("systemctl", "reset-failed", UNIT, status=None)
    assert machine.trainers() == []

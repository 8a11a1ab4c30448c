"""Each fault once: the job is not lost, not trained twice at a time, and ends once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NoReturn

import pytest
import pytest_asyncio
from tests.fault.faults import FAULTS
from tests.fault.rounds import SHARED, Round, Stages, Verdict, play

from training_worker.testing.local_broker import PrivateBroker

# The rounds wait for each other's sake: while one test awaits its own, the others continue in the same loop.
pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module")]

PLACES = 3

# Those that wait for their turn on another broker end last, and are awaited last.
IN_ORDER = sorted(FAULTS, key=lambda fault: FAULTS[fault].stage != SHARED)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rounds(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> AsyncIterator[dict[str, asyncio.Task[Verdict]]]:
    """The rounds of all faults that are to be tested, on their way."""
    folder = tmp_path_factory.mktemp("rounds")
    wanted = {item.callspec.params.get("fault") for item in request.session.items if hasattr(item, "callspec")}
    async with Stages(folder, broker_url, PLACES) as stages:
        tasks = {
            fault: asyncio.create_task(play(Round(fault), stages, folder / fault))
            for fault in FAULTS
            if fault in wanted
        }
        yield tasks
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


@pytest.mark.parametrize("fault", IN_ORDER)
async def test_a_job_survives(
    fault: str, rounds: dict[str, asyncio.Task[Verdict]], missing: Callable[[str], NoReturn]
) -> None:
    """It ends as it must, with one terminal event and no hole in its numbers, at no more than the fault's price."""
    if FAULTS[fault].stage != SHARED and not PrivateBroker(Path()).can_start:
        missing("no rabbitmq-server is installed")
    try:
        verdict = await rounds[fault]
    except PermissionError as error:
        missing(str(error))

    assert verdict.wrong == [], "\n".join([*verdict.wrong, verdict.ledger])

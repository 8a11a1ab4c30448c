"""A job whose daemon loses its connection after any one of the frames of the job's life."""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fault.cuts import Lane, wrong_with
from tests.fault.life import Life
from tests.support.fleet import Fleet

pytestmark = pytest.mark.broker

LANES = 3

# A life has a few frames more or less, as the broker confirms one message at a time or several.
LIVES_UNCUT = 5


async def test_a_job_survives_a_cut_after_any_frame(tmp_path: Path, broker_url: str, prefix: str) -> None:
    """It is completed, with one terminal event and no hole in its numbers, and no step of it is done twice."""
    numbers = itertools.count(1)
    fleets = [Fleet(tmp_path / f"{lane}", broker_url, f"{prefix}.{lane}") for lane in range(LANES)]
    lives = [life for cut in await asyncio.gather(*(cut_lives(fleet, numbers) for fleet in fleets)) for life in cut]

    assert len(lives) > 100
    wrong = {job_id: found for job_id, life in lives if (found := wrong_with(life))}
    assert wrong == {}, wrong


async def cut_lives(fleet: Fleet, numbers: Iterator[int]) -> list[tuple[str, Life]]:
    """Lives that are cut after the next of the numbers, until those are greater than a life has frames."""
    uncut = 0
    async with Lane.opened(fleet) as lane:
        while uncut < LIVES_UNCUT:
            frames = next(numbers)
            try:
                uncut += not await lane.live(f"cut-after-{frames}", frames)
            except (AssertionError, TimeoutError) as error:
                error.add_note(f"cut after frame {frames}\n{lane.daemon.log.read_text()}")
                raise
        return list((await lane.lives()).items())

"""Lives in whose middle the connection is cut, one after the other, on one daemon behind a proxy."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from aio_pika.abc import AbstractChannel
from tests.fault.life import TIMEOUT, Life, faults_of, read_lives, until_finalized
from tests.support.fleet import Daemon, Fleet
from tests.support.proxy import Proxy

from training_schemas.events import TERMINAL_EVENTS, JobCompleted, JobEvent, decode_event
from training_schemas.jobs import MemoryTier, ModelFamily
from training_worker.broker.event_log import read_log
from training_worker.broker.names import SUBMIT_KEY
from training_worker.broker.session import Session, persistent

# With a checkpoint after the last one.
STEPS = 5

# What such a cut may cost: a claim that is interrupted is made again.
ATTEMPTS = 2


class Lane:
    """A daemon and the proxy that it connects through, and a session past the proxy, on which jobs are submitted."""

    def __init__(self, fleet: Fleet, proxy: Proxy, daemon: Daemon, session: Session) -> None:
        self.daemon = daemon
        self._fleet = fleet
        self._proxy = proxy
        self._session = session
        self._log = read_log(session, fleet.names.events_log, time.time())
        self._cuts = 0
        self._job_ids: list[str] = []

    @classmethod
    @asynccontextmanager
    async def opened(cls, fleet: Fleet) -> AsyncIterator["Lane"]:
        """One whose daemon waits for jobs."""
        (fleet.folder / "datasets" / "traces").mkdir()
        async with Proxy(fleet.url) as proxy, fleet.session() as session:
            try:
                yield cls(fleet, proxy, await fleet.start(mode="brisk", amqp_url=proxy.url), session)
            finally:
                await fleet.stop()

    async def live(self, job_id: str, frames: int) -> bool:
        """Have a job trained, with the connection cut after so many frames of its life. False if it has fewer."""
        await self._until_idle()
        self._proxy.cut_after(frames)
        await self._submit(job_id)
        await self._until_ended(job_id)
        await self._until_idle()
        was_cut = self._proxy.frames == frames
        self._proxy.cut_after(0)
        self._cuts += was_cut
        return was_cut

    async def lives(self) -> dict[str, Life]:
        """What became of the jobs, each under its id, once nothing of them is in any queue."""
        for job_id in self._job_ids:
            await until_finalized(self._fleet, job_id)
        return await read_lives(self._fleet, self._job_ids)

    async def _submit(self, job_id: str) -> None:
        self._job_ids.append(job_id)
        body = msgspec.json.encode(self._fleet.job(job_id, max_train_steps=STEPS))
        await self._session.publish(self._fleet.names.jobs, SUBMIT_KEY, persistent(body))

    async def _until_ended(self, job_id: str) -> None:
        async with asyncio.timeout(TIMEOUT):
            async for body in self._log:
                event = decode_event(body).read()
                if isinstance(event, TERMINAL_EVENTS) and isinstance(event, JobEvent) and event.job_id == job_id:
                    return

    async def _until_idle(self) -> None:
        """Wait until the daemon is connected, has gone through its queues, and waits at the last of them."""
        await self.daemon.until_logged("broker_connected", count=1 + self._cuts)
        channel = await self._session.channel(prefetch=0)
        async with asyncio.timeout(TIMEOUT):
            while not await self._consumers(channel):  # noqa: ASYNC110 - a queue has no such event
                await asyncio.sleep(0.01)
        await self._session.close_channel(channel)

    async def _consumers(self, channel: AbstractChannel) -> int:
        last = self._fleet.names.tier_queue(ModelFamily.SDXL, MemoryTier.GB8)
        queue = await channel.declare_queue(last, passive=True)
        return queue.declaration_result.consumer_count or 0


def wrong_with(life: Life) -> list[str]:
    """What is wrong with a life that was cut once, as text."""
    wrong = faults_of(life)
    if not isinstance(life.events[-1], JobCompleted):
        wrong.append(f"ended with {type(life.events[-1]).__name__}")
    if life.attempts > ATTEMPTS:
        wrong.append(f"{life.attempts} attempts")
    if life.twice:
        wrong.append(f"{life.twice} steps done twice")
    return wrong

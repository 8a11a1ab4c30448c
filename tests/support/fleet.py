"""Real daemons on a real broker, with a trainer that trains nothing or with the real one."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import msgspec
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from training_schemas.events import Event, JobEvent, WorkerOffline, decode_event, encode_event, wrap
from training_schemas.jobs import MemoryTier, ModelFamily, TrainingJob
from training_schemas.ledger import AnyEntry, Barrier, decode_entry
from training_worker.broker.event_log import read_log
from training_worker.broker.names import Names
from training_worker.broker.session import Session, persistent
from training_worker.broker.topology import delete_topology
from training_worker.client.async_client import AsyncTrainingWorkerAPI
from training_worker.client.job_builder import make_job
from training_worker.errors import BrokerError
from training_worker.runs.process_identity import ProcessIdentity

ROOT = Path(__file__).parents[2]
FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")
TYPES = ["FLUX_LORA", "SDXL_LORA", "SDXL_TEXTUAL_INVERSION", "SDXL_FINETUNE"]

GPU_8 = "NVIDIA GeForce RTX 4060:8188MiB"
GPU_24 = "NVIDIA GeForce RTX 4090:24564MiB"
GPU_80 = "NVIDIA H100 80GB HBM3:81559MiB"

# Waiting in tests is bounded, and generous: the machine may be slow.
TIMEOUT = 60.0

# Of the daemons under test, and the defaults.
DELAYS = (1, 20, 30, 120, 600)


class Daemon:
    """One ``training-worker run`` as a process."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, worker_id: str) -> None:
        self.process = process
        self.log = log
        self.worker_id = worker_id
        self._entries: list[dict[str, Any]] = []
        self._read = 0

    def kill(self) -> None:
        """End the daemon alone, as a crash would."""
        self.process.kill()
        self.process.wait()

    @property
    def trainers(self) -> list[int]:
        """The process ids of the trainers that this daemon started, oldest first; whether they run or not."""
        return [entry["pid"] for entry in self.logged("trainer_started")]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the daemon alone."""
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for the end and return the exit status."""
        return await asyncio.to_thread(self.process.wait, TIMEOUT)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log's entries with this key."""
        with self.log.open("rb") as file:
            file.seek(self._read)
            *lines, _ = file.read().split(b"\n")
        self._read += sum(len(line) + 1 for line in lines)
        self._entries += [json.loads(line) for line in lines if line.startswith(b"{")]
        return [entry for entry in self._entries if entry["event"] == event]

    async def until_logged(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until the log has that many entries with this key."""
        async with asyncio.timeout(TIMEOUT):
            while len(entries := self.logged(event)) < count:
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.05)
        return entries


class Fleet:
    """Daemons that share a broker, a prefix, and a folder with data sets, models and outputs."""

    def __init__(self, folder: Path, url: str, prefix: str) -> None:
        self.folder = folder
        self.url = url
        self.names = Names(prefix)
        self.api = AsyncTrainingWorkerAPI(url, prefix=prefix)
        self.host: dict[str, str] = {}
        """Variables that make the daemons' host; over those of one without a GPU."""
        self._daemons: list[Daemon] = []
        self._delays: set[int] = set()
        self._job_ids: set[str] = set()
        for name in ("datasets/set", "models", "base", "no-nvml"):
            (folder / name).mkdir(parents=True)
        # Hides the GPUs of a machine that has some: a library that cannot be loaded is no library.
        (folder / "no-nvml" / "libnvidia-ml.so.1").touch()

    def move(self, url: str) -> None:
        """Talk to another node of the broker from now on; the daemons' own addresses stay."""
        self.url = url
        self.api = AsyncTrainingWorkerAPI(url, prefix=self.names.prefix)

    def settings(
        self, worker_id: str, gpus: list[str], mode: str, *, standby: bool = False, **changes: Any
    ) -> dict[str, Any]:
        """A daemon's settings, with a fake trainer in ``mode`` that can do everything."""
        command = [sys.executable, "-S", str(FAKE_TRAINER), mode]
        base = str(self.folder / "base")
        return {
            "worker_id": worker_id,
            "amqp_url": self.url,
            "prefix": self.names.prefix,
            "state_dir": str(self.folder / f"state-{worker_id}"),
            "dataset_roots": [str(self.folder / "datasets")],
            "output_roots": [str(self.folder / "models")],
            "gpus": gpus,
            "models": {"black-forest-labs/FLUX.1-dev": base, "stabilityai/stable-diffusion-xl-base-1.0": base},
            "engines": {"diffusers": {"command": command, "training_types": TYPES, "standby": standby}},
            "lease": 10,
            "grace": 1,
            "retry_delays": [1],
            "stop_grace": 5,
        } | changes

    async def start(  # noqa: PLR0913 - each by its name
        self,
        worker_id: str = "w1",
        *,
        gpus: list[str] | None = None,
        mode: str = "ok",
        online: bool = True,
        program: Sequence[str] = ("-m", "training_worker"),
        arguments: Sequence[str] = (),
        **changes: Any,
    ) -> Daemon:
        """Start a daemon; by default wait until it is connected."""
        settings = self.settings(worker_id, gpus or [GPU_24], mode, **changes)
        number = len(self._daemons)
        config = self.folder / f"{worker_id}-{number}.toml"
        config.write_text("\n".join(f"{key} = {to_toml(value)}" for key, value in settings.items()))
        log = self.folder / f"{worker_id}-{number}.log"
        path = os.pathsep.join(str(ROOT / name) for name in ("schemas", "presets", "daemon"))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRAINING_")}
        env = inherited | {"PYTHONPATH": path, "LD_LIBRARY_PATH": str(self.folder / "no-nvml")} | self.host
        with log.open("wb") as file:
            command = [sys.executable, *program, "run", "--config", str(config), *arguments]
            process = subprocess.Popen(command, stdout=file, stderr=file, env=env, start_new_session=True)  # noqa: ASYNC220 - takes milliseconds
        daemon = Daemon(process, log, worker_id)
        self._delays.update((settings["grace"], *settings["retry_delays"]))
        self._daemons.append(daemon)
        if online:
            await daemon.until_logged("broker_connected")
        return daemon

    async def stop(self) -> None:
        """Stop every daemon that still runs."""
        for daemon in self._daemons:
            if daemon.process.poll() is None:
                daemon.signal(signal.SIGTERM)
        for daemon in self._daemons:
            try:
                await daemon.ended()
            except subprocess.TimeoutExpired:
                daemon.kill()
        for run in self.folder.glob("state-*/runs/*/process"):
            identity = ProcessIdentity.read(run)
            if identity is not None and identity.is_alive:
                os.killpg(identity.pid, signal.SIGKILL)

    async def delete(self) -> None:
        """Delete what the fleet has left on the broker, once its daemons have ended."""
        async with self.channel() as channel:
            await delete_topology(channel, self.names, self._delays)
            for job_id in self._job_ids:
                await channel.queue_delete(self.names.lease(job_id))

    def job(self, job_id: str, training_type: str = "FLUX_LORA", **fields: Any) -> TrainingJob:
        """A valid job of this fleet."""
        self._job_ids.add(job_id)
        paths = {
            "dataset_path": str(self.folder / "datasets" / "set"),
            "output_path": str(self.folder / "models" / job_id),
        }
        return make_job(training_type, job_id=job_id, **(paths | fields))

    async def submit(self, job_id: str, training_type: str = "FLUX_LORA", **fields: Any) -> TrainingJob:
        """Publish a valid job."""
        job = self.job(job_id, training_type, **fields)
        await self.api.submit_job(job)
        return job

    async def publish(self, body: bytes, *, key: str = "submit", **properties: Any) -> None:
        """Publish anything to where backends publish, or past it."""
        async with self.channel() as channel:
            exchange = await channel.get_exchange(self.names.jobs, ensure=False)
            await exchange.publish(aio_pika.Message(body, **properties), key)

    async def events(self, job_id: str) -> list[JobEvent]:
        """All of a job's events, once it has ended; the broker may be away meanwhile."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                with contextlib.suppress(BrokerError):
                    return [event async for event in self.api.events(job_id)]
                await asyncio.sleep(0.2)

    async def until(self, job_id: str, kind: type[JobEvent], count: int = 1) -> JobEvent:
        """Wait for the n-th event of a kind about a job."""
        async with asyncio.timeout(TIMEOUT):
            async for event in self.api.events(job_id):
                count -= isinstance(event, kind)
                if count == 0:
                    return event
        raise AssertionError(f"{job_id} ended without {kind.__name__}")

    async def all_events(self, count: int, kind: type[Event]) -> list[Event]:
        """The first events of a kind, whatever they are about."""
        found: list[Event] = []
        async with asyncio.timeout(TIMEOUT), self.session() as session:
            async for body in read_log(session, self.names.events_log, 0):
                event = decode_event(body).read()
                if isinstance(event, kind):
                    found.append(event)
                if len(found) == count:
                    break
        return found

    async def log(self) -> list[tuple[str, Event]]:
        """What the log of events holds now, with the events' ids."""
        end, found = f"end-{secrets.token_hex(8)}", []
        async with asyncio.timeout(TIMEOUT), self.session() as session:
            # The event of a worker that does not exist comes last: all before it has been read.
            marker = encode_event(wrap(WorkerOffline(worker="end", simulated=True, why=end), event_id=end, time=0))
            await session.publish(self.names.events, "worker.end.offline", persistent(marker))
            async for body in read_log(session, self.names.events_log, 0):
                envelope = decode_event(body)
                if envelope.id == end:
                    break
                found.append((envelope.id, envelope.read()))
        return found

    def waiting_queues(self) -> list[str]:
        """The queues in which jobs of this fleet wait, but for leases."""
        tiers = [self.names.tier_queue(family, tier) for family in ModelFamily for tier in MemoryTier]
        return [self.names.intake, self.names.delay_queue(1), *tiers]

    async def all_event_ids(self, kind: type[Event]) -> list[str]:
        """The ids of all events of a kind up to now."""
        return [event_id for event_id, event in await self.log() if isinstance(event, kind)]

    async def ledger(self) -> list[AnyEntry]:
        """What the ledger holds, without the markers."""
        entries: list[AnyEntry] = []
        async with asyncio.timeout(TIMEOUT), self.session() as session:
            marker = Barrier(time=0, nonce="end-of-test")
            await session.publish("", self.names.ledger, persistent(msgspec.json.encode(marker)))
            async for body in read_log(session, self.names.ledger, 0):
                entry = decode_entry(body)
                if entry == marker:
                    break
                if not isinstance(entry, Barrier):
                    entries.append(entry)
        return entries

    async def dead(self) -> AbstractIncomingMessage:
        """The next message of the dead queue."""
        async with asyncio.timeout(TIMEOUT), self.channel() as channel:
            queue = await channel.get_queue(self.names.dead, ensure=False)
            while (message := await queue.get(fail=False)) is None:  # noqa: ASYNC110 - a queue has no such event
                await asyncio.sleep(0.05)
            await message.ack()
            return message

    async def depth(self, queue: str) -> int | None:
        """How many messages a queue holds; None if it does not exist."""
        async with self.channel() as channel:
            try:
                declared = await channel.declare_queue(queue, passive=True)
            except aio_pika.exceptions.ChannelNotFoundEntity:
                return None
            return declared.declaration_result.message_count

    async def waiting(self) -> int:
        """How many messages wait in the queues of the fleet, but for leases."""
        async with self.channel() as channel:
            queues = [await channel.declare_queue(name, passive=True) for name in self.waiting_queues()]
            return sum(queue.declaration_result.message_count or 0 for queue in queues)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A session of the tests' own; it declares the topology."""
        session = await Session.open(self.url, self.names, client="tests")
        try:
            yield session
        finally:
            await session.close()

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[AbstractChannel]:
        """A channel of the tests' own, with confirms."""
        async with await aio_pika.connect(self.url) as connection:
            yield await connection.channel()


async def delete_fleet(url: str, names: Names) -> None:
    """Delete what a fleet declares. Its exclusive queues go with their owners; its leases expire."""
    async with await aio_pika.connect(url, timeout=10) as connection:
        await delete_topology(await connection.channel(), names, DELAYS)


def to_toml(value: Any) -> str:
    """A value as TOML; JSON does for all but tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {to_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)

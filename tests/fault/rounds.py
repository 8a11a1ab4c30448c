"""Rounds: one fault each, played on a broker that is lent to it, with a verdict on what became of the job."""

import asyncio
import contextlib
import random
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import msgspec
from tests.fault.faults import FAULTS, Fault
from tests.fault.life import OVERLAP, Life, faults_of, read_life, show
from tests.fault.scene import JOB, Scene, Stage
from tests.support.cluster import Cluster
from tests.support.consumer_timeout import consumer_timeout_node
from tests.support.fleet import Fleet

from training_schemas.events import TERMINAL_EVENTS
from training_schemas.states import IllegalTransitionError
from training_worker.testing.local_broker import PrivateBroker

SHARED = "broker_url"


class Round(msgspec.Struct, frozen=True):
    """One playing of one fault; all that is left to chance in it comes from its seed."""

    fault: str
    seed: int = 0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a round came to; ``wrong`` describes what must not be, and is empty if all is as promised."""

    wrong: list[str]
    seconds: float
    ledger: str = ""
    lost: bool = False
    doubled: bool = False
    ends: int = 1
    holes: int = 0
    attempts: int = 0
    twice: int = 0


class Stages:
    """The brokers to play on: one that all rounds share, and others that are started when they are first needed.

    At most ``places`` rounds are played at the same time, and those on another broker than the shared one singly: they
    kill it.
    """

    def __init__(self, folder: Path, url: str, places: int) -> None:
        self._folder = folder
        self._url = url
        self._places = asyncio.Semaphore(places)
        self._turns = {name: asyncio.Lock() for name in ("private_broker", "consumer_timeout_broker", "cluster")}
        self._started: dict[str, PrivateBroker | Cluster] = {}
        self._number = 0

    @asynccontextmanager
    async def lend(self, name: str) -> AsyncIterator[Stage | str]:
        """Wait for a broker and a place, and have them until the end."""
        async with self._turns.get(name, contextlib.nullcontext()), self._places:
            yield self._url if name == SHARED else await self._start(name)

    async def stop(self, name: str) -> None:
        """Stop a broker that is in no good state; the next round has a new one. The shared one stays as it is."""
        if (stage := self._started.pop(name, None)) is not None:
            await asyncio.to_thread(stage.__exit__, None, None, None)

    async def _start(self, name: str) -> PrivateBroker | Cluster:
        if name not in self._started:
            self._number += 1
            stage = _make(name, self._folder / f"{name}-{self._number}")
            await asyncio.to_thread(stage.__enter__)
            self._started[name] = stage
        return self._started[name]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in list(self._started):
            await self.stop(name)


def _make(name: str, folder: Path) -> PrivateBroker | Cluster:
    match name:
        case "cluster":
            return Cluster(folder)
        case "consumer_timeout_broker":
            return consumer_timeout_node(folder)
        case _:
            return PrivateBroker(folder)


def url_of(stage: Stage | str) -> str:
    """Where clients connect."""
    match stage:
        case str():
            return stage
        case Cluster():
            return stage.nodes[0].url
        case _:
            return stage.url


async def play(played: Round, stages: Stages, folder: Path) -> Verdict:
    """Play a round in a folder that is not there yet, and leave nothing on the broker.

    Raises `PermissionError` where the machine does not allow what the fault needs.
    """
    fault = FAULTS[played.fault]
    async with stages.lend(fault.stage) as stage:
        began = time.monotonic()
        fleet = Fleet(folder, url_of(stage), f"t{secrets.token_hex(4)}")
        scene = Scene(fleet, random.Random(played.seed), None if isinstance(stage, str) else stage)
        life, wrong = await _play(fault, scene)
        verdict = _judge(fault, life, wrong, time.monotonic() - began)
        if verdict.wrong:
            await stages.stop(fault.stage)
        return verdict


async def _play(fault: Fault, scene: Scene) -> tuple[Life | None, list[str]]:
    lives: list[Life] = []

    async def read() -> None:
        lives.append(await read_life(scene.fleet, JOB))

    async with scene:
        # Whatever went wrong with the fault, the job must not be lost.
        wrong = [*await _failure(fault.play(scene)), *await _failure(read())]
    wrong += await _failure(scene.fleet.delete())
    return next(iter(lives), None), wrong


async def _failure(act: Awaitable[None]) -> list[str]:
    """What failed, as text; nothing, if nothing did."""
    try:
        await act
    except PermissionError:
        raise
    except Exception as error:  # noqa: BLE001 - a fault may fail in any way, and the other rounds continue
        return ["".join(traceback.format_exception(error))]
    return []


def _judge(fault: Fault, life: Life | None, wrong: list[str], seconds: float) -> Verdict:
    if life is None:
        return Verdict(wrong=["the job did not end", *wrong], seconds=seconds, lost=True)
    return Verdict(
        wrong=[*faults_of(life, isolated=fault.isolates), *_beyond(fault, life), *wrong],
        seconds=seconds,
        ledger=show(life.entries),
        doubled=not fault.isolates and life.doubled > OVERLAP,
        ends=life.ends,
        holes=len(life.holes),
        attempts=life.attempts,
        twice=life.twice,
    )


def _beyond(fault: Fault, life: Life) -> list[str]:
    """What the life has beyond its fault's price."""
    ends = {type(event) for event in life.events if isinstance(event, TERMINAL_EVENTS)}
    found = [f"ended with {kind.__name__}" for kind in ends - set(fault.ends)]
    if life.attempts > fault.attempts:
        found.append(f"{life.attempts} attempts instead of {fault.attempts}")
    if life.twice > fault.twice:
        found.append(f"{life.twice} steps done twice instead of {fault.twice}")
    return [*found, *_illegal_events(life)]


def _illegal_events(life: Life) -> list[str]:
    try:
        life.state  # noqa: B018 - that it can be read
    except IllegalTransitionError as error:
        return [f"events that make no sense: {error}"]
    return []

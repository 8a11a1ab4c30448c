"""The signals of the worker: SIGTERM releases, SIGINT drains, SIGHUP replaces; the next one aborts."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Protocol

from training_worker.worker.stages import Ending, Stage

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Leaving(Protocol):
    """The interface that signals act on: a worker's ways to end."""

    @property
    def stage(self) -> Stage: ...

    @property
    def ending(self) -> Ending: ...

    def drain(self, why: str) -> None: ...

    def release(self, why: str) -> None: ...

    def abort(self, why: str) -> None: ...

    def replace(self) -> None: ...


def on_signal(worker: Leaving, number: signal.Signals) -> None:
    """Release on SIGTERM, drain on SIGINT, replace on SIGHUP; abort on the next one, except on SIGTERM in a drain."""
    match number, worker.stage:
        case signal.SIGHUP, Stage.WORKING:
            worker.replace()
        case signal.SIGHUP, _:
            pass
        case signal.SIGINT, Stage.WORKING:
            worker.drain(number.name)
        case signal.SIGTERM, Stage.WORKING | Stage.DRAINING:
            worker.release(number.name)
        case _:
            worker.abort(number.name)


@contextlib.contextmanager
def handled_signals(worker: Leaving) -> Iterator[None]:
    """Handle signals while the worker runs; they stay blocked until a program that replaces it handles them."""
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, worker, number)
    # A program that replaced another one has them blocked until now: none was lost in between.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        if worker.ending is Ending.REPLACED:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for number in SIGNALS:
            loop.remove_signal_handler(number)

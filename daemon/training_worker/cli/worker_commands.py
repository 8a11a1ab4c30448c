"""The command workers: the fleet in a table."""

import asyncio
import sys
import time
from collections.abc import Iterator

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from training_schemas.events import CardState
from training_worker.cli.terminal import printable
from training_worker.client.async_client import AsyncTrainingWorkerAPI
from training_worker.client.fleet import WorkerState

GIB_IN_MIB = 1024


def show_workers(*, as_json: bool) -> int:
    """Print a line for each GPU of each worker. Return 0 if there is any worker, else 1."""
    states = asyncio.run(AsyncTrainingWorkerAPI().workers())
    if as_json:
        print(msgspec.json.encode(states).decode())
    elif states:
        Console().print(_table(states, time.time()))
    else:
        print("training-worker: no worker was online within the last minutes", file=sys.stderr)
    return 0 if states else 1


def _table(states: list[WorkerState], now: float) -> Table:
    table = Table("worker", "state", "heard", "card", "job", "free", "use", "temp", "power", box=box.SIMPLE)
    for state in states:
        for row in _rows(state, now):
            table.add_row(*(Text(printable(cell), overflow="fold") for cell in row))
    return table


def _rows(state: WorkerState, now: float) -> Iterator[tuple[str, ...]]:
    condition = f"{state.condition}: {state.why}" if state.why else str(state.condition)
    heard = f"{max(0.0, now - state.last_seen_at):.0f} s ago"
    cards = [_card(card) for card in state.cards] or [("-",) * 6]
    yield state.worker, condition, heard, *cards[0]
    yield from (("", "", "", *card) for card in cards[1:])


def _card(card: CardState) -> tuple[str, ...]:
    return (
        card.name or card.gpu,
        card.job or (f"none: {card.quarantined}" if card.quarantined else "-"),
        "-" if card.free_mib is None else f"{card.free_mib / GIB_IN_MIB:.1f} GiB",
        "-" if card.utilisation is None else f"{card.utilisation} %",
        "-" if card.temperature_c is None else f"{card.temperature_c} \N{DEGREE SIGN}C",
        "-" if card.power_w is None else f"{card.power_w:.0f} W",
    )

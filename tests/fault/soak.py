"""Plays every fault again and again, each time at other moments, and counts what became of the jobs.

python -m tests.fault.soak --rounds 20
"""

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fault.faults import FAULTS
from tests.fault.rounds import Round, Stages, Verdict, play

from training_worker.testing.local_broker import find_broker

HEADINGS = ("rounds", "lost", "doubled", "ends != 1", "holes", "failed", "attempts", "twice", "(max)", "slowest")

# More rounds are under way than are played: some wait for their turn on a broker that is lent singly.
WAITING = 3


@dataclass
class Row:
    """What became of all rounds of one fault."""

    rounds: int = 0
    lost: int = 0
    doubled: int = 0
    ends: int = 0
    holes: int = 0
    failed: int = 0
    attempts: int = 0
    twice: int = 0
    twice_most: int = 0
    slowest: float = 0.0

    def count(self, verdict: Verdict) -> None:
        """Add one more."""
        self.rounds += 1
        self.lost += verdict.lost
        self.doubled += verdict.doubled
        self.ends += verdict.ends != 1
        self.holes += verdict.holes > 0
        self.failed += bool(verdict.wrong)
        self.attempts = max(self.attempts, verdict.attempts)
        self.twice += verdict.twice
        self.twice_most = max(self.twice_most, verdict.twice)
        self.slowest = max(self.slowest, verdict.seconds)

    def cells(self) -> tuple[str, ...]:
        """Itself, as the table has it."""
        counts = (self.rounds, self.lost, self.doubled, self.ends, self.holes, self.failed, self.attempts)
        mean = self.twice / max(1, self.rounds)
        return (*map(str, counts), f"{mean:.1f}", str(self.twice_most), f"{self.slowest:.1f} s")


class Soak:
    """All rounds of all faults, a few at a time."""

    def __init__(self, faults: list[str], folder: Path) -> None:
        self.rows = {fault: Row() for fault in faults}
        self._folder = folder

    async def run(self, rounds: Iterator[Round], stages: Stages, parallel: int) -> None:
        """Play them. What was wrong is printed at once, and the logs of that round are kept."""
        async with asyncio.TaskGroup() as group:
            for _ in range(parallel + WAITING):
                group.create_task(self._play(rounds, stages))

    async def _play(self, rounds: Iterator[Round], stages: Stages) -> None:
        for played in rounds:
            folder = self._folder / f"{played.fault}-{played.seed}"
            try:
                verdict = await play(played, stages, folder)
            except PermissionError as error:
                print(f"passed over {played.fault}: {error}", flush=True)
                continue
            self.rows[played.fault].count(verdict)
            if verdict.wrong:
                (folder / "ledger.jsonl").write_text(verdict.ledger)
                print(
                    f"FAILED {played.fault}, seed {played.seed}; logs in {folder}",
                    *verdict.wrong,
                    sep="\n  ",
                    flush=True,
                )
            else:
                await asyncio.to_thread(shutil.rmtree, folder)

    def table(self) -> str:
        """What became of the rounds so far."""
        width = max(map(len, self.rows))
        lines = [(" " * width, HEADINGS), *((fault.ljust(width), row.cells()) for fault, row in self.rows.items())]
        return "\n".join("  ".join([name, *(cell.rjust(9) for cell in cells)]) for name, cells in lines)


def every_round(faults: list[str], first_seed: int, count: int) -> Iterator[Round]:
    """Each fault once with the first seed, then each with the next; so one can be played again by its seed."""
    for seed in range(first_seed, first_seed + count):
        yield from (Round(fault, seed) for fault in faults)


def main() -> int:
    """Play as requested; 1 if anything was lost, doubled, or otherwise not as promised."""
    arguments = _read_arguments()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(arguments.only, folder)
    print(
        f"seeds {arguments.seed} to {arguments.seed + arguments.rounds - 1}; failed rounds are kept in {folder}",
        flush=True,
    )
    # On SIGTERM, it ends its daemons and brokers, and prints what it has found so far.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        asyncio.run(_soak(soak, arguments, folder))
    except KeyboardInterrupt:
        print("interrupted")
    print(soak.table())
    return int(any(row.failed for row in soak.rows.values()))


async def _soak(soak: Soak, arguments: argparse.Namespace, folder: Path) -> None:
    rounds = every_round(arguments.only, arguments.seed, arguments.rounds)
    with find_broker() as broker:
        async with Stages(folder / "brokers", broker.url, arguments.parallel) as stages:
            await soak.run(rounds, stages, arguments.parallel)


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="how often each fault is played")
    parser.add_argument("--only", type=_names, default=list(FAULTS), help="faults, with commas between them")
    parser.add_argument("--parallel", type=int, default=3, help="how many rounds are played at the same time")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the first round; then counted up")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(FAULTS):
        raise argparse.ArgumentTypeError(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())

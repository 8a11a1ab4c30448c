"""How much memory the processes of one session hold."""

import re
from pathlib import Path

import msgspec


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """MiB, summed over processes: resident, and with shared pages divided among those that share them."""

    processes: int
    resident: float
    proportional: float

    def __str__(self) -> str:
        return f"resident {self.resident:.1f} MiB, PSS {self.proportional:.1f} MiB, processes {self.processes}"


def session_memory(leader: int) -> Memory:
    """What the session that ``leader`` began holds now."""
    rollups = [(folder / "smaps_rollup").read_text() for folder in _processes(leader)]
    return Memory(
        processes=len(rollups),
        resident=sum(_mebibytes(rollup, "Rss") for rollup in rollups),
        proportional=sum(_mebibytes(rollup, "Pss") for rollup in rollups),
    )


def _processes(leader: int) -> list[Path]:
    return [folder for folder in Path("/proc").glob("[0-9]*") if _session(folder) == leader]


def _session(folder: Path) -> int:
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[3])
    except (FileNotFoundError, ProcessLookupError):
        return 0  # gone meanwhile


def _mebibytes(rollup: str, field: str) -> float:
    found = re.search(rf"^{field}: +(\d+) kB$", rollup, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0

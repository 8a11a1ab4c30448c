"""What processes have used, as the kernel counts it."""

import os
from collections.abc import Iterator
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    return sum(_times(pid)[:2]) / TICKS


def children_seconds(pid: int) -> float:
    """User and system time of those of its children that have ended."""
    return sum(_times(pid)[2:]) / TICKS


def _times(pid: int) -> list[int]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [int(field) for field in fields[11:15]]


def broker_pid(port: int | None) -> int | None:
    """The Erlang of a private node with this port; None if the broker is another one."""
    name = f"RABBITMQ_NODENAME=training-{port}@localhost".encode()
    return next((pid for pid, variables in _nodes() if name in variables), None)


def _nodes() -> Iterator[tuple[int, list[bytes]]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_text() == "beam.smp\n":
                yield int(folder.name), (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # gone meanwhile, or another user's

"""Reservations: the disk space that active jobs will still fill, and that no other job is given."""

import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import structlog

from training_presets.disk import DiskNeed
from training_worker.settings import Settings
from training_worker.storage.cleanup import Cleanup
from training_worker.storage.disk_usage import GIB, device_of, free_bytes, tree_bytes

log = structlog.get_logger()


class Portion(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes that a run will have written on one disk; to ``folder``, once that is known."""

    path: Path
    device: int
    needed: int
    folder: Path | None

    @property
    def written(self) -> int:
        """The bytes that are there already."""
        return 0 if self.folder is None else tree_bytes(self.folder)

    @property
    def left(self) -> int:
        """The bytes that are still to come; 0 for a run that has grown beyond its need."""
        return max(0, self.needed - self.written)


class Shortage(msgspec.Struct, frozen=True, kw_only=True):
    """A lack of space for a job, described with figures; ``passes`` if it may end with other jobs of this host."""

    text: str
    passes: bool


class Reservation:
    """The space of one job, none at first. Leaving the context releases it."""

    def __init__(self, owner: "Reservations", job_id: str) -> None:
        self._owner = owner
        self.job_id = job_id
        self.portions: list[Portion] = []

    def __enter__(self) -> Self:
        """Enter the context; nothing is reserved by that."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the space: the job is no longer active here."""
        self._owner.drop(self)

    def take(
        self, need: DiskNeed, output: Path, run: Path | None = None, attempt: Path | None = None
    ) -> Shortage | None:
        """Reserve what a job needs at its output and in the state directory, in place of what it had reserved.

        ``run`` and ``attempt`` are the folders that it will fill. None if it has that space; otherwise it has none.
        This takes a while: what nobody needs is removed first. Raises `OSError`.
        """
        return self._owner.take(self, need, output, run, attempt)

    def keep(self, need: DiskNeed, output: Path, run: Path, attempt: Path) -> None:
        """Reserve the same for an existing run, whether it has the space or not."""
        self.portions = self._owner.portions(need, output, run, attempt)


class Reservations:
    """All reservations of one daemon. Methods may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._state_dir = settings.state_dir
        self._cleanup = Cleanup(settings, self.job_ids)
        self._taking = threading.Lock()
        self._all: list[Reservation] = []

    @property
    def cleanup(self) -> Cleanup:
        """The cleanup that keeps what these jobs need."""
        return self._cleanup

    def job_ids(self) -> set[str]:
        """Return the active jobs."""
        return {reservation.job_id for reservation in list(self._all)}

    def make(self, job_id: str) -> Reservation:
        """Make a new reservation: from now on the job is active."""
        reservation = Reservation(self, job_id)
        self._all.append(reservation)
        return reservation

    def drop(self, reservation: Reservation) -> None:
        """Release all of a reservation."""
        self._all.remove(reservation)

    def portions(self, need: DiskNeed, output: Path, run: Path | None, attempt: Path | None) -> list[Portion]:
        """Return a need as portions on this host's disks. Raises `OSError`."""
        state = self._state_dir
        return [
            Portion(path=output, device=device_of(output), needed=need.output, folder=attempt),
            Portion(path=state, device=device_of(state), needed=need.state, folder=run),
        ]

    def take(
        self, reservation: Reservation, need: DiskNeed, output: Path, run: Path | None, attempt: Path | None
    ) -> Shortage | None:
        """See `Reservation.take`."""
        with self._taking:
            reservation.portions = []
            portions = self.portions(need, output, run, attempt)
            # The claim of a second copy of a job will fail: it needs no space beside the first.
            others = [each for each in list(self._all) if each.job_id != reservation.job_id]
            shortages = self._shortages(portions, [portion for each in others for portion in each.portions])
            if not shortages:
                reservation.portions = portions
                return None
        text = "; ".join(shortage.text for shortage in shortages)
        return Shortage(text=text, passes=all(shortage.passes for shortage in shortages))

    def _shortages(self, portions: list[Portion], taken: list[Portion]) -> list[Shortage]:
        """Return what is missing on each disk beside the others' reservations, after removing what nobody needs."""
        found = []
        for device in {portion.device: None for portion in portions}:
            own = [portion for portion in portions if portion.device == device]
            others = [portion for portion in taken if portion.device == device]
            needed, set_aside = sum(portion.left for portion in own), sum(portion.left for portion in others)
            self._cleanup.make_room(own[0].path, needed + set_aside)
            free = free_bytes(own[0].path)
            if free < needed + set_aside:
                passes = free + sum(portion.written for portion in others) >= needed
                found.append(Shortage(text=_describe(own, needed, free, set_aside), passes=passes))
        return found


def _describe(own: Iterable[Portion], needed: int, free: int, set_aside: int) -> str:
    path = next(iter(own)).path
    text = f"{needed / GIB:.1f} GiB are needed at {path}, and {free / GIB:.1f} are free"
    return f"{text}, of which running jobs will fill {set_aside / GIB:.1f}" if set_aside else text

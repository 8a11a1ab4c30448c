"""The cleanup: what nobody will ask for any more is removed by its age, by its size, or where a job needs the space."""

import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec
import structlog

from training_worker.observations import DiskUse
from training_worker.runs.process_identity import ProcessIdentity
from training_worker.runs.run import read_run
from training_worker.runs.run_directory import IDENTITY_FILE, RunDirectory
from training_worker.runs.state_layout import attempt_path, caches_dir, runs_dir
from training_worker.settings import Settings
from training_worker.storage.cache_entries import Caches
from training_worker.storage.disk_usage import DAY, GIB, changed_at, device_of, folders_in, free_bytes, tree_bytes
from training_worker.storage.ended_jobs import EndedJob, Note, notes

# However much space is needed: what is younger than this (seconds) may still be looked at.
YOUNG = DAY

log = structlog.get_logger()


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that nobody needs, and when it was left (unix seconds); ``job_id`` is its ended job."""

    path: Path
    left_at: float
    job_id: str | None = None


class Cleanup:
    """Removes what nobody needs; never what belongs to the jobs that ``busy`` names, which is asked each time.

    Run folders that a daemon can read are never removed: each has a running job, or one whose end is not published yet.
    """

    def __init__(self, settings: Settings, busy: Callable[[], Collection[str]]) -> None:
        self._settings = settings
        self._state_dir = settings.state_dir
        self._caches = Caches(caches_dir(settings.state_dir))
        self._busy = busy

    def clean(self) -> None:
        """Remove what is older than `keep_days`, and of the rest the oldest, as far as it is beyond its limit.

        What cannot be read or removed is left.
        """
        settings, now = self._settings, time.time()
        before = now - settings.keep_days * DAY
        if removed := self._caches.clean(before, int(settings.cache_limit * GIB)):
            log.info("cleaned", path=str(caches_dir(self._state_dir)), entries=len(removed))
        for leftover in self._leftovers(before):
            self._remove(leftover)
        self._forget(before)
        self._keep_within(int(settings.keep_limit * GIB), now - YOUNG)

    def _keep_within(self, limit_bytes: int, before: float) -> None:
        kept = [(leftover, tree_bytes(leftover.path)) for leftover in self._leftovers(before)]
        excess = sum(size for _, size in kept) - limit_bytes
        for leftover, size in kept:
            if excess <= 0:
                break
            self._remove(leftover)
            excess -= size

    def make_room(self, place: Path, wanted: int) -> None:
        """Have ``wanted`` bytes free on the disk of a path, if removing what nobody needs achieves that.

        Caches, which can be made again, go first; then what is older than a day. Raises `OSError`.
        """
        if free_bytes(place) >= wanted:
            return
        device = device_of(place)
        entries = self._caches.unused() if device_of(self._state_dir) == device else []
        leftovers = [each for each in self._leftovers(time.time() - YOUNG) if device_of(each.path) == device]
        spare = sum(entry.size for entry in entries) + sum(tree_bytes(leftover.path) for leftover in leftovers)
        if free_bytes(place) + spare < wanted:
            # Removing all would not suffice: nothing is removed for a job that is too large for this host.
            return
        while free_bytes(place) < wanted and entries:
            entries.pop(0).remove()
        while free_bytes(place) < wanted and leftovers:
            self._remove(leftovers.pop(0))

    def use(self) -> dict[DiskUse, int]:
        """Return how many bytes each kind uses."""
        folders = {
            DiskUse.RUNS: runs_dir(self._state_dir),
            DiskUse.CACHES: caches_dir(self._state_dir),
            DiskUse.STANDBY: self._state_dir / "standby",
        }
        use = {kind: tree_bytes(folder) for kind, folder in folders.items()}
        use[DiskUse.OTHER] = max(0, tree_bytes(self._state_dir) - sum(use.values()))
        use[DiskUse.ENDED] = sum(tree_bytes(leftover.path) for leftover in self._attempts(time.time()))
        return use

    def _leftovers(self, before: float) -> list[Leftover]:
        """Return what nothing has changed since ``before``, the oldest first."""
        found = (*self._runs(before), *self._standby(before), *self._attempts(before))
        return sorted(found, key=lambda leftover: leftover.left_at)

    def _runs(self, before: float) -> Iterator[Leftover]:
        for path in folders_in(runs_dir(self._state_dir)):
            left_at = changed_at(path)
            # Read last: reading an unfinished folder removes it.
            if left_at < before and not _is_in_use(path) and read_run(RunDirectory(path)) is None and path.exists():
                yield Leftover(path=path, left_at=left_at)

    def _standby(self, before: float) -> Iterator[Leftover]:
        for device in folders_in(self._state_dir / "standby"):
            for path in folders_in(device):
                if (left_at := changed_at(path)) < before and not _is_in_use(path):
                    yield Leftover(path=path, left_at=left_at)

    def _attempts(self, before: float) -> Iterator[Leftover]:
        for note in notes(self._state_dir):
            if note.written_at < before and not self._is_wanted(note.job):
                yield from _attempts_left(note, before)

    def _is_wanted(self, job: EndedJob) -> bool:
        """Return whether what the job left must stay: it is outside our roots, or the job is active here again."""
        roots = [root.resolve() for root in self._settings.output_roots]
        return not any(root in Path(job.output_path).parents for root in roots) or self._is_here(job.job_id)

    def _is_here(self, job_id: str) -> bool:
        own = re.compile(re.escape(job_id) + r"\.[0-9]+\Z")
        return job_id in self._busy() or any(own.match(path.name) for path in folders_in(runs_dir(self._state_dir)))

    def _forget(self, before: float) -> None:
        for note in notes(self._state_dir):
            if note.written_at < before and not self._is_here(note.job.job_id):
                note.path.unlink(missing_ok=True)

    def _remove(self, leftover: Leftover) -> None:
        # Checked again: listing takes a while, and the job may have been put back meanwhile.
        if leftover.job_id is not None and self._is_here(leftover.job_id):
            return
        shutil.rmtree(leftover.path, ignore_errors=True)
        if not leftover.path.exists():
            log.info("cleaned", path=str(leftover.path))


def _attempts_left(note: Note, before: float) -> Iterator[Leftover]:
    job, attempts = note.job, _attempts_of(note.job)
    changed = {number: changed_at(path) for number, path in attempts.items()}
    # A later attempt is young: the job was put back, and another worker may resume from the earlier ones.
    if any(changed[number] >= before for number in attempts if number > job.attempt):
        return
    for number, path in attempts.items():
        if number <= job.attempt and changed[number] < before:
            yield Leftover(path=path, left_at=max(changed[number], note.written_at), job_id=job.job_id)


def _attempts_of(job: EndedJob) -> dict[int, Path]:
    """Return the folders of a job's attempts, by their numbers."""
    output = Path(job.output_path)
    own = re.compile(re.escape(attempt_path(output, job.job_id, 0).name.removesuffix("0")) + r"([0-9]+)\Z")
    return {int(match[1]): path for path in folders_in(output.parent) if (match := own.match(path.name))}


def _is_in_use(folder: Path) -> bool:
    identity = ProcessIdentity.read(folder / IDENTITY_FILE)
    return identity is not None and identity.is_alive

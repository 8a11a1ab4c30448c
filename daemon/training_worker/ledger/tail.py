"""The tail of the ledger since a time: histories by job, and markers that somebody waits for."""

import asyncio
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from training_schemas.ledger import AnyEntry, Barrier, Completed, EndEntry, JobEntry, decode_entry
from training_schemas.validation import UNREADABLE
from training_worker.ledger.job_history import JobHistory

# How far the clocks of hosts and broker may differ, seconds.
CLOCK_SLACK = 60.0

# Histories kept in memory, each of one to two KiB.
MOST_JOBS = 20_000

log = structlog.get_logger()


class Tail:
    """The histories of all jobs, without what only few need: the encoded event of an end, and old checkpoints."""

    def __init__(self, *, since: float) -> None:
        self.since = since
        self._offset: int | None = None
        self._histories: OrderedDict[str, tuple[float, JobHistory]] = OrderedDict()
        self._waiters: dict[str, asyncio.Future[None]] = {}

    @property
    def start(self) -> dict[str, Any]:
        """Return the consumer's arguments: where to resume."""
        if self._offset is not None:
            return {"x-stream-offset": self._offset + 1}
        return {"x-stream-offset": datetime.fromtimestamp(self.since, UTC)}

    @property
    def offset(self) -> int | None:
        """The offset up to which it has been read."""
        return self._offset

    def expect(self, nonce: str) -> asyncio.Future[None]:
        """Return a future that is done when the marker has come back."""
        return self._waiters.setdefault(nonce, asyncio.get_running_loop().create_future())

    def forget(self, nonce: str) -> None:
        """Forget the marker: nobody waits for it any more."""
        self._waiters.pop(nonce, None)

    def history(self, job_id: str) -> JobHistory:
        """Return what is known of a job."""
        return self._histories.get(job_id, (0.0, JobHistory()))[1]

    def began_before(self, job_id: str) -> bool:
        """Return whether only a part of the job is known: it was submitted before all that was read."""
        return job_id in self._histories and self.history(job_id).submitted_at is None

    def receive(self, body: bytes, offset: int) -> None:
        """Apply one entry."""
        if self._offset is not None and offset <= self._offset:
            return
        self._offset = offset
        try:
            entry = decode_entry(body)
        except UNREADABLE as error:
            # A later version's entry, or an invalid one. What this version decides does not depend on it.
            log.warning("ledger_entry_unreadable", offset=offset, error=str(error))
            return
        if isinstance(entry, Barrier):
            waiter = self._waiters.get(entry.nonce)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        elif isinstance(entry, JobEntry):
            self._remember(entry)

    def _remember(self, entry: Any) -> None:
        self._keep(entry, _lean(self.history(entry.job_id).after(_without_event(entry))))
        if len(self._histories) > MOST_JOBS:
            _, (time, _) = self._histories.popitem(last=False)
            # Jobs submitted before this may have been forgotten, and are looked up by a scan.
            self.since = max(self.since, time + CLOCK_SLACK)

    def _keep(self, entry: Any, history: JobHistory) -> None:
        self._histories[entry.job_id] = (entry.time, history)
        self._histories.move_to_end(entry.job_id)


class JobTail(Tail):
    """The whole history of one job, up to its entry ``until`` where there is one."""

    def __init__(self, *, since: float, job_id: str, until: JobEntry | None = None) -> None:
        super().__init__(since=since)
        self._job_id = job_id
        self._until = until
        self._ended = False

    def _remember(self, entry: Any) -> None:
        self._ended = self._ended or entry == self._until
        if entry.job_id == self._job_id and not self._ended:
            self._keep(entry, self.history(entry.job_id).after(entry))


def _without_event(entry: AnyEntry) -> AnyEntry:
    if isinstance(entry, EndEntry):
        return msgspec.structs.replace(entry, event=msgspec.Raw(b""))
    return entry


def _lean(history: JobHistory) -> JobHistory:
    """Drop what is not needed: no attempt resumes from a completed job's checkpoints; a failed one may be put back."""
    if isinstance(history.terminal, Completed) and history.checkpoints:
        return msgspec.structs.replace(history, checkpoints=())
    return history

"""A job's history: what the ledger's entries about it add up to."""

import msgspec

from training_schemas.ledger import (
    AnyEntry,
    Barrier,
    Cancelled,
    CancelRequested,
    CheckpointSaved,
    Claimed,
    Completed,
    Failed,
    Released,
    Submitted,
    TerminalEntry,
)


class JobHistory(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of a job. ``attempt`` is the last one claimed, 0 where there is none."""

    digest: str | None = None
    attempt: int = 0
    checkpoint: CheckpointSaved | None = None
    cancel_requested: bool = False
    terminal: TerminalEntry | None = None

    def after(self, entry: AnyEntry) -> "JobHistory":
        """The history once ``entry`` has been written too."""
        match entry:
            case Submitted():
                return msgspec.structs.replace(self, digest=self.digest or entry.digest)
            case Claimed():
                return msgspec.structs.replace(self, attempt=max(self.attempt, entry.attempt))
            case CheckpointSaved():
                return msgspec.structs.replace(self, checkpoint=entry)
            case CancelRequested():
                return msgspec.structs.replace(self, cancel_requested=True)
            case Completed() | Failed() | Cancelled():
                return msgspec.structs.replace(self, terminal=self.terminal or entry)
            case Released() | Barrier():
                return self

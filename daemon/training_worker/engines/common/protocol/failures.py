"""How a run ends other than well, and what of that is reported to the daemon."""

import errno
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .gpu_memory import peak_vram_mib

# Reasons of the wire's closed list, which cannot be imported here.
OUT_OF_MEMORY = "outOfMemory"
DISK_FULL = "diskFull"
TRAINER_CRASHED = "trainerCrashed"
OUTPUT_INVALID = "outputInvalid"
DATASET_INVALID = "datasetInvalid"

# The message of a library that does not hand on the error number (safetensors, torch.save).
NO_SPACE = "No space left on device"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, as records have it: where (a field's path or a file's), and what."""

    path: str
    reason: str


class TrainingFailure(Exception):  # noqa: N818 # the name that the records have
    """The run failed and knows why; ``faults`` are all the things that are wrong, not only the first."""

    def __init__(self, reason: str, message: str, faults: Iterable[Fault] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.faults = list(faults)


class TrainingStopped(Exception):  # noqa: N818 # no error: somebody asked for it
    """The run stopped at a safe point, for the reason ``why``, after ``step`` optimizer steps."""

    def __init__(self, why: str, step: int = 0) -> None:
        super().__init__(why)
        self.why = why
        self.step = step


def failure_of_faults(reason: str, beginning: str, faults: list[Fault]) -> TrainingFailure:
    """Make a failure whose message has the first fault, and how many more there are."""
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return TrainingFailure(reason, f"{beginning}: {faults[0].path}: {faults[0].reason}{more}", faults)


def failure_of(error: Exception, phase: str | None = None) -> TrainingFailure:
    """Classify an exception for the job, with the phase in which memory ran out; an unforeseen one is a crash."""
    return known_failure(error, phase) or crash(error)


def known_failure(error: Exception, phase: str | None = None) -> TrainingFailure | None:
    """Classify an exception that means the same in any engine; None for all others."""
    if isinstance(error, TrainingFailure):
        return error
    if _is_out_of_memory(error):
        return TrainingFailure(OUT_OF_MEMORY, f"cannot go on: out of memory{_where(phase)}: {error}")
    if getattr(error, "errno", None) == errno.ENOSPC or NO_SPACE in _described(error):
        return TrainingFailure(DISK_FULL, f"cannot write: {error}")
    return None


def crash(error: Exception) -> TrainingFailure:
    """Make a failure of an unforeseen exception."""
    return TrainingFailure(TRAINER_CRASHED, f"cannot go on: {_described(error)}")


def report_failure(failure: TrainingFailure, write: Callable[[], None]) -> None:
    """Write a failure's record, or report on standard error that there is none."""
    try:
        write()
    except OSError as error:  # the disk of the run folder is full, too
        print(f"cannot report the failure: {error}\n{failure}", file=sys.stderr)  # noqa: T201 # nor anywhere else


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _where(phase: str | None) -> str:
    """In which phase, and how much of its GPU's memory the program has held at most."""
    peak = peak_vram_mib()
    held = "" if peak is None else f", of which it held {peak} MiB"
    return f" in phase {phase}{held}" if phase else held


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # a run that never imported it has no such error
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.cuda.OutOfMemoryError))

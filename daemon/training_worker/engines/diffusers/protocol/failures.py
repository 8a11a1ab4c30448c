"""How a run ends other than well, and what of that the daemon is told."""

import errno
import sys

from training_schemas.progress import FailureReason, Fault, Phase
from training_worker.engines.diffusers.protocol.gpu_memory import peak_vram_mib

# What a library says when it does not hand on the error number (safetensors, torch.save).
NO_SPACE = "No space left on device"


class TrainingFailure(Exception):  # noqa: N818 # the word of the records
    """The run failed and knows why; ``faults`` are all the things that are wrong, not only the first."""

    def __init__(self, reason: FailureReason, message: str, faults: list[Fault] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.faults = faults or []


class TrainingStopped(Exception):  # noqa: N818 # no error: somebody asked for it
    """The run stopped at a safe point, as ``why`` says, after ``step`` optimizer steps."""

    def __init__(self, why: str, step: int = 0) -> None:
        super().__init__(why)
        self.why = why
        self.step = step


def failure_of(error: Exception, phase: Phase | None = None) -> TrainingFailure:
    """Tell what an exception means for the job, and in which phase memory ran out; what nobody foresaw is a crash."""
    if isinstance(error, TrainingFailure):
        return error
    text = f"{type(error).__name__}: {error}"
    if _is_out_of_memory(error):
        return TrainingFailure(FailureReason.OUT_OF_MEMORY, f"cannot go on: out of memory{_where(phase)}: {error}")
    if getattr(error, "errno", None) == errno.ENOSPC or NO_SPACE in text:
        return TrainingFailure(FailureReason.DISK_FULL, f"cannot write: {error}")
    return TrainingFailure(FailureReason.TRAINER_CRASHED, f"cannot go on: {text}")


def _where(phase: Phase | None) -> str:
    """In which phase, and how much of its card the program has held at most."""
    peak = peak_vram_mib()
    held = "" if peak is None else f", of which it held {peak} MiB"
    return f" in phase {phase}{held}" if phase else held


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # a run that never imported it has no such error
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.cuda.OutOfMemoryError))

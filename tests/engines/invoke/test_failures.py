"""What exceptions mean in an environment that somebody else has set up."""

import errno

import pytest
import torch

from training_schemas.progress import (
    FailureReason,
)
from training_worker.engines.invoke.failures import failure_of

pytestmark = pytest.mark.trainer


@pytest.mark.parametrize(
    ("error", "phase", "reason", "message"),
    [
        (MemoryError("too much"), "training", "outOfMemory", "out of memory in phase training: too much"),
        (torch.cuda.OutOfMemoryError("CUDA"), "sampling", "outOfMemory", "in phase sampling"),
        (OSError(errno.ENOSPC, "No space"), "training", "diskFull", "cannot write"),
        (RuntimeError("No space left on device (os error 28)"), "training", "diskFull", "cannot write"),
        (PermissionError(errno.EACCES, "no", "/a"), "checkpointing", "outputInvalid", "cannot write"),
        (PermissionError(errno.EACCES, "no", "/a"), "loadingModel", "modelInvalid", "cannot read"),
        (ModuleNotFoundError("No module named 'peft'"), "loadingModel", "hostUnfit", "'peft'; install"),
        (AssertionError(), "training", "trainerCrashed", "AssertionError: "),
        (TypeError("a NoneType"), "loadingModel", "trainerCrashed", "TypeError: a NoneType"),
    ],
)
def test_exceptions_are_classified_by_what_they_mean(error: Exception, phase: str, reason: str, message: str) -> None:
    """As reasons of the closed list."""
    failure = failure_of(error, phase)

    assert FailureReason(reason) == failure.reason
    assert message in str(failure)

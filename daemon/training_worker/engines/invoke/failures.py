"""What an exception means for the job, in an environment that somebody else has set up."""

from ..common.protocol.failures import OUTPUT_INVALID, TrainingFailure, crash, known_failure


def failure_of(error: Exception, phase: str | None = None) -> TrainingFailure:
    """Classify an exception for the job, with the phase in which memory ran out; an unforeseen one is a crash."""
    return known_failure(error, phase) or _failure_of_host(error, phase) or crash(error)


def _failure_of_host(error: Exception, phase: str | None) -> TrainingFailure | None:
    if isinstance(error, PermissionError):
        reading = phase == "loadingModel"
        return TrainingFailure(
            "modelInvalid" if reading else OUTPUT_INVALID, f"cannot {'read' if reading else 'write'}: {error}"
        )
    if isinstance(error, ImportError):
        where = "in the environment whose interpreter the settings name as engines.invoke.python"
        message = f"cannot import what training needs: {error}; install invoke-training, and all that it needs, {where}"
        return TrainingFailure("hostUnfit", message)
    return None

"""The folder of an attempt's results."""

from pathlib import Path

from .failures import OUTPUT_INVALID, TrainingFailure


def make_attempt_folder(path: Path) -> None:
    """Make sure that results can be written.

    Raises:
        TrainingFailure: They cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        message = f"cannot write to attempt folder {path}: {error.strerror}"
        raise TrainingFailure(OUTPUT_INVALID, message) from error

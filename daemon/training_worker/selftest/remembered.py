"""What self-tests found, in the state directory: a file for each GPU and engine."""

from pathlib import Path

import msgspec
import structlog

from training_schemas.jobs import EngineName
from training_schemas.selftest import SelfTest

FOLDER = "selftest"

log = structlog.get_logger()


class Remembered:
    """The last self-test of each GPU in each engine's interpreter."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / FOLDER

    def find(self, gpu: str, engine: EngineName) -> SelfTest | None:
        """That of a GPU, by its UUID; None if there is none that can be read."""
        path = self._path(gpu, engine)
        try:
            return msgspec.json.decode(path.read_bytes(), type=SelfTest)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            # It is made again.
            log.warning("self_test_unreadable", path=str(path), error=str(error))
            return None

    def keep(self, gpu: str, engine: EngineName, test: SelfTest) -> None:
        """Write it down, whole or not at all; a disk that is full costs the next start a test, and no more."""
        path = self._path(gpu, engine)
        new = path.with_suffix(".new")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            new.write_bytes(msgspec.json.encode(test))
            new.replace(path)
        except OSError as error:
            log.warning("self_test_not_saved", path=str(path), error=str(error))

    def forget(self, gpu: str, engine: EngineName) -> None:
        """Remove it: it holds no more."""
        try:
            self._path(gpu, engine).unlink(missing_ok=True)
        except OSError as error:
            log.warning("self_test_not_removed", gpu=gpu, error=str(error))

    def _path(self, gpu: str, engine: EngineName) -> Path:
        return self._folder / f"{gpu}.{engine}.json"

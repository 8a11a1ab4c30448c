"""A host's GPUs as NVML reports them, without a GPU: the real binding on a small library of our own."""

import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_nvml.c")
LIBRARY = "libnvidia-ml.so.1"

# What a call returns; see nvmlReturn_t in nvml.h.
DRIVER_NOT_LOADED = 9
GPU_IS_LOST = 15
UNKNOWN = 999


class NoCompilerError(Exception):
    """There is no C compiler."""


def build_nvml(folder: Path) -> Path:
    """Compile the library into ``folder``. Raises `NoCompilerError`."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompilerError("no C compiler is installed")
    library = folder / LIBRARY
    subprocess.run([compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    return library


class Host:
    """A host whose NVML is the library in ``library_folder``, and reports what was described last."""

    def __init__(self, library_folder: Path, state: Path) -> None:
        self._library_folder = library_folder
        self._state = state

    def describe(self, *lines: str) -> None:
        """Describe the host; the lines are listed in ``fake_nvml.c``."""
        new = self._state.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        # At once: a process may be reading it.
        new.replace(self._state)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process on this host."""
        return dict(os.environ) | self.variables

    @property
    def variables(self) -> dict[str, str]:
        """What of it makes the host."""
        return {"LD_LIBRARY_PATH": str(self._library_folder), "FAKE_NVML": str(self._state)}

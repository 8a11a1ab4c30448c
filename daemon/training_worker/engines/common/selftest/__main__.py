"""The program of an interpreter that may have nothing of ours."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# In this interpreter, the name of the folder ``engines``.
PACKAGE = "training_worker_engines"


def load_package() -> None:
    """Make ``engines`` a package by its place, and take this folder off the path.

    Neither may be on the path: the one has a folder that would hide the library diffusers, and this one has modules of
    names that any library may have.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]
    engines = HERE.parents[1]
    spec: Any = importlib.util.spec_from_file_location(
        PACKAGE, engines / "__init__.py", submodule_search_locations=[str(engines)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    load_package()
    sys.exit(importlib.import_module(f"{PACKAGE}.common.selftest.attention").main())

"""The trainer program of the engine ``invoke``: ``PYTHON engines/invoke RUN_FOLDER``.

PYTHON is an interpreter that has invoke-training, and nothing of ours. So this folder and ``common`` beside it stand
alone: they need the standard library of Python 3.10, and late what invoke-training needs itself.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# In this interpreter, the name of the folder above.
PACKAGE = "training_worker_engines"


def load_package() -> None:
    """Make the folder above a package by its place, and take this one off the path.

    Neither may be on the path: the one has a folder ``diffusers`` that would hide the library, and this one has modules
    of names that any library may have.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]
    engines = HERE.parent
    spec: Any = importlib.util.spec_from_file_location(
        PACKAGE, engines / "__init__.py", submodule_search_locations=[str(engines)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    load_package()
    sys.exit(importlib.import_module(f"{PACKAGE}.invoke.program").main())

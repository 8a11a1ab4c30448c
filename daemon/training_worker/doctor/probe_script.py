"""The program that an engine's own interpreter runs as a file: it prints as JSON lines what that environment has.

    PYTHON probe_script.py '{"packages": [...], "source": "invoke-training", "modules": [...]}'

It needs Python 3.10 and the standard library. The lines go from what cannot hang to what can, so that a probe which
ends early has still answered something. All that libraries print goes to standard error.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import sysconfig
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

GIT_LIMIT = 10.0


def answers(wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the answers, one part at a time."""
    yield {"python": platform.python_version()}
    yield {"folder": sysconfig.get_path("purelib")}
    yield {"packages": {name: installed(name) for name in wanted["packages"]}}
    if wanted["source"]:
        yield {"commit": commit_of(wanted["source"])}
    if wanted["modules"]:
        yield {"torch": tried(torch_build)}
        yield {"modules": {name: tried(lambda name=name: imported(name)) for name in wanted["modules"]}}


def installed(name: str) -> str | None:
    """Return the version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit_of(name: str) -> str | None:
    """Return the commit that a distribution was installed from: as pip recorded it, or an editable source's own."""
    try:
        text = importlib.metadata.distribution(name).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    origin = json.loads(text or "{}")
    if "vcs_info" in origin:
        return str(origin["vcs_info"].get("commit_id")) or None
    if origin.get("dir_info", {}).get("editable"):
        return head(unquote(urlsplit(origin["url"]).path))
    return None


def head(folder: str) -> str | None:
    """Return the commit that a folder has checked out; None where it is no repository itself."""
    # Git otherwise refuses the repositories of other users, and the worker's own user seldom made this one.
    git = ["git", "-c", "safe.directory=*", "-C", folder, "rev-parse", "--show-toplevel", "HEAD"]
    try:
        out = subprocess.run(git, capture_output=True, text=True, timeout=GIT_LIMIT, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    top, _, commit = out.strip().partition("\n")
    return commit if Path(top).resolve() == Path(folder).resolve() else None


def torch_build() -> dict[str, Any]:
    """Return how torch was built and what it sees. No GPU memory is used: another training may fill it."""
    torch: Any = importlib.import_module("torch")
    found: dict[str, Any] = {"version": str(torch.__version__), "cuda": torch.version.cuda, "devices": []}
    if torch.cuda.is_available():
        found["architectures"] = torch.cuda.get_arch_list()
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            found["devices"].append({"name": torch.cuda.get_device_name(index), "capability": [major, minor]})
    return found


def imported(name: str) -> dict[str, Any]:
    """Return how many seconds the import of a module takes."""
    began = time.monotonic()
    importlib.import_module(name)
    return {"seconds": time.monotonic() - began}


def tried(what: Any) -> dict[str, Any]:
    """Return the result of a call; if it fails, the error in one line, with all of it on standard error."""
    try:
        return dict(what())
    except BaseException as error:  # noqa: BLE001 - a module may do anything when it is imported, and exit
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}".strip()}


def main() -> None:
    """Print the answers to the first argument's question."""
    # Python puts this file's folder first on its path; its modules must not shadow the engine's.
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [path for path in sys.path if path != here]
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        for answer in answers(json.loads(sys.argv[1])):
            print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()

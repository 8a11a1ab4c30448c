"""The models of the allow-list: whether each folder is there, whole, readable, and free of pickles."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec

from training_worker.attempt import MODEL_INDEX_FILE
from training_worker.doctor.findings import Finding, State
from training_worker.settings import Settings

GROUP = "weights"
PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
SAFE = ".safetensors"


def check(settings: Settings) -> Iterator[Finding]:
    """Look at each model's folder; nothing of it is loaded."""
    if not settings.models:
        mend = '[models] in the settings: "black-forest-labs/FLUX.1-dev" = "/weights/FLUX.1-dev"'
        yield Finding(group=GROUP, name="models", state=State.ERROR, found="no model is allowed", mend=mend)
    for name, folder in settings.models.items():
        yield _look(name, folder)


def _look(name: str, folder: Path) -> Finding:
    # Gated models need the token of an account that has agreed to their terms; the daemon itself never needs one.
    download = f"hf download {shlex.quote(name)} --local-dir {shlex.quote(str(folder))}  # gated: hf auth login first"
    if not folder.is_dir():
        return _error(name, f"{folder} is no folder", download)
    if (unreadable := _unreadable(folder)) is not None:
        return _error(name, f"{unreadable} cannot be read by this user", f"chmod -R a+rX {shlex.quote(str(folder))}")
    return _look_inside(name, folder, download)


def _look_inside(name: str, folder: Path, download: str) -> Finding:
    try:
        index = msgspec.json.decode((folder / MODEL_INDEX_FILE).read_bytes(), type=dict[str, object])
    except FileNotFoundError:
        return _error(name, f"{folder} has no {MODEL_INDEX_FILE}: it is no pipeline folder of diffusers", download)
    except (OSError, ValueError) as error:
        return _error(name, f"{folder / MODEL_INDEX_FILE}: {error}", download)
    parts = [part for part, kind in index.items() if isinstance(kind, list) and None not in kind]
    if missing := [part for part in parts if not (folder / part).is_dir()]:
        return _error(name, f"{folder} lacks {', '.join(missing)}", download)
    if pickled := [part for part in parts if _is_pickled(folder / part)]:
        found = f"{', '.join(pickled)} in {folder}: pickles alone, which are refused since loading them runs code"
        return _error(name, found, f"{download.partition('  #')[0]} --exclude '*.bin' '*.pt' '*.pth' '*.ckpt'")
    return _weigh(name, folder, str(index.get("_class_name")), download)


def _weigh(name: str, folder: Path, pipeline: str, download: str) -> Finding:
    size = sum(file.stat().st_size for file in folder.rglob(f"*{SAFE}"))
    if not size:
        return _error(name, f"{folder} holds no weights", download)
    found = f"{pipeline}, {size / 2**30:.1f} GiB at {folder}"
    return Finding(group=GROUP, name=name, state=State.OK, found=found)


def _unreadable(folder: Path) -> Path | None:
    return next((path for path in (folder, *folder.rglob("*")) if not os.access(path, os.R_OK)), None)


def _is_pickled(part: Path) -> bool:
    endings = {file.suffix for file in part.iterdir()}
    return SAFE not in endings and bool(endings & PICKLES)


def _error(name: str, found: str, mend: str) -> Finding:
    return Finding(group=GROUP, name=name, state=State.ERROR, found=found, mend=mend)

"""The checks of the allow-list's models: whether each folder exists, is complete, readable, and free of pickles."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec

from training_worker.attempts.engine_selection import MODEL_INDEX_FILE
from training_worker.doctor.findings import Finding, State
from training_worker.doctor.hub_token import find_token, token_path
from training_worker.settings import Settings

GROUP = "weights"
PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
SAFE = ".safetensors"


# Only an account that has agreed to their terms can download these; the daemon itself never needs a token.
GATED = {"black-forest-labs/FLUX.1-dev"}


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The way to download a model to its folder: the commands, and what to know before."""

    download: str
    beware: str = ""
    remark: str = ""

    def brings(self, *without: str) -> str:
        """Return the commands, leaving out files of these names."""
        left_out = f" --exclude {shlex.join(without)}" if without else ""
        return f"{self.download}{left_out}{self.remark}"


def source_of(name: str, folder: Path) -> Source:
    """Return where this user can download a model."""
    download = f"hf download {shlex.quote(name)} --local-dir {shlex.quote(str(folder))}"
    if name not in GATED:
        return Source(download=download)
    terms = f"agreed to the terms at https://huggingface.co/{name}"
    token = find_token()
    if token is None:
        return Source(
            download=f"hf auth login && {download}",
            beware=f"; the model is gated, and this user has no token, in HF_TOKEN or {token_path()}",
            remark=f"  # with a token of an account that has {terms}",
        )
    return Source(
        download=download,
        beware=f"; the model is gated, and a token is in {token}",
        remark=f"  # if it is refused: the account that `hf auth whoami` names has not {terms}",
    )


def check(settings: Settings) -> Iterator[Finding]:
    """Check each model's folder; nothing of it is loaded."""
    if not settings.models:
        fix = '[models] in the settings: "black-forest-labs/FLUX.1-dev" = "/weights/FLUX.1-dev"'
        yield Finding(group=GROUP, name="models", state=State.ERROR, found="no model is allowed", fix=fix)
    for name, folder in settings.models.items():
        yield _look(name, folder, source_of(name, folder))


def _look(name: str, folder: Path, source: Source) -> Finding:
    if not folder.is_dir():
        return _incomplete(name, f"{folder} is no folder", source)
    if (unreadable := _unreadable(folder)) is not None:
        return _error(name, f"{unreadable} cannot be read by this user", f"chmod -R a+rX {shlex.quote(str(folder))}")
    return _look_inside(name, folder, source)


def _look_inside(name: str, folder: Path, source: Source) -> Finding:
    try:
        index = msgspec.json.decode((folder / MODEL_INDEX_FILE).read_bytes(), type=dict[str, object])
    except FileNotFoundError:
        return _incomplete(name, f"{folder} has no {MODEL_INDEX_FILE}: it is no pipeline folder of diffusers", source)
    except (OSError, ValueError) as error:
        return _incomplete(name, f"{folder / MODEL_INDEX_FILE}: {error}", source)
    parts = [part for part, kind in index.items() if isinstance(kind, list) and None not in kind]
    if missing := [part for part in parts if not (folder / part).is_dir()]:
        return _incomplete(name, f"{folder} lacks {', '.join(missing)}", source)
    if pickled := [part for part in parts if _is_pickled(folder / part)]:
        found = f"{', '.join(pickled)} in {folder}: pickles alone, which are refused since loading them runs code"
        return _incomplete(name, found, source, *(f"*{ending}" for ending in sorted(PICKLES)))
    return _weigh(name, folder, str(index.get("_class_name")), source)


def _weigh(name: str, folder: Path, pipeline: str, source: Source) -> Finding:
    size = sum(file.stat().st_size for file in folder.rglob(f"*{SAFE}"))
    if not size:
        return _incomplete(name, f"{folder} holds no weights", source)
    found = f"{pipeline}, {size / 2**30:.1f} GiB at {folder}"
    return Finding(group=GROUP, name=name, state=State.OK, found=found)


def _unreadable(folder: Path) -> Path | None:
    return next((path for path in (folder, *folder.rglob("*")) if not os.access(path, os.R_OK)), None)


def _is_pickled(part: Path) -> bool:
    endings = {file.suffix for file in part.iterdir()}
    return SAFE not in endings and bool(endings & PICKLES)


def _incomplete(name: str, found: str, source: Source, *without: str) -> Finding:
    return _error(name, f"{found}{source.beware}", source.brings(*without))


def _error(name: str, found: str, fix: str) -> Finding:
    return Finding(group=GROUP, name=name, state=State.ERROR, found=found, fix=fix)

"""The versions of what a result depends on."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")


def versions() -> dict[str, str]:
    """The libraries that a result depends on; upstream has no releases, so its version is that of its commit."""
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, "invoke_training"):
        try:
            library = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # it was imported from a path
        source = json.loads(library.read_text("direct_url.json") or "{}")
        commit = upstream_commit(source) if name == "invoke_training" else None
        found[name] = f"{library.version}+{commit}" if commit else library.version
    return found


def upstream_commit(source: Mapping[str, Any]) -> str | None:
    """The commit of what was installed from a repository, or from a folder that is one; None if neither is so."""
    if "vcs_info" in source:
        return str(source["vcs_info"]["commit_id"])
    if "url" not in source:
        return None
    git = Path(unquote(urlparse(source["url"]).path)) / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
    except OSError:
        return None

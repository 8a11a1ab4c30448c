"""The package's data files."""

import tomllib
from pathlib import Path
from typing import Any


def read_data(name: str) -> dict[str, Any]:
    """What a TOML file beside this module holds."""
    return tomllib.loads(Path(__file__).with_name(name).read_text("utf-8"))

"""The search for this user's Hugging Face token, by the rules of huggingface_hub. The token is never shown.

https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables lists the rules.
"""

import os
from pathlib import Path

# The second is the older name, which still applies if the first is not set.
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def find_token() -> str | None:
    """Return the variable or the file that holds a token; None if there is none that this user can read."""
    variable = next((name for name in VARIABLES if os.environ.get(name)), None)
    if variable is not None and os.environ[variable].strip():
        return variable
    path = token_path()
    try:
        return str(path) if path.read_text("utf-8").strip() else None
    except (OSError, UnicodeDecodeError):
        return None


def token_path() -> Path:
    """Return the file that `hf auth login` writes the token to."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{cache}/huggingface")
    path = os.environ.get("HF_TOKEN_PATH", f"{home}/token")
    # Not as pathlib does it, which fails for a user without a home.
    return Path(os.path.expandvars(os.path.expanduser(path)))  # noqa: PTH111

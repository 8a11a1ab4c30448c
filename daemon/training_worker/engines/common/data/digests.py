"""Digests of files."""

import hashlib
from pathlib import Path

BLOCK = 2**20


def digest_of(path: Path) -> str:
    """Hash a file's bytes: SHA-256, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()

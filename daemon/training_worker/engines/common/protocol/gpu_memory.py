"""The memory that this program has held of its GPU."""

import sys

MIB = 2**20


def peak_vram_mib() -> int | None:
    """The most that this program has held, in MiB, but for the driver's own part; None without a GPU or torch."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_reserved() // MIB if torch is not None and torch.cuda.is_available() else None

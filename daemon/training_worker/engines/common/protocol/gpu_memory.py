"""What this program has held of its card."""

import sys

MIB = 2**20


def peak_vram_mib() -> int | None:
    """The most that it has held, in MiB, but for the driver's own part; None without a card, or without torch."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_reserved() // MIB if torch is not None and torch.cuda.is_available() else None

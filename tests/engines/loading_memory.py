"""``python -m tests.engines.loading_memory SMALL BIG QUANTIZATION``: what it takes to load a transformer, as JSON.

Counted is this process's own memory: the pages of a mapped file are not, the system takes them back when it likes.
"""

import sys
import threading
import time
from pathlib import Path

import msgspec
import torch
from diffusers import FluxTransformer2DModel

from training_schemas.spec import Quantization
from training_worker.engines.diffusers.models.layerwise_loading import load_denoiser


class LoadingMemory(msgspec.Struct):
    """In bytes: the most that there was while it loaded, beyond what was there before; and what the model holds."""

    peak: int
    held: int


class Watch(threading.Thread):
    """Looks every millisecond how much there is, from its start to `stop`."""

    def __init__(self) -> None:
        super().__init__()
        self.before = self.most = own_memory()
        self._done = threading.Event()

    def run(self) -> None:
        """Look until it is stopped."""
        while not self._done.is_set():
            self.most = max(self.most, own_memory())
            time.sleep(0.001)

    def stop(self) -> int:
        """Give the most that has been added."""
        self._done.set()
        self.join()
        return self.most - self.before


def own_memory() -> int:
    """What of this process is in memory and in no file, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def held_bytes(model: torch.nn.Module) -> int:
    """What a model's weights and their scales take, in bytes."""
    tensors = [*model.parameters(), *model.buffers()]
    # bitsandbytes keeps scales beside its weights, where torch does not see them.
    scales = [tensor.quant_state.absmax for tensor in tensors if hasattr(tensor, "quant_state")]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors + scales)


def measure(small: Path, big: Path, quantization: Quantization) -> LoadingMemory:
    """Load a small model first, for what libraries load at their first use."""
    torch.set_num_threads(1)
    load(small, quantization)
    watch = Watch()
    watch.start()
    try:
        model = load(big, quantization)
    finally:
        peak = watch.stop()
    return LoadingMemory(peak=peak, held=held_bytes(model))


def load(folder: Path, quantization: Quantization) -> FluxTransformer2DModel:
    """Load in bfloat16."""
    return load_denoiser(FluxTransformer2DModel, folder, torch.bfloat16, torch.device("cpu"), quantization)


if __name__ == "__main__":
    measured = measure(Path(sys.argv[1]), Path(sys.argv[2]), Quantization(sys.argv[3]))
    sys.stdout.buffer.write(msgspec.json.encode(measured))

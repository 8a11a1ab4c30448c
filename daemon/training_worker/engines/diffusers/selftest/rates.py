"""How fast a GPU is at what a step consists of: what the model of time has as constants. Each is a median of passes."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from training_schemas.spec import AttentionKernel, LoraTargets, OptimizerName, Quantization
from training_worker.engines.diffusers.models.attention import choose_attention
from training_worker.engines.diffusers.models.lora import add_adapter, flux_layers
from training_worker.engines.diffusers.models.quantization import quantized
from training_worker.engines.diffusers.selftest import layers, optimizers

BF16 = torch.bfloat16
# Tokens at 512 and 1,024 pixels with 512 of text, the widths of FLUX.1-dev, the tensors of its attention's adapter.
TOKENS, WIDTH, WIDE, HEADS = (1536, 4608), 3072, 12288, 24
SMALL_TOKENS, SMALL_WIDTH, SMALL_WIDE, SMALL_HEADS = (64, 96), 64, 256, 2
TENSORS, SMALL_TENSORS = 532, 8
REPEATS = 7
# Of short operations so many are timed as one, so that the GPU is never waited for in between.
BATCH = 20

Rate = dict[str, Any]


class Rates:
    """Measures one GPU; on a CPU, small ones, which show nothing but that they can be measured."""

    def __init__(self, device: str, kernels: Sequence[AttentionKernel]) -> None:
        """Prepare for a device, on which these kernels of attention are right."""
        self._device = device
        self._kernels = kernels
        full = device == "cuda"
        self._tokens = TOKENS if full else SMALL_TOKENS
        self._width, self._wide = (WIDTH, WIDE) if full else (SMALL_WIDTH, SMALL_WIDE)
        self._heads = HEADS if full else SMALL_HEADS
        self._tensors = TENSORS if full else SMALL_TENSORS

    def measure(self) -> Iterator[Rate]:
        """All of them, a few fields of ``GpuRates`` at a time; and ``attention``, the seconds of each kernel."""
        choose_attention(self._kernels)
        yield {"productFlops": self._products()}
        yield from self._attention()
        yield {"bytesPerSecond": self._bytes()}
        yield {"launchSeconds": self._launch()}
        yield {"restoredPerSecond": {how: self._restored(how) for how in Quantization if how is not Quantization.NONE}}
        yield {"optimizerSeconds": self._optimizer()}

    def _draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self._device).to(BF16)

    def _products(self) -> float:
        weight, seconds, flops = self._draw(self._wide, self._width), 0.0, 0.0
        for rows in self._tokens:
            inputs = self._draw(rows, self._width)
            seconds += self._seconds(partial(torch.nn.functional.linear, inputs, weight))
            flops += 2 * rows * self._width * self._wide
        return flops / seconds

    def _attention(self) -> Iterator[Rate]:
        """The seconds of each kernel at the longest length, then FLOP/s of the fastest: the backward pass is 2.5."""
        taken = {kernel: passes for kernel in self._kernels if (passes := self._kernel_seconds(kernel)) is not None}
        yield {"attention": {kernel: sum(passes[-1]) for kernel, passes in taken.items()}}
        if taken:
            fastest = min(taken.values(), key=lambda passes: sum(passes[-1]))
            flops = sum(4 * tokens**2 * self._width for tokens in self._tokens)
            yield {"attentionForwardFlops": flops / sum(forward for forward, _ in fastest)}
            yield {"attentionBackwardFlops": 2.5 * flops / sum(backward for _, backward in fastest)}

    def _kernel_seconds(self, kernel: AttentionKernel) -> list[tuple[float, float]] | None:
        """Seconds forth and back for each length; None where there is not the memory."""
        try:
            with sdpa_kernel([getattr(SDPBackend, kernel.value.upper())]):
                return [self._pass_seconds(tokens) for tokens in self._tokens]
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None

    def _pass_seconds(self, tokens: int) -> tuple[float, float]:
        shape = (1, tokens, self._heads, self._width // self._heads)
        leaves = [self._draw(*shape).requires_grad_() for _ in range(3)]
        gradient = self._draw(*shape).permute(0, 2, 1, 3)

        def forward() -> torch.Tensor:
            query, key, value = (leaf.permute(0, 2, 1, 3) for leaf in leaves)
            return torch.nn.functional.scaled_dot_product_attention(query, key, value)

        output = forward()
        forth = self._seconds(forward, batch=3)
        back = self._seconds(lambda: torch.autograd.grad(output, leaves, gradient, retain_graph=True), batch=3)
        return forth, back

    def _bytes(self) -> float:
        """Bytes read and written a second, by casts from bfloat16 to float32 and by ``addcmul``."""
        moved, seconds = 0, 0.0
        for tokens in self._tokens:
            one, two, three = (self._draw(tokens, self._width) for _ in range(3))
            wide = torch.empty_like(one, dtype=torch.float32)
            seconds += self._seconds(partial(wide.copy_, one))
            seconds += self._seconds(partial(torch.addcmul, one, two, three))
            moved += one.nbytes + wide.nbytes + 4 * one.nbytes
        return moved / seconds

    def _launch(self) -> float:
        """Seconds an operation of a tiny model with adapters forth and back, where nothing is waited for but Python.

        Views are not counted.
        """
        model = layers.build(self._device, full=False).to(BF16)
        weights = add_adapter(model, flux_layers(LoraTargets.ATTENTION), layers.RANK, layers.SEED)
        inputs = layers.inputs_of(model, layers.CASES[0], BF16)

        def step() -> None:
            with torch.autocast(self._device, dtype=BF16):
                output = model(**inputs, return_dict=False)[0]
            torch.autograd.grad(output.float().square().mean(), weights)

        with _Counter() as counter:
            step()
        return self._wall_seconds(step) / int(counter.count)

    def _restored(self, how: Quantization) -> float:
        """Weights a second."""
        linear = torch.nn.Linear(self._width, self._wide, bias=False, dtype=BF16)
        layer: Any = quantized(linear, how, torch.device(self._device))
        if how is not Quantization.NF4:
            return self._width * self._wide / self._seconds(lambda: layer.full_weight(BF16))
        import bitsandbytes  # noqa: PLC0415 - it takes a second

        weight, restore = layer.weight, bitsandbytes.functional.dequantize_4bit
        return self._width * self._wide / self._seconds(lambda: restore(weight.data, weight.quant_state))

    def _optimizer(self) -> float:
        """Seconds a tensor of a step of AdamW with 8-bit states."""
        shapes = ((16, self._width), (self._width, 16))
        weights = [torch.nn.Parameter(torch.randn(shapes[i % 2], device=self._device)) for i in range(self._tensors)]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer = optimizers.make(OptimizerName.ADAMW_8BIT, weights)
        return self._wall_seconds(optimizer.step) / self._tensors

    def _seconds(self, run: Callable[[], Any], batch: int = BATCH) -> float:
        """What one of many in a row takes; by the GPU's own clock, where there is one."""

        def many() -> None:
            for _ in range(batch):
                run()

        return (self._gpu_seconds(many) if self._device == "cuda" else self._wall_seconds(many)) / batch

    def _gpu_seconds(self, run: Callable[[], Any]) -> float:
        run()
        times = []
        for _ in range(REPEATS):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            began.record()
            run()
            ended.record()
            ended.synchronize()
            times.append(began.elapsed_time(ended) / 1000)
        return float(median(times))

    def _wall_seconds(self, run: Callable[[], Any]) -> float:
        run()
        times = []
        for _ in range(REPEATS):
            self._finish()
            began = time.perf_counter()
            run()
            self._finish()
            times.append(time.perf_counter() - began)
        return float(median(times))

    def _finish(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations below autograd."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))

"""Counts what training takes, on the real modules without their weights; prints `training_presets/workloads.toml`.

python -m benchmarks.workloads > presets/training_presets/workloads.toml
python -m benchmarks.workloads --steps

Modules of FLUX.1-dev and SDXL are built on torch's meta device, where each operation has shapes and no data, and go
through a forward pass, and a backward pass where they train. Each tensor's storage is counted from its birth to its
end, so that the peak of activations is exact; so are matrix FLOP, kernels, and the bytes that all other kernels read
and write. Attention is counted as FlashAttention does it: query, key, value, output and one number a row are kept. An
RMS norm is one kernel where its input and its weight are of one type, as on CUDA.
"""

import gc
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import msgspec
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from peft import LoraConfig
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from training_schemas.spec import Execution
from training_worker.engines.diffusers.models import attention, lean_flux, lean_sdxl

# FLUX.1-dev has 19 double and 38 single blocks. A few are counted, and the others are like them.
FLUX_BLOCKS = (19, 38)
COUNTED_BLOCKS = (2, 2)
FLUX = {
    "patch_size": 1,
    "in_channels": 64,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
SDXL = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}

FLUX_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
FLUX_FEED_FORWARD = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]
FLUX_TARGETS = {
    "attention": FLUX_ATTENTION,
    "attentionAndFeedForward": FLUX_ATTENTION + FLUX_FEED_FORWARD,
    "allLinear": [*FLUX_ATTENTION, *FLUX_FEED_FORWARD, "proj_mlp", "proj_out"],
}
SDXL_TARGETS = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "allLinear": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"],
}

# Checkpointing leaves cycles of references behind, which are looked for again and again, as Python does.
COLLECT_EVERY = 10

RANKS = (16, 128)
SIZES = (512, 1024)
TEXT_TOKENS = 512

# They change only how storage is looked at, and start no kernel.
ADDING = ("held", "traffic", "flops", "attention", "kernels", "copies")
VIEWS = {"detach", "view", "t", "transpose", "empty", "empty_like", "_unsafe_view", "alias"}
COPIES = {"_to_copy", "copy_", "clone"}
MATRIX = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "convolution", "convolution_backward"}


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass took: bytes of activations at their peak, bytes moved, FLOP, and kernels started.

    ``held`` are the bytes of activations between the passes forth and back.
    """

    activations: float
    held: float
    traffic: float
    flops: float
    attention: float
    kernels: float
    copies: float


class FlashAttention(torch.autograd.Function):
    """Keeps what FlashAttention keeps, and counts its FLOP: 4 a pair of positions and channel; backward, 10."""

    flops = 0

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        FlashAttention.flops += 4 * query.numel() * key.shape[-2]
        return out

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        FlashAttention.flops += 10 * query.numel() * key.shape[-2]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class FusedRmsNorm(torch.autograd.Function):
    """One kernel forth and one back, as on CUDA; elsewhere torch takes it apart into a dozen. The weight is frozen."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        scale = torch.empty_like(value[..., :1], dtype=torch.float32)
        ctx.save_for_backward(value, weight, scale)
        return _one_kernel(value, scale, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        value, weight, scale = ctx.saved_tensors
        return _one_kernel(gradients[0], value, scale, weight), None


def _one_kernel(value: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """Reads all of them and writes one like the first: as many kernels and bytes as a fused operation takes."""
    out: torch.Tensor = torch.ops.training_worker_counts.fused(value, list(others))
    return out


torch.library.define("training_worker_counts::fused", "(Tensor value, Tensor[] others) -> Tensor")


@torch.library.impl("training_worker_counts::fused", "Meta")
def _fused(value: torch.Tensor, _: list[torch.Tensor]) -> torch.Tensor:
    return torch.empty_like(value)


def _key(storage: torch.UntypedStorage) -> int:
    key: int = storage._cdata  # noqa: SLF001 - there is no other name of it
    return key


class Autocast(TorchFunctionMode):
    """What ``torch.autocast("cuda", torch.bfloat16)`` casts, for tensors that are on no GPU."""

    HALF = (functional.linear, functional.conv2d, torch.matmul, torch.bmm, torch.baddbmm)
    FULL = (functional.layer_norm, functional.group_norm, functional.softmax, torch.pow, torch.Tensor.pow)

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation in the type that autocast would choose."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            names = ("query", "key", "value")
            given = [*args, *(kwargs[name] for name in names[len(args) :])][:3]
            return FlashAttention.apply(*(_to(tensor, torch.bfloat16) for tensor in given))  # type: ignore[no-untyped-call]
        if func is functional.rms_norm and args[0].dtype == kwargs["weight"].dtype:
            return FusedRmsNorm.apply(args[0], kwargs["weight"])  # type: ignore[no-untyped-call]
        dtype = torch.bfloat16 if func in self.HALF else torch.float32 if func in self.FULL else None
        if dtype is None:
            return func(*args, **kwargs)
        return func(
            *tree_map(lambda value: _to(value, dtype), args), **tree_map(lambda value: _to(value, dtype), kwargs)
        )


def _to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered; what ``weights`` hold is not counted."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes = {_key(tensor.untyped_storage()): 0 for tensor in weights}
        self.now = 0
        self._births = 0
        self.peak = 0
        self.held = 0
        self.kernels = 0
        self.copies = 0
        self.traffic = 0
        self.flops = 0

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count it."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        new = [self._born(tensor) for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)]
        if name not in VIEWS and (any(new) or name.endswith("_")):
            self.kernels += 1
            self.copies += name in COPIES
            if name not in MATRIX:
                self.traffic += sum(
                    tensor.numel() * tensor.element_size()
                    for tensor in tree_leaves((args, kwargs, out))
                    if isinstance(tensor, torch.Tensor)
                )
        return out

    def result(self) -> Count:
        """What was counted."""
        return Count(
            activations=self.peak,
            held=self.held,
            traffic=self.traffic,
            flops=self.flops,
            attention=FlashAttention.flops,
            kernels=self.kernels,
            copies=self.copies,
        )

    def _born(self, tensor: torch.Tensor) -> bool:
        storage = tensor.untyped_storage()
        if _key(storage) in self._sizes:
            return False
        self._births += 1
        if self._births % COLLECT_EVERY == 0:
            gc.collect()
        self._sizes[_key(storage)] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, _key(storage))
        return True

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def _added_product_flops(_: torch.Size, rows: torch.Size, columns: torch.Size, **__: Any) -> int:
    return 2 * rows[0] * rows[1] * columns[1]


@contextmanager
def counting(module: torch.nn.Module, *, autocast: bool = True) -> Iterator[Counter]:
    """Count what happens inside."""
    weights = [*module.parameters(), *module.buffers()]
    counter = Counter(weights)
    flops = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _added_product_flops})
    FlashAttention.flops = 0
    with torch.device("meta"), flops, counter, Autocast() if autocast else nullcontext():
        yield counter
    counter.flops = flops.get_total_flops()


def build(kind: type, config: dict[str, Any]) -> Any:
    """A module in bfloat16, without data."""
    with torch.device("meta"):
        return kind(**config).to(torch.bfloat16).requires_grad_(requires_grad=False)


def with_adapter(module: Any, targets: list[str], rank: int) -> Any:
    """The module with an adapter in float32."""
    module.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    return cast_adapter(module)


def make_lean(module: Any) -> Any:
    """Let a module with an adapter compute as the trainer does."""
    if isinstance(module, FluxTransformer2DModel):
        copies = lean_flux.make_lean(module, torch.bfloat16, Execution())
    else:
        copies = lean_sdxl.make_lean(module, torch.bfloat16)
    # What gradients take while they are kept is known without counting.
    copies.begin_gradients()
    return module


def _fused_rms_norm(inputs: torch.Tensor, _: Any, weight: torch.Tensor, __: float) -> torch.Tensor:
    outputs: torch.Tensor = FusedRmsNorm.apply(inputs, weight)  # type: ignore[no-untyped-call]
    return outputs


@contextmanager
def as_on_a_card() -> Iterator[None]:
    """Meanwhile what is lean attends as it does on a GPU, and all norms are fused; in the backward pass, too."""
    with (
        mock.patch.object(attention, "scaled_dot_product_attention", FlashAttention.apply),
        mock.patch.object(functional, "rms_norm", _fused_rms_norm),
    ):
        yield


def cast_adapter(module: Any) -> Any:
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return module


def flux_pass(module: FluxTransformer2DModel, size: int, *, train: bool, checkpointed: bool) -> Count:
    """One image of so many pixels a side through FLUX's transformer."""
    _set_checkpointing(module, on=checkpointed)
    images = (size // 16) ** 2
    with torch.device("meta"):
        inputs = {
            "hidden_states": torch.empty(1, images, 64, dtype=torch.bfloat16),
            "encoder_hidden_states": torch.empty(1, TEXT_TOKENS, 4096, dtype=torch.bfloat16),
            "pooled_projections": torch.empty(1, 768, dtype=torch.bfloat16),
            "timestep": torch.empty(1),
            "guidance": torch.empty(1),
            "txt_ids": torch.empty(TEXT_TOKENS, 3),
            "img_ids": torch.empty(images, 3),
        }
    with as_on_a_card():
        return _through(module, inputs, train=train, autocast="forward" not in vars(module))


def sdxl_pass(
    module: UNet2DConditionModel, size: int, *, train: bool, checkpointed: bool, embeddings: bool = False
) -> Count:
    """One image of so many pixels a side through SDXL's UNet; ``embeddings`` learn in textual inversion."""
    _set_checkpointing(module, on=checkpointed)
    with torch.device("meta"):
        inputs = {
            "sample": torch.empty(1, 4, size // 8, size // 8, dtype=torch.bfloat16),
            "timestep": torch.empty(1),
            "encoder_hidden_states": torch.empty(1, 77, 2048, dtype=torch.bfloat16, requires_grad=embeddings),
            "added_cond_kwargs": {
                "text_embeds": torch.empty(1, 1280, dtype=torch.bfloat16),
                "time_ids": torch.empty(1, 6, dtype=torch.bfloat16),
            },
        }
    return _through(module, inputs, train=train)


def _set_checkpointing(module: Any, *, on: bool) -> None:
    if on:
        module.enable_gradient_checkpointing(_checkpoint)
    else:
        module.disable_gradient_checkpointing()


def _checkpoint(block: Callable[..., Any], *args: Any) -> Any:
    def run(*args: Any) -> Any:
        # The backward pass runs it again, outside of the modes that the forward pass was in.
        with Autocast():
            return block(*args)

    return checkpoint(run, *args, use_reentrant=False)


def _through(module: Any, inputs: dict[str, Any], *, train: bool, autocast: bool = True) -> Count:
    module.train(train)
    hooks = [
        # A gradient is counted while it is made, not while it is kept: that is known without counting.
        parameter.register_post_accumulate_grad_hook(_drop_gradient)
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    with counting(module, autocast=autocast) as counter, torch.set_grad_enabled(train):
        loss = module(**inputs, return_dict=False)[0].float().pow(2).mean()
        counter.held = counter.now
        if train:
            # What lives by now is no garbage: looking through it each time would take minutes.
            gc.freeze()
            loss.backward()
    for hook in hooks:
        hook.remove()
    return counter.result()


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def vae_pass(module: AutoencoderKL, size: int, *, encode: bool) -> Count:
    """One image through half of an autoencoder."""
    shape = (1, 3, size, size) if encode else (1, module.config.latent_channels, size // 8, size // 8)
    with counting(module) as counter, torch.no_grad():
        image = torch.empty(shape, dtype=torch.bfloat16)
        _ = module.encode(image) if encode else module.decode(image)
    return counter.result()


def flux_counts(
    size: int, *, targets: list[str] | None = None, rank: int = 0, checkpointed: bool = False, lean: bool = True
) -> Count:
    """One image through all blocks of FLUX's transformer; it trains if there are ``targets`` of an adapter.

    Unless it is ``lean``, it computes as diffusers and peft do.
    """

    def count(double: int, single: int) -> Count:
        module = build(FluxTransformer2DModel, FLUX | {"num_layers": double, "num_single_layers": single})
        if targets is not None:
            with_adapter(module, targets, rank)
            if lean:
                make_lean(module)
        return flux_pass(module, size, train=targets is not None, checkpointed=checkpointed)

    double, single = COUNTED_BLOCKS
    base, one_double, one_single = count(double, single), count(double + 1, single), count(double, single + 1)

    def others(name: str) -> float:
        counts: tuple[float, float, float] = tuple(getattr(count, name) for count in (base, one_double, one_single))
        first, with_double, with_single = counts
        return (FLUX_BLOCKS[0] - double) * (with_double - first) + (FLUX_BLOCKS[1] - single) * (with_single - first)

    # A block more adds to the peak what it holds between the passes.
    return Count(
        activations=base.activations + others("held"),
        **{name: getattr(base, name) + others(name) for name in ADDING},
    )


Law = dict[str, list[float] | float]


def law(units: Callable[[int], int], samples: Callable[[int], int], counts: dict[tuple[int, int], Count]) -> Law:
    """Quantities as fixed + by unit + by unit and rank + by rank, from counts by size and rank.

    Attention goes by squares of units.
    """
    small, large = SIZES
    low, high = RANKS
    step = units(large) - units(small)

    def of(name: str) -> list[float]:
        def line(rank: int) -> tuple[float, float]:
            first, last = (getattr(counts[size, rank], name) for size in SIZES)
            slope = (last - first) / step
            return first - slope * units(small), slope

        fixed, by_unit = line(low)
        more_fixed, more_by_unit = line(high) if (small, high) in counts else (fixed, by_unit)
        by_rank, by_both = (more_fixed - fixed) / (high - low), (more_by_unit - by_unit) / (high - low)
        return [_rounded(one) for one in (fixed - by_rank * low, by_unit - by_both * low, by_both, by_rank)]

    return {
        "activations": of("activations"),
        "traffic": of("traffic"),
        "flops": of("flops"),
        "attention": _rounded(counts[large, low].attention / samples(large) ** 2),
        "kernels": counts[large, low].kernels,
    }


def _rounded(value: float) -> float:
    return float(f"{max(0.0, value):.5g}")


def flux_tokens(size: int) -> int:
    """Tokens of an image and its text."""
    return (size // 16) ** 2 + TEXT_TOKENS


def latent_pixels(size: int) -> int:
    """Positions of an image's latents."""
    return (size // 8) ** 2


def all_laws() -> Iterator[tuple[str, Law]]:
    """Everything that is counted, by name."""
    for targets, names in FLUX_TARGETS.items():
        for how, on in (("checkpointed", True), ("stored", False)):
            counts = {
                (size, rank): flux_counts(size, targets=names, rank=rank, checkpointed=on)
                for size in SIZES
                for rank in RANKS
            }
            yield f"FLUX_LORA.{targets}.{how}", law(flux_tokens, flux_tokens, counts)
    counts = {(size, RANKS[0]): flux_counts(size) for size in SIZES}
    yield "flux.sampling", law(flux_tokens, flux_tokens, counts)
    yield from _sdxl_laws()
    for family, channels in (("flux", 16), ("sdxl", 4)):
        vae = build(AutoencoderKL, VAE | {"latent_channels": channels})
        for what, encode in (("encoding", True), ("decoding", False)):
            counts = {(size, RANKS[0]): vae_pass(vae, size, encode=encode) for size in SIZES}
            yield f"{family}.{what}", law(latent_pixels, latent_pixels, counts)


def _sdxl_laws() -> Iterator[tuple[str, Law]]:
    for targets, names in SDXL_TARGETS.items():
        modules = {rank: make_lean(with_adapter(build(UNet2DConditionModel, SDXL), names, rank)) for rank in RANKS}
        for how, on in (("checkpointed", True), ("stored", False)):
            counts = {
                (size, rank): sdxl_pass(module, size, train=True, checkpointed=on)
                for size in SIZES
                for rank, module in modules.items()
            }
            yield f"SDXL_LORA.{targets}.{how}", law(latent_pixels, latent_pixels, counts)
    unet = build(UNet2DConditionModel, SDXL)
    for how, on in (("checkpointed", True), ("stored", False)):
        counts = {
            (size, RANKS[0]): sdxl_pass(unet, size, train=True, checkpointed=on, embeddings=True) for size in SIZES
        }
        yield f"SDXL_TEXTUAL_INVERSION.embeddings.{how}", law(latent_pixels, latent_pixels, counts)
    counts = {(size, RANKS[0]): sdxl_pass(unet, size, train=False, checkpointed=False) for size in SIZES}
    yield "sdxl.sampling", law(latent_pixels, latent_pixels, counts)
    unet.requires_grad_(requires_grad=True)
    for how, on in (("checkpointed", True), ("stored", False)):
        counts = {(size, RANKS[0]): sdxl_pass(unet, size, train=True, checkpointed=on) for size in SIZES}
        yield f"SDXL_FINETUNE.unet.{how}", law(latent_pixels, latent_pixels, counts)


def print_steps() -> None:
    """Print what a step of a FLUX LoRA takes beside the attention, as peft and diffusers do it and as it is."""
    for size in (512, 768, 1024):
        for on in (True, False):
            for lean in (False, True):
                found = flux_counts(size, targets=FLUX_ATTENTION, rank=RANKS[0], checkpointed=on, lean=lean)
                how = f"{size} {'checkpointed' if on else 'stored'} {'lean' if lean else 'peft'}"
                print(
                    f"{how}: {found.kernels} operations, {found.copies} copies, {found.traffic / 1e9:.0f} GB", end=", "
                )
                print(f"{found.held / flux_tokens(size) / 1e6:.2f} MB a token")


def main() -> None:
    """Print the file, or with ``--steps`` a comparison."""
    warnings.simplefilter("ignore")
    if "--steps" in sys.argv[1:]:
        print_steps()
        return
    for name, found in all_laws():
        print(f"[{name}]")
        for key, value in found.items():
            print(f"{key} = {value}")
        print(flush=True)


if __name__ == "__main__":
    main()

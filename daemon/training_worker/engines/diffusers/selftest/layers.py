"""Blocks of FLUX with adapters beside their layers, tried on each kind of base by the same blocks in float32."""

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from training_schemas.spec import AttentionKernel, Execution, LoraTargets, Quantization
from training_worker.engines.common.selftest.attention import REFUSALS
from training_worker.engines.common.selftest.child import RIGHT, UNAVAILABLE, WRONG, Fault, Trial, compare, distance
from training_worker.engines.diffusers.models.attention import choose_attention
from training_worker.engines.diffusers.models.lean_flux import make_lean
from training_worker.engines.diffusers.models.lora import add_adapter, flux_layers
from training_worker.engines.diffusers.models.quantization import EightBitLinear, is_quantized, mark, quantized

# The widths of FLUX.1-dev with one block of each kind; on a CPU, those of the tiny model.
FULL = {
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "axes_dims_rope": (16, 56, 56),
}
SMALL = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32, "axes_dims_rope": (4, 4, 8)}
ONE_OF_EACH = {"in_channels": 64, "num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}
POOLED = {"cuda": 768}
SMALL_POOLED = 32
RANK = 16
SEED = 7
# As large as what an adapter has learned, so that both of its matrices have gradients.
LEARNED = 0.02

# Images, tokens of each image, tokens of the text: the second makes an odd number of them.
CASES = ((4, 64, 16), (1, 253, 80))

# The same, as many as a job has: those of 512 pixels among them, where there is a GPU.
BLOCKS = {f"block.{kernel}": kernel for kernel in AttentionKernel}
BLOCK_CASES = {"cuda": ((4, 64, 16), (1, 1024, 512), (4, 1024, 512))}

# Of the norm of a difference by the norm. Two blocks of each kind in bfloat16 are off by 1.3 % of float32 in their
# gradients, on a base of any kind (measured at narrow widths).
TOLERANCE = 0.05

# What a kind of base may take away from a weight, by the same measure: nf4 takes 9-10 % of normal weights, e4m3 2.6 %,
# int8 0.7 % (measured).
LOSS = {Quantization.NF4: 0.15, Quantization.FP8: 0.05, Quantization.INT8: 0.02}


def layer_trials(device: str, fault: Fault) -> dict[str, Trial]:
    """A trial of each kind of base."""
    # Which kernels of attention are right is not known yet; this one is slow, and plain matrix products.
    choose_attention((AttentionKernel.MATH,))
    return {f"base.{how}": _trial(how, device, fault) for how in Quantization}


def compiled_trials(device: str, fault: Fault) -> dict[str, Trial]:
    """A trial of compiled blocks."""
    choose_attention((AttentionKernel.MATH,))
    return {"compiled.none": _trial(Quantization.NONE, device, fault, "compiled.none", compiled=True)}


def block_trials(device: str, fault: Fault) -> dict[str, Trial]:
    """The blocks with each kernel of attention, as they are trained: what reaches it forth and back is as there."""
    cases = BLOCK_CASES.get(device, CASES)
    return {
        f"block.{kernel}": _with_kernel(
            kernel, _trial(Quantization.NONE, device, fault, f"block.{kernel}", cases=cases)
        )
        for kernel in AttentionKernel
    }


def _with_kernel(kernel: AttentionKernel, trial: Trial) -> Trial:
    def tried() -> dict[str, Any]:
        choose_attention((kernel,))
        try:
            return trial()
        except RuntimeError as error:
            if not any(refusal in str(error).lower() for refusal in REFUSALS):
                raise
            return {"verdict": UNAVAILABLE, "reason": "not for this device"}

    return tried


def build(device: str, *, full: bool) -> Any:
    """Make the blocks, frozen, with random weights that bfloat16 has too; the same each time."""
    torch.manual_seed(SEED)
    width = FULL if full else SMALL
    with torch.device(device):
        model = FluxTransformer2DModel(**ONE_OF_EACH, **width, pooled_projection_dim=POOLED.get(device, SMALL_POOLED))
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16).float()
    return model.requires_grad_(requires_grad=False)


def quantize(model: Any, how: Quantization, device: str) -> None:
    """Replace the layers of the blocks, as loading does."""
    for name, layer in list(model.named_modules()):
        if how is not Quantization.NONE and is_quantized(name, layer):
            model.set_submodule(name, quantized(layer.cpu(), how, torch.device(device)))
    mark(model, how)


def restored(layer: Any) -> torch.Tensor:
    """The weight (out, in) that a quantized layer stands for, in float32."""
    if isinstance(layer, EightBitLinear):
        return layer.full_weight(torch.float32)
    import bitsandbytes  # noqa: PLC0415 - it takes a second

    weight: torch.Tensor = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.reshape(layer.out_features, layer.in_features).float()


def inputs_of(model: Any, case: tuple[int, int, int], dtype: torch.dtype) -> dict[str, Any]:
    """What the blocks are given, normal noise, the same each time."""
    batch, image, text = case
    device, config = next(model.parameters()).device, model.config
    generator = torch.Generator(device).manual_seed(SEED)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(torch.bfloat16).to(dtype)

    positions = torch.zeros(image, 3, device=device)
    positions[:, 1] = torch.arange(image, device=device)
    return {
        "hidden_states": draw(batch, image, config.in_channels),
        "encoder_hidden_states": draw(batch, text, config.joint_attention_dim),
        "pooled_projections": draw(batch, config.pooled_projection_dim),
        "timestep": torch.full((batch,), 0.5, device=device, dtype=dtype),
        "guidance": torch.ones(batch, device=device, dtype=dtype),
        "img_ids": positions.to(dtype),
        "txt_ids": torch.zeros(text, 3, device=device, dtype=dtype),
    }


def _trial(  # noqa: PLR0913 - all that a trial may differ in
    how: Quantization,
    device: str,
    fault: Fault,
    name: str | None = None,
    *,
    compiled: bool = False,
    cases: Sequence[tuple[int, int, int]] = CASES,
) -> Trial:
    name = name or f"base.{how}"

    def trial() -> dict[str, Any]:
        truth, tested = (build(device, full=device == "cuda") for _ in range(2))
        tested = tested.to(torch.bfloat16)
        quantize(tested, how, device)
        lost = _take_over(truth, tested, how)
        if lost is not None:
            return {"verdict": WRONG, "reason": lost}
        _adapt(tested, truth)
        make_lean(tested, torch.bfloat16, Execution(compiled=compiled))
        found = _tried(tested, truth, cases, lambda value: fault(name, value))
        gc.collect()
        return found

    return trial


def _take_over(truth: Any, tested: Any, how: Quantization) -> str | None:
    """Give the truth the weights that the tested model stands for; why not, if they are not near those before."""
    if how is Quantization.NONE:
        return None
    for name, layer in truth.named_modules():
        if is_quantized(name, layer):
            weight = restored(tested.get_submodule(name))
            off = distance(weight, layer.weight)
            # Also if it is no number.
            if not off <= LOSS[how]:
                return f"restored weight of {name}: off by {off:.1%}"
            layer.weight.data.copy_(weight)
    return None


def _adapt(tested: Any, truth: Any) -> None:
    layers = flux_layers(LoraTargets.ATTENTION)
    generator: torch.Generator | None = None
    pairs = zip(add_adapter(tested, layers, RANK, SEED), add_adapter(truth, layers, RANK, SEED), strict=True)
    for one, other in pairs:
        generator = generator or torch.Generator(one.device).manual_seed(SEED)
        one.data.normal_(std=LEARNED, generator=generator)
        other.data.copy_(one.data)


def _tried(
    tested: Any, truth: Any, cases: Sequence[tuple[int, int, int]], fault: Callable[[Any], Any]
) -> dict[str, Any]:
    errors = []
    for case in cases:
        given = _pass(tested, inputs_of(tested, case, torch.bfloat16), fault)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            exact = _pass(truth, inputs_of(truth, case, torch.float32), lambda value: value)
        batch, image, text = case
        found = compare(given, exact, TOLERANCE, f"{batch} x {image} + {text} tokens")
        if found["verdict"] != RIGHT:
            return found
        errors.append(found["error"])
    return {"verdict": RIGHT, "error": max(errors)}


def _pass(model: Any, inputs: dict[str, Any], fault: Callable[[Any], Any]) -> dict[str, Any]:
    """Go forth and back: what comes out, and the gradients of all weights that learn, as one."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.grad = None
    output = fault(model(**inputs, return_dict=False)[0])
    generator = torch.Generator(output.device).manual_seed(SEED)
    direction = torch.randn(output.shape, generator=generator, device=output.device)
    torch.autograd.backward((output.float() * direction).sum())
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return {"output": output.detach(), "gradients": torch.cat([one.flatten().float() for one in gradients])}

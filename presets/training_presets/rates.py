"""How fast a GPU is: as its self-test measured it, else as the catalogue makes one expect."""

import msgspec

from training_presets.cards import CardSpec
from training_schemas.selftest import GpuRates
from training_schemas.spec import Quantization

# Seconds that an operation of torch takes at least, Python included, and a tensor's step of an 8-bit AdamW. They are
# the host's part, and what the host of one H100 took: no other was measured.
LAUNCH = 46e-6
ADAMW_8BIT = 90e-6

# How much longer an operation of a step takes to start than one of the self-test's tiny block, by the one H100 on which
# both were measured: 46 against 28.1 us.
STEP_LAUNCH = 1.64

# Bytes that move for each weight that is restored for one pass. 8-bit weights are read, scaled in float32 and written;
# those of bitsandbytes' nf4 are restored in one kernel (1.0e12 a second on the H100).
BYTES_A_RESTORED_WEIGHT = {Quantization.FP8: 7.0, Quantization.INT8: 7.0, Quantization.NF4: 3.35}


class Compiling(msgspec.Struct, frozen=True, kw_only=True):
    """What compiling the blocks costs and brings: seconds once, and the shares of operations and bytes that remain.

    Nobody has measured it yet: without figures of its own, a GPU is not expected to gain anything.
    """

    seconds: float = 90.0
    operations: float = 1.0
    traffic: float = 1.0


def rates_of(card: CardSpec, measured: GpuRates | None = None) -> GpuRates:
    """The rates of a GPU: those that it has ``measured`` itself, those measured on its kind, or the catalogue's."""
    if measured is not None:
        return msgspec.structs.replace(measured, launch_seconds=measured.launch_seconds * STEP_LAUNCH)
    if card.rates is not None:
        return card.rates
    products, bandwidth = card.sustained_tflops * 1e12, card.bandwidth_gbs * 1e9
    forward, backward = card.attention_shares
    return GpuRates(
        product_flops=products,
        attention_forward_flops=products * forward,
        attention_backward_flops=products * backward,
        bytes_per_second=bandwidth * card.bandwidth_share,
        launch_seconds=LAUNCH,
        restored_per_second={kind: bandwidth / size for kind, size in BYTES_A_RESTORED_WEIGHT.items()},
        optimizer_seconds=ADAMW_8BIT,
    )


def restored_per_second(rates: GpuRates, kind: Quantization) -> float:
    """Weights a second that are restored from a base in few bits; by the bytes that move where it is not measured."""
    return rates.restored_per_second.get(kind) or rates.bytes_per_second / BYTES_A_RESTORED_WEIGHT[kind]

"""Buckets: the few sizes that images are trained at, so that those of like shape can share a batch.

A size is a width and a height in pixels.
"""

import functools
import math
from fractions import Fraction

from training_schemas.jobs import ModelFamily
from training_worker.engines.common.data.images import Size

# What a model's layers divide the sides of an image by: 8 in the autoencoder; then FLUX packs 2 x 2 latents into a
# token, and SDXL's UNet halves them twice.
DIVISORS = {ModelFamily.FLUX: 16, ModelFamily.SDXL: 32}

MAX_RATIO = 2
# Sides are multiples of the step: few buckets make full batches, and small resolutions need finer ones.
STEP = 64
FINE_STEP = 16
FINE_BELOW = 256


def bucket_of(width: int, height: int, resolution: int, divisor: int, enabled: bool) -> Size:
    """Choose the size that an image is trained at: the bucket of the nearest shape, or the square if not ``enabled``.

    Sides are multiples of ``divisor``, which is what the model's layers divide them by, at most ``resolution``. Of two
    buckets of shapes equally near the larger is chosen.
    """
    if not enabled:
        side = resolution // divisor * divisor
        return side, side
    return min(
        buckets(resolution, divisor),
        key=lambda size: (_shape_difference((width, height), size), -size[0] * size[1]),
    )


@functools.cache
def buckets(resolution: int, divisor: int) -> tuple[Size, ...]:
    """List the buckets, narrow ones first: shapes from 1:2 to 2:1 of no more pixels than the resolution's square.

    For each width the greatest height that the pixels allow, the same turned on its side, and a square.
    """
    step = math.lcm(divisor, FINE_STEP if resolution < FINE_BELOW else STEP)
    square = resolution // step * step
    sizes = {(square, square)}
    for width in range(step, MAX_RATIO * resolution, step):
        height = resolution**2 // width // step * step
        if height and max(width, height) <= MAX_RATIO * min(width, height):
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def _shape_difference(size: Size, other: Size) -> Fraction:
    """Compare aspect ratios: 1 if they are the same, else by what one must be multiplied to be the other.

    It orders sizes as the distance between the ratios' logarithms does, and is exact.
    """
    ratio = Fraction(size[0] * other[1], size[1] * other[0])
    return max(ratio, 1 / ratio)

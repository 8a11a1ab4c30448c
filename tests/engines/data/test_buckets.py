"""The sizes that images are trained at."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_worker.engines.diffusers.data.buckets import bucket_of, buckets

pytestmark = pytest.mark.trainer

resolutions = st.integers(4, 128).map(lambda sixteenths: 16 * sixteenths)
divisors = st.sampled_from([16, 32])
sides = st.integers(1, 10_000)


@given(resolutions, divisors)
def test_buckets_have_no_more_pixels_than_the_square(resolution: int, divisor: int) -> None:
    """What fits in memory as a square fits in every shape."""
    assert all(width * height <= resolution**2 for width, height in buckets(resolution, divisor))


@given(resolutions, divisors)
def test_sides_of_buckets_are_multiples_of_the_step(resolution: int, divisor: int) -> None:
    """The model's layers divide them without a rest, and there are not too many sizes."""
    step = max(divisor, 64 if resolution >= 256 else 16)

    assert {0} == {side % step for size in buckets(resolution, divisor) for side in size}
    assert all(side >= step for size in buckets(resolution, divisor) for side in size)


@given(resolutions, divisors)
def test_buckets_are_at_most_twice_as_long_as_wide(resolution: int, divisor: int) -> None:
    """Upright ones are the others turned, and one is a square."""
    found = buckets(resolution, divisor)

    assert all(0.5 <= width / height <= 2 for width, height in found)
    assert set(found) == {(height, width) for width, height in found}
    assert any(width == height for width, height in found)


@given(sides, sides, resolutions, divisors)
def test_the_bucket_of_an_image_has_the_nearest_shape(width: int, height: int, resolution: int, divisor: int) -> None:
    """By the logarithm of the ratio, which upright and lying images are the same distance in."""

    def distance(size: tuple[int, int]) -> float:
        return abs(math.log(width / height) - math.log(size[0] / size[1]))

    chosen = bucket_of(width, height, resolution, divisor, enabled=True)

    assert distance(chosen) == pytest.approx(min(map(distance, buckets(resolution, divisor))), abs=1e-9)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (1024, 1024)),
        ((1920, 1080), (1344, 768)),
        ((1080, 1920), (768, 1344)),
        ((3000, 2000), (1216, 832)),
        ((9000, 100), (1408, 704)),
    ],
)
def test_usual_shapes_have_the_buckets_that_sdxl_was_trained_at(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    """Those of appendix I of its paper, as far as 1:2; what is longer is cut."""
    assert expected == bucket_of(*size, 1024, 32, enabled=True)


@pytest.mark.parametrize(("resolution", "divisor", "side"), [(1024, 16, 1024), (336, 32, 320), (80, 16, 80)])
def test_without_buckets_all_images_are_squares(resolution: int, divisor: int, side: int) -> None:
    """Of the resolution, or the next lower one that the model can do."""
    assert (side, side) == bucket_of(1920, 1080, resolution, divisor, enabled=False)

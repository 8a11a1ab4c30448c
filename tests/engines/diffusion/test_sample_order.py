"""The cut of a step into micro-batches, and who computes which."""

import pytest

from training_worker.engines.diffusers.diffusion.sample_order import MicroBatch, Sample, SampleOrder, cut, share_of

pytestmark = pytest.mark.trainer

SQUARE, WIDE = (64, 64), (64, 96)


def micro_batches(images: list[int], shapes: list[tuple[int, int]], most: int) -> list[list[int]]:
    """The images of each micro-batch, where sample and image have one number."""
    cut_up = cut([Sample(number, image) for number, image in enumerate(images)], shapes, most)
    return [[sample.image for sample in samples] for samples in cut_up]


def test_images_of_one_shape_go_together() -> None:
    """As many as may, in their order; none waits for another step."""
    shapes = [SQUARE, WIDE, SQUARE, SQUARE, WIDE, SQUARE]

    assert micro_batches([0, 1, 2, 3, 4, 5], shapes, 3) == [[0, 2, 3], [5], [1, 4]]
    assert micro_batches([0, 1, 2, 3, 4, 5], shapes, 8) == [[0, 2, 3, 5], [1, 4]]


def test_one_shape_is_cut_in_order() -> None:
    """As it always was."""
    assert micro_batches([0, 1, 2, 3], [SQUARE] * 4, 2) == [[0, 1], [2, 3]]


def shares(sizes: list[int], count: int) -> list[list[int]]:
    """The sizes of the micro-batches that each process has."""
    batches: list[MicroBatch] = [tuple(Sample(number, 0) for number in range(size)) for size in sizes]
    return [[len(batch) for batch in share_of(batches, [SQUARE], rank, count)] for rank in range(count)]


def test_shares_are_even_and_together_are_all() -> None:
    """By images, not by micro-batches; a process alone has all in their order."""
    assert shares([4, 1, 3], 1) == [[4, 1, 3]]
    assert shares([4, 1, 3], 2) == [[4], [1, 3]]
    assert shares([2, 2, 2, 2], 2) == [[2, 2], [2, 2]]
    assert shares([2, 2, 1, 2, 1], 4) == [[2], [2], [2], [1, 1]]


def test_a_process_may_have_nothing_to_do() -> None:
    """Where there are fewer micro-batches than processes."""
    assert shares([1, 1], 3) == [[1], [1], []]


def test_a_larger_image_counts_for_more() -> None:
    """By its area."""
    one, other, third = ((Sample(number, number),) for number in range(3))

    assert share_of([one, other, third], [SQUARE, SQUARE, (128, 128)], 0, 2) == [third]


def test_an_order_passes_over_all_images() -> None:
    """Also where a step takes more than a pass has; numbers go on."""
    order = SampleOrder([0, 0, 1], 7)
    samples = [*order.take(2), *order.take(7)]

    assert [sample.number for sample in samples] == list(range(9))
    passes = [sorted(sample.image for sample in samples[start : start + 3]) for start in (0, 3, 6)]
    assert passes == [[0, 0, 1]] * 3

"""The benchmark on a card, as far as it goes without one: its rows, what stands in the place of figures, its status."""

import os
import subprocess
import sys

import msgspec
import pytest
from benchmarks import gpu
from benchmarks.gpu import Case, Figures, Found, NoFiguresError

from training_presets.cards import named_card
from training_schemas.spec import Quantization

pytestmark = pytest.mark.trainer

CASE = Case(quantization=Quantization.FP8, resolution=512)
SMALL = Found(name="NVIDIA GeForce RTX 3060", memory_mib=12 * 1024, free_mib=12 * 1024)
BIG = Found(name="NVIDIA H100 80GB HBM3", memory_mib=81_000, free_mib=80_000)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark where torch sees no card."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_without_a_card_it_says_what_it_needs() -> None:
    """And it is no success; skipped where it was asked for only in case."""
    asked, skipped = run(), run("--if-present")

    assert (1, "") == (asked.returncode, asked.stdout)
    assert "needs a CUDA card" in asked.stderr
    assert (0, "") == (skipped.returncode, skipped.stderr)
    assert "skipped" in skipped.stdout


def test_the_tiny_one_prints_all_its_rows() -> None:
    """One for each way to keep the base, each with its times and without memory."""
    ended = run("--tiny")

    assert ended.returncode == 0, ended.stderr
    rows = [line.split() for line in ended.stdout.splitlines()[-len(Quantization) :]]
    assert [how.value for how in Quantization] == [cells[0] for cells in rows]
    for cells in rows:
        assert ["not", "measured"] == cells[3:5]
        assert float(cells[7]) > 0
        assert float(cells[9]) > 0


def test_what_does_not_fit_the_card_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is still shown, with what was planned."""
    monkeypatch.setattr(gpu, "output_of", lambda _: pytest.fail("it was run"))

    cells = gpu.row(CASE, SMALL, named_card("RTX 3060"))

    assert cells[2] == "13.00"
    assert float(cells[5]) > 0
    assert cells[-1] == "does not fit: not run"


def test_figures_stand_beside_what_was_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """In GiB and seconds, each with its ratio."""
    figures = Figures(peak_mib=26 * 512, seconds_per_step=2.0, first_step_ended=0.0)
    monkeypatch.setattr(gpu, "output_of", lambda _: msgspec.json.encode(figures).decode())

    cells = gpu.row(CASE, BIG, named_card("H100"))

    assert ["fp8", "512", "13.00", "13.00", "1.00"] == cells[:5]
    assert cells[6] == "2.000"
    assert float(cells[7]) == pytest.approx(2 / float(cells[5]), rel=0.01)


def test_a_row_without_figures_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happened to its process."""

    def fail(_: str) -> str:
        raise NoFiguresError(gpu.failure_in(1, "...\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate"))

    monkeypatch.setattr(gpu, "output_of", fail)

    assert gpu.row(CASE, BIG, None)[-1] == "out of memory"


@pytest.mark.parametrize(
    ("status", "errors", "said"),
    [
        (-9, "", "ended by signal 9"),
        (1, "Traceback\nValueError: no\n", "ValueError: no"),
        (3, "", "ended with status 3"),
    ],
)
def test_a_process_that_failed_is_told_in_a_few_words(status: int, errors: str, said: str) -> None:
    """By its signal, else its last line, else its status."""
    assert said == gpu.failure_in(status, errors)

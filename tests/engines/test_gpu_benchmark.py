"""The benchmark on a GPU, as far as it goes without one: its tables, and what stands in the place of figures."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from benchmarks.gpu import __main__ as program
from benchmarks.gpu.cases import Case, Figures, Loop, flux_cases, sdxl_cases
from benchmarks.gpu.report import planned_gib, steps_table

from training_presets.cards import named_card
from training_schemas.spec import Quantization

pytestmark = pytest.mark.trainer

CASE = Case(quantization=Quantization.FP8, resolution=512)
H100 = named_card("H100")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark where torch sees no GPU."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_without_a_gpu_it_prints_what_it_needs() -> None:
    """And it is no success; skipped where it was asked for only in case."""
    asked, skipped = run(), run("--if-present")

    assert (1, "") == (asked.returncode, asked.stdout)
    assert "needs a CUDA GPU" in asked.stderr
    assert (0, "") == (skipped.returncode, skipped.stderr)
    assert "skipped" in skipped.stdout


def test_every_row_has_a_case_that_can_be_planned() -> None:
    """Each in memory that an 80 GB GPU has, none twice, and each kind of loop among them."""
    cases = [case for group in flux_cases() + sdxl_cases() for case in group]

    assert len(cases) == len({case.name for case in cases})
    assert all(1 < planned_gib(case) < 80 for case in cases)
    assert {Loop.EXAMPLE, Loop.OURS, Loop.COMPILED} == {case.loop for case in cases}


def test_figures_stand_beside_the_plan_and_the_example() -> None:
    """In seconds and GiB, each with its ratio; what failed has its reason."""
    assert H100 is not None
    case = Case()
    example = msgspec.structs.replace(case, loop=Loop.EXAMPLE)
    figures = [
        Figures(case=example, seconds_per_step=1.0, peak_gib=30.0),
        Figures(case=case, seconds_per_step=0.5, peak_gib=2 * planned_gib(case)),
        Figures(case=CASE, fault="out of memory"),
    ]

    rows = [line.strip("| ").split(" | ") for line in steps_table(figures, H100.name, H100.memory_mib)[2:]]

    assert "2" == rows[1][-1]
    assert "2.00" == rows[1][6]
    assert float(rows[1][3]) == pytest.approx(0.5 / float(rows[1][2]), abs=0.01)
    assert ["out of memory", "-"] == rows[2][1:3]


def test_the_cases_of_a_process_that_dies_have_a_fault_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that it measured before are kept."""
    line = msgspec.json.encode(Figures(case=CASE, seconds_per_step=1.0)).decode()
    script = f"print({line!r}, flush=True); import os; os.abort()"
    monkeypatch.setattr(program, "_command", lambda *_, **__: [sys.executable, "-c", script])

    figures = list(program.figures_of([CASE, Case()], time.monotonic() + 60, tiny=True))

    assert [(1.0, None), (None, "ended by signal 6")] == [(one.seconds_per_step, one.fault) for one in figures]


def test_a_process_that_has_no_time_left_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cases have that as their reason."""
    monkeypatch.setattr(program, "_command", lambda *_, **__: [sys.executable, "-c", "import time; time.sleep(600)"])

    (figures,) = program.figures_of([CASE], time.monotonic() + 0.5, tiny=True)

    assert "no time left" == figures.fault


def test_the_tiny_one_measures_all_its_rows(tmp_path: Path) -> None:
    """One for each kind of base, and both loops of both families."""
    file = tmp_path / "report.json"
    ended = run("--tiny", "--parts", "steps", "--minutes", "30", "--output", str(file))
    assert ended.returncode == 0, ended.stderr
    steps: list[dict[str, Any]] = msgspec.json.decode(file.read_bytes())["steps"]

    assert [None] * len(steps) == [one.get("fault") for one in steps]
    assert {how.value for how in Quantization} <= {one["case"].get("quantization", "none") for one in steps}

"""Importing this package costs a backend little: what is heavy is loaded by whoever needs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"aio_pika", "aiormq", "diffusers", "numpy", "prometheus_client", "pynvml", "structlog", "torch"}
COMMAND_LINE = {"click", "rich", "rich_click", "typer"}


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after a statement."""
    path = os.pathsep.join(str(ROOT / name) for name in ("schemas", "presets", "daemon"))
    program = f"{statement}\nimport json, sys\nprint(json.dumps([*{{name.partition('.')[0] for name in sys.modules}}]))"
    environment = dict(os.environ) | {"PYTHONPATH": path}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    return set(json.loads(ended.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        "from training_worker import TrainingWorkerAPI, flux_lora_job",
        "import training_worker; training_worker.AsyncTrainingWorkerAPI()",
        "import training_presets.planner, training_presets.cards",
        "from training_schemas import commands, events, jobs, ledger, progress, spec, validation",
    ],
)
def test_a_backends_imports_load_neither_amqp_nor_nvml_nor_torch(statement: str) -> None:
    """Nor what the command line and the log need."""
    assert loaded_by(statement) & (HEAVY | COMMAND_LINE) == set()


def test_a_backends_import_leaves_asyncio_to_whoever_uses_it() -> None:
    """It would be most of the time that the import takes."""
    assert "asyncio" not in loaded_by("from training_worker import TrainingWorkerAPI, flux_lora_job")


def test_making_a_job_and_its_plan_loads_nothing_more() -> None:
    """A backend may do both without a broker."""
    statement = (
        "from training_worker import flux_lora_job; from training_presets.planner import plan_job\n"
        "plan_job(flux_lora_job(job_id='a', dataset_path='/d', output_path='/o'))"
    )

    assert loaded_by(statement) & (HEAVY | COMMAND_LINE) == set()


def test_the_daemon_never_loads_torch() -> None:
    """Its trainers do: it outlives their crashes."""
    assert loaded_by("import training_worker.worker.worker") & {"torch", "numpy", "diffusers"} == set()


def test_the_command_line_loads_the_daemon_only_to_run_it() -> None:
    """``presets`` and ``plan`` are answered at once."""
    assert loaded_by("import training_worker.cli") & HEAVY == set()


@pytest.mark.parametrize("package", ["training_worker.engines", "training_worker.engines.diffusers"])
def test_the_engines_are_found_without_torch(package: str) -> None:
    """A host without the trainer's libraries can still report what it lacks."""
    assert "torch" not in loaded_by(f"import {package}")

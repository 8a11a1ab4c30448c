"""The folder of the engine ``invoke`` as an interpreter runs it that has nothing of ours."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import dedent
from typing import Any

import msgspec
import pytest
from tests.engines.conftest import WriteRun, read_records
from tests.engines.invoke_runs import PROGRAM, engine_config

from training_schemas.jobs import TrainingType
from training_schemas.progress import (
    DoneRecord,
    FailedRecord,
    FailureReason,
    Phase,
    PhaseRecord,
    StepRecord,
    StoppedRecord,
)
from training_schemas.spec import LEASE_FILE, PROGRESS_FILE, RunLease
from training_worker.engines.invoke import program
from training_worker.engines.invoke.progress_writer import ProgressWriter
from training_worker.engines.invoke.stop_signals import Control

pytestmark = pytest.mark.trainer

FLUX = TrainingType.FLUX_LORA
ENGINES = PROGRAM.parent
SEEN_FILE = "seen.json"

# What upstream is to the program; it trains nothing, and writes down what it sees of its interpreter.
UPSTREAM = {
    "diffusers/__init__.py": "",
    "accelerate/__init__.py": "class Accelerator: pass",
    "pydantic/__init__.py": "class ValidationError(ValueError): pass",
    "invoke_training/__init__.py": "",
    "invoke_training/pipelines/__init__.py": "",
    "invoke_training/pipelines/callbacks.py": "class PipelineCallbacks: pass",
    "invoke_training/pipelines/flux/__init__.py": "",
    "invoke_training/pipelines/flux/lora/__init__.py": "",
    "invoke_training/pipelines/flux/lora/config.py": """
        from types import SimpleNamespace

        class FluxLoraConfig:
            @staticmethod
            def model_validate(fields):
                return SimpleNamespace(**{"validation_prompts": [], **fields})
        """,
    "invoke_training/pipelines/invoke_train.py": f"""
        import json
        import sys
        from pathlib import Path
        from types import SimpleNamespace

        import accelerate
        import diffusers
        import torch
        from safetensors.torch import save_file

        LAYER = "base_model.model.transformer_blocks.0.attn.to_q"

        def train(config, callbacks):
            for step in range(1, config.max_train_steps + 1):
                accelerate.Accelerator.log(None, {{"train_loss": 0.5, "lr": 0.1}}, step=step)
                if step % config.save_every_n_steps == 0:
                    save(Path(config.base_output_dir) / str(step), step, callbacks[0])
            seen = {{
                "diffusers": diffusers.__file__,
                "path": sys.path,
                "modules": {{name: getattr(module, "__file__", None) for name, module in sys.modules.items()}},
            }}
            Path({SEEN_FILE!r}).write_text(json.dumps(seen))

        def save(folder, step, callbacks):
            part = folder / "transformer"
            part.mkdir(parents=True)
            (part / "adapter_config.json").write_text('{{"lora_alpha": 1.0, "r": 4}}')
            weights = {{f"{{LAYER}}.lora_A.weight": torch.ones(4, 8), f"{{LAYER}}.lora_B.weight": torch.ones(8, 4)}}
            save_file(weights, part / "adapter_model.safetensors")
            callbacks.on_save_checkpoint(SimpleNamespace(models=[SimpleNamespace(file_path=str(folder))], step=step))
        """,
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages that has an invoke-training of its own, and a library ``diffusers``."""
    site = tmp_path / "site"
    for name, content in UPSTREAM.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(content))
    return site


def test_a_run_sees_its_own_libraries_and_none_of_our_folders(write_run: WriteRun, site: Path, tmp_path: Path) -> None:
    """The engines' folder has a ``diffusers`` too, and the program's own has modules of names that others have."""
    folder = write_run(max_train_steps=2, engine_config=engine_config(TrainingType.FLUX_LORA))
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    records = read_records(folder)
    assert isinstance(records[-1], DoneRecord), done.stderr[-3000:]
    assert (0, 2) == (done.returncode, sum(isinstance(record, StepRecord) for record in records))
    assert ["adapter", "kohyaAdapter"] == [artifact.kind for artifact in records[-1].artifacts]
    seen = json.loads((tmp_path / SEEN_FILE).read_text())
    assert str(site / "diffusers/__init__.py") == seen["diffusers"]
    assert [] == [entry for entry in seen["path"] if Path(entry).resolve().is_relative_to(ENGINES)]
    packages = {name: name.split(".")[0] for name in seen["modules"]}
    ours = {name: file for name, file in seen["modules"].items() if file and Path(file).is_relative_to(ENGINES)}
    # Which multiprocessing gives a second name.
    assert {str(PROGRAM / "__main__.py")} == {
        file for name, file in ours.items() if packages[name] != "training_worker_engines"
    }
    assert "training_worker" not in packages.values()


def test_all_modules_need_the_standard_library_alone() -> None:
    """They are read by an interpreter that has none of our packages, nor any other."""
    folders = (PROGRAM, ENGINES / "common")
    files = [path for folder in folders for path in folder.rglob("*.py") if path.name != "__main__.py"]
    modules = [".".join(path.relative_to(ENGINES).with_suffix("").parts) for path in files]
    script = dedent(f"""
        import importlib, runpy
        program = runpy.run_path({str(PROGRAM / "__main__.py")!r})
        program["load_package"]()
        for module in {modules!r}:
            importlib.import_module(program["PACKAGE"] + "." + module)
        """)
    assert {"invoke.program", "common.data.checks", "common.export.kohya"} < set(modules)
    subprocess.run([sys.executable, "-I", "-S", "-B", "-c", script], check=True)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run sets what is the process's: its temporary folder and which GPUs it sees."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a run folder in this process; gives the exit code and the last record."""
    monkeypatch.setattr(Control, "stop_listening", lambda _: None)
    # As an environment without it, also where this one has it.
    monkeypatch.setitem(sys.modules, "invoke_training", None)

    def run(folder: Path) -> tuple[int, Any]:
        records = ProgressWriter(folder / PROGRESS_FILE)
        return program.run(folder, records, Control(folder, records)), read_records(folder)[-1]

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "expected"), [([], 2, "usage: "), (["/nowhere"], 1, "cannot start: [Errno 2]")]
)
def test_what_cannot_be_recorded_is_written_to_stderr(arguments: list[str], code: int, expected: str) -> None:
    """There is nowhere else to report it."""
    done = subprocess.run([sys.executable, "-I", PROGRAM, *arguments], text=True, capture_output=True, check=False)

    assert (code, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith(expected)


def test_a_host_without_invoke_training_is_unfit(run_here: Any, write_run: WriteRun) -> None:
    """After all that can be known without it."""
    folder = write_run(engine_config=engine_config(FLUX))
    code, failed = run_here(folder)

    assert isinstance(failed, FailedRecord)
    assert (1, FailureReason.HOST_UNFIT) == (code, failed.reason)
    assert "install invoke-training" in failed.message
    records = read_records(folder)
    assert [Phase.STARTING, Phase.CHECKING_DATASET] == [one.phase for one in records if isinstance(one, PhaseRecord)]
    assert not (folder / "tmp").exists()


def test_a_spec_for_another_engine_is_refused(run_here: Any, write_run: WriteRun) -> None:
    """Which has no config of upstream's."""
    code, failed = run_here(write_run())

    assert (1, FailureReason.CONFIG_INVALID) == (code, failed.reason)
    assert ["$.engineConfig"] == [fault.path for fault in failed.faults]


def test_an_attempt_folder_that_cannot_be_made_is_reported(run_here: Any, write_run: WriteRun, tmp_path: Path) -> None:
    """Somebody has put a file there."""
    (tmp_path / "file").touch()
    code, failed = run_here(write_run(attempt_path=str(tmp_path / "file/attempt"), engine_config=engine_config(FLUX)))

    assert (1, FailureReason.OUTPUT_INVALID) == (code, failed.reason)


def test_an_orphan_does_not_even_begin(run_here: Any, write_run: WriteRun) -> None:
    """There is nothing to save."""
    folder = write_run(engine_config=engine_config(FLUX))
    (folder / LEASE_FILE).write_bytes(msgspec.json.encode(RunLease(deadline=0, max_isolation=5)))
    code, stopped = run_here(folder)

    assert isinstance(stopped, StoppedRecord)
    assert (3, 0, "orphan") == (code, stopped.step, stopped.why)

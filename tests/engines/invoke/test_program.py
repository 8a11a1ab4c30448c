"""The folder of the engine ``invoke`` as an interpreter runs it that has nothing of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from tests.engines.conftest import WriteRun, read_records
from tests.engines.invoke_runs import PROGRAM, engine_config

from training_schemas.jobs import TrainingType
from training_schemas.progress import DoneRecord, StepRecord

pytestmark = pytest.mark.trainer

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

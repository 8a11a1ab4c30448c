"""What a job may set of invoke-training's settings, and that the project's copy of them is what they are."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from training_presets.invoke_config import invoke_config
from training_presets.invoke_schema import REFUSED, SETTINGS, is_upstream, schema, upstream_faults
from training_presets.planner import plan_job
from training_schemas.jobs import TrainingJob, TrainingType
from training_schemas.spec import FluxLoraParameters, SdxlParameters
from training_schemas.validation import convert_strictly

ROOT = Path(__file__).parents[2]
INTERPRETER = "INVOKE_TRAINING_PYTHON"
SCRIPT, COPY = "scripts/write_invoke_schema.py", "presets/training_presets/invoke_schema.json"


def parameters(training_type: TrainingType, **overrides: Any) -> FluxLoraParameters | SdxlParameters:
    """Those of a job that invoke-training can train."""
    known = {"initialToken": "toy"} if training_type.family == "sdxl" else {}
    message = {"jobId": "a", "trainingType": training_type, "datasetPath": "/d", "outputPath": "/o", "engine": "invoke"}
    return plan_job(convert_strictly(message | {"configOverrides": known | overrides}, TrainingJob)).parameters


def faults(training_type: TrainingType, **overrides: Any) -> dict[str, str]:
    """What is wrong with such settings, by path."""
    return {fault.path: fault.reason for fault in upstream_faults(training_type, overrides)}


@pytest.mark.invoke
def test_the_copy_is_what_invoke_training_has() -> None:
    """Where it is not, the command to run is printed."""
    invoke_python = os.environ[INTERPRETER]
    command = f"{invoke_python} {SCRIPT} > {COPY}"
    written = subprocess.run([invoke_python, SCRIPT], cwd=ROOT, check=True, capture_output=True, timeout=200).stdout

    assert written == (ROOT / COPY).read_bytes(), f"{COPY} is out of date: run {command}"


@pytest.mark.parametrize("training_type", TrainingType)
def test_settings_of_the_type_are_accepted(training_type: TrainingType) -> None:
    """At the top, and in the objects below."""
    settings = {
        "optimizer": {"beta1": 0.8, "epsilon": 1},
        "data_loader": {"dataloader_num_workers": 2},
        "mixed_precision": "bf16",
        "prediction_type": None,
        "enable_cpu_offload_during_validation": True,
    }

    assert faults(training_type, **settings) == {}


@pytest.mark.parametrize("training_type", TrainingType)
def test_all_that_is_wrong_is_reported_with_its_path(training_type: TrainingType) -> None:
    """Unknown names, wrong kinds, and what is not the job's to set."""
    found = faults(
        training_type,
        optimizer={"beta1": "high", "nonsense": 1, "learning_rate": 1e-4},
        data_loader={"dataset": {"dataset_dir": "/etc"}, "dataloader_num_workers": True},
        mixed_precision="int4",
        base_output_dir="/tmp",
        loraRank=3,
    )

    assert found == {
        "configOverrides.optimizer.beta1": "Expected `float`, got `str`",
        "configOverrides.optimizer.nonsense": "Object contains unknown field `nonsense`",
        "configOverrides.optimizer.learning_rate": "learningRate sets it",
        "configOverrides.data_loader.dataset": REFUSED["data_loader.dataset"],
        "configOverrides.data_loader.dataloader_num_workers": "Expected `int`, got `bool`",
        "configOverrides.mixed_precision": "Invalid enum value 'int4'; one of bf16, fp16, fp8, no",
        "configOverrides.base_output_dir": REFUSED["base_output_dir"],
        "configOverrides.loraRank": "unknown field",
    }


def test_settings_of_another_type_are_unknown() -> None:
    """Each type has its own."""
    assert faults(TrainingType.FLUX_LORA, xformers=True) == {"configOverrides.xformers": "unknown field"}
    assert faults(TrainingType.SDXL_LORA, sigmoid_scale=1.0) == {"configOverrides.sigmoid_scale": "unknown field"}
    assert faults(TrainingType.FLUX_LORA, min_snr_gamma=1.0) == {
        "configOverrides.min_snr_gamma": "it would change nothing"
    }


def test_an_objects_kind_is_an_object() -> None:
    """Not null, nor a number."""
    assert faults(TrainingType.SDXL_LORA, optimizer=3, data_loader=None) == {
        "configOverrides.optimizer": "Expected `object`, got `int`",
        "configOverrides.data_loader": "Expected `object`, got `null`",
    }


def test_the_settings_of_an_optimizer_are_its_own() -> None:
    """Known where the job's optimizer is."""
    settings = {"optimizer": {"safeguard_warmup": False}}
    adam, prodigy = (parameters(TrainingType.SDXL_LORA, optimizer=name) for name in ("adamw", "prodigy"))

    assert upstream_faults(TrainingType.SDXL_LORA, settings) == []
    assert upstream_faults(TrainingType.SDXL_LORA, settings, prodigy) == []
    assert [fault.path for fault in upstream_faults(TrainingType.SDXL_LORA, settings, adam)] == [
        "configOverrides.optimizer.safeguard_warmup"
    ]


def test_there_is_a_negative_prompt_for_each_prompt() -> None:
    """invoke-training would fail at the first sample image."""
    drawn = parameters(TrainingType.SDXL_LORA, validationPrompts=["a robot", "a house"])
    wrong, right = (
        upstream_faults(TrainingType.SDXL_LORA, {"negative_validation_prompts": ["blurred"] * count}, drawn)
        for count in (1, 2)
    )

    assert [fault.path for fault in wrong] == ["configOverrides.negative_validation_prompts"]
    assert right == []


@pytest.mark.parametrize("training_type", TrainingType)
def test_what_the_daemon_sets_is_refused_and_all_else_is_free(training_type: TrainingType) -> None:
    """Each of the names is the worker's, a setting's, or the job's to set; none is in two lists."""
    config = invoke_config(training_type, parameters(training_type), {})
    free = {name for name in schema().objects[schema().types[training_type]] if not faults(training_type, **{name: ""})}

    assert not SETTINGS.keys() & REFUSED.keys()
    assert free == set()  # No setting that may be set is a text.
    assert {name for name in config if not is_upstream(training_type, name)} == set()


def test_every_setting_that_is_refused_exists() -> None:
    """A name that invoke-training has not would be refused as unknown anyway."""
    tops = {name for model in schema().types.values() for name in schema().objects[model]}
    nested = {
        f"optimizer.{name}" for kind in ("Adam", "Prodigy") for name in schema().objects[f"{kind}OptimizerConfig"]
    }
    loaders = [model for model in schema().objects if model.endswith("DataLoaderConfig")]
    nested |= {f"data_loader.{name}" for model in loaders for name in schema().objects[model]}

    assert (SETTINGS | REFUSED).keys() - tops - nested == set()

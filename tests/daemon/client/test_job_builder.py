"""Making jobs in Python: snake_case in, a valid job out, or all faults by the names of the wire."""

import math
from typing import Any

import msgspec
import pytest

from training_presets.planner import plan_job
from training_schemas.jobs import CostOptimization, EngineName, MemoryTier, TrainingJob, TrainingType
from training_schemas.validation import InvalidMessageError, decode_strictly
from training_worker.client.job_builder import JobFields, flux_lora_job, make_job, sdxl_lora_job

PATHS: dict[str, Any] = {"job_id": "a", "dataset_path": "/d", "output_path": "/o"}


def faults(**fields: Any) -> set[str]:
    """The paths of what is wrong with a FLUX job of these fields."""
    with pytest.raises(InvalidMessageError) as caught:
        flux_lora_job(**(PATHS | fields))
    return {fault.path for fault in caught.value.faults}


def test_each_builder_makes_its_type() -> None:
    """Three fields are enough; the rest are the wire's defaults."""
    assert flux_lora_job(**PATHS) == TrainingJob(
        job_id="a", training_type=TrainingType.FLUX_LORA, dataset_path="/d", output_path="/o"
    )
    assert sdxl_lora_job(**PATHS).training_type is TrainingType.SDXL_LORA
    assert make_job("SDXL_FINETUNE", **PATHS).training_type is TrainingType.SDXL_FINETUNE


def test_every_field_of_a_job_can_be_given() -> None:
    """Closed lists by their text, or by their members."""
    fields = JobFields(
        preset="flux_40gb_quality",
        model="base",
        resolution=768,
        batch_size=2,
        learning_rate=5e-5,
        max_train_steps=100,
        lora_rank=8,
        gpu_memory_tier="40gb",
        cost_optimization="quality",
        config_overrides={"seed": 7},
        priority=9,
        max_cost_usd=1.5,
        max_attempts=1,
        engine="diffusers",
        labels={"user": "x"},
    )
    job = flux_lora_job(**PATHS, **fields)

    assert {name: getattr(job, name) for name in fields} == fields
    assert isinstance(job.gpu_memory_tier, MemoryTier)
    assert isinstance(job.cost_optimization, CostOptimization)
    assert isinstance(job.engine, EngineName)
    assert flux_lora_job(**PATHS, gpu_memory_tier=MemoryTier.GB40).gpu_memory_tier is MemoryTier.GB40


def test_the_builders_know_every_field_of_the_wire() -> None:
    """A field that is added there is not forgotten here."""
    assert {*JobFields.__annotations__, "training_type"} == {
        field.name for field in msgspec.structs.fields(TrainingJob)
    }


def test_overrides_may_be_named_as_in_python() -> None:
    """In snake_case or as on the wire, in the same job."""
    overrides = {
        "max_grad_norm": 0.5,
        "t5_tokenizer_max_length": 256,
        "weightDecay": 0.0,
        "seed": 7,
        "validation_prompts": ["a_cat in_snow"],
        "unet_learning_rate": 1e-4,
    }

    assert flux_lora_job(**PATHS, config_overrides=overrides).config_overrides == {
        "maxGradNorm": 0.5,
        "t5TokenizerMaxLength": 256,
        "weightDecay": 0.0,
        "seed": 7,
        "validationPrompts": ["a_cat in_snow"],
        # Not the trainer's, but invoke-training's.
        "unet_learning_rate": 1e-4,
    }


def test_all_faults_come_at_once_by_the_names_of_the_wire() -> None:
    """The names that the documentation and the events use."""
    found = faults(job_id="a b", lora_rank=0, max_cost_usd=-1, gpu_memory_tier="12gb", labels={"a": 1})

    assert found == {"jobId", "loraRank", "maxCostUSD", "gpuMemoryTier", "labels.a"}


def test_a_missing_field_is_named() -> None:
    """All of them."""
    with pytest.raises(InvalidMessageError) as caught:
        flux_lora_job()

    assert {fault.path for fault in caught.value.faults} == {"jobId", "datasetPath", "outputPath"}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"rank": 8}, "rank"),
        ({"config_overrides": None}, "configOverrides"),
        ({"config_overrides": ["seed"]}, "configOverrides"),
        ({"learning_rate": math.nan}, "learningRate"),
        ({"dataset_path": b"/d"}, "datasetPath"),
        ({"priority": True}, "priority"),
    ],
)
def test_what_a_type_checker_would_refuse_is_refused_at_run_time_too(fields: dict[str, Any], path: str) -> None:
    """Not every caller has one."""
    assert faults(**fields) == {path}


@pytest.mark.parametrize("fields", [{"max_cost_usd": math.inf}, {"config_overrides": {"maxGradNorm": math.inf}}])
def test_a_job_that_json_cannot_express_is_not_published_as_another(fields: dict[str, Any]) -> None:
    """Infinity would be written as null: it is refused when the job is made, or at the latest when it is planned."""
    with pytest.raises(InvalidMessageError):
        plan_job(flux_lora_job(**PATHS, **fields))


def test_an_unknown_training_type_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(InvalidMessageError, match=r"trainingType: .*; one of FLUX_LORA, SDXL_LORA"):
        make_job("SD3_LORA", **PATHS)


def test_what_was_made_is_valid_on_the_wire() -> None:
    """Whoever reads it there finds the same."""
    job = flux_lora_job(**PATHS, config_overrides={"max_grad_norm": 0.5}, labels={"a": "b"})

    assert decode_strictly(msgspec.json.encode(job), TrainingJob) == job

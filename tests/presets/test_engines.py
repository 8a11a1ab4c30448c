"""What invoke-training cannot do: changed in the plan with its reason, or refused; and never hidden."""

from typing import Any

import msgspec
import pytest
from tests.presets.test_planner import faults, plan

from training_presets.engines import defects, shortcomings
from training_schemas.jobs import EngineName, TrainingType

FLUX, LORA, INVERSION, FINETUNE = TrainingType
PROMPT = ["a small red robot"]

ALL = (
    ("quantization", {"quantization": "nf4"}),
    ("optimizer", {"optimizer": "adafactor"}),
    ("emaDecay", {"emaDecay": 0.99}),
    ("captionDropout", {"captionDropout": 0.1}),
    ("shuffleCaptions", {"shuffleCaptions": True}),
    ("validationInferenceSteps", {"validationInferenceSteps": 7, "validationPrompts": PROMPT}),
)
LACKING: list[tuple[TrainingType, str, dict[str, Any]]] = [
    *((kind, setting, requested) for kind in TrainingType for setting, requested in ALL),
    (FLUX, "weightDtype", {"weightDtype": "float16"}),
    (FLUX, "weightDtype", {"weightDtype": "float32"}),
    (FLUX, "trainTextEncoder", {"trainTextEncoder": True}),
    (FLUX, "maskedLoss", {"maskedLoss": True}),
    (FLUX, "aspectRatioBuckets", {"aspectRatioBuckets": True}),
    (FLUX, "timestepSampler", {"timestepSampler": "resolutionShift"}),
    (
        FLUX,
        "timestepSampler",
        {"timestepSampler": "uniform", "validationPrompts": PROMPT, "validationInferenceSteps": 20},
    ),
    (LORA, "weightDtype", {"weightDtype": "float16"}),
    (LORA, "noiseOffset", {"noiseOffset": 0.1}),
    (INVERSION, "weightDtype", {"weightDtype": "float16"}),
    (INVERSION, "initialToken", {"initialToken": ""}),
    (FINETUNE, "weightDtype", {"weightDtype": "bfloat16"}),
    (FINETUNE, "trainTextEncoder", {"trainTextEncoder": True}),
]
# Such changes leave a result as it was, and are made against a job's own setting, too.
HARMLESS: list[tuple[TrainingType, dict[str, Any], dict[str, Any]]] = [
    (FLUX, {"batchSize": 4, "gradientAccumulationSteps": 3}, {"batchSize": 1, "gradientAccumulationSteps": 12}),
    (FLUX, {"cacheTextEncoderOutputs": True}, {"cacheTextEncoderOutputs": False}),
    (FLUX, {"cacheVaeOutputs": True}, {"cacheVaeOutputs": False}),
    (LORA, {"cacheVaeOutputs": True, "randomFlip": True}, {"cacheVaeOutputs": False}),
]


def requested_of_invoke(kind: TrainingType, overrides: dict[str, Any]) -> dict[str, Any]:
    """A job for it, with what an inversion needs."""
    token = {"initialToken": "toy"} if kind is INVERSION else {}
    return {"engine": "invoke", "configOverrides": token | overrides}


@pytest.mark.parametrize(("kind", "setting", "requested"), LACKING)
def test_what_a_job_itself_sets_and_invoke_has_not_is_refused_by_its_path(
    kind: TrainingType, setting: str, requested: dict[str, Any]
) -> None:
    """With a reason that names the engine; the built-in trainer trains the same job, if it is not to quantize."""
    found = faults(kind, **requested_of_invoke(kind, requested))

    assert list(found) == [f"configOverrides.{setting}"]
    if (kind, setting) != (FINETUNE, "quantization"):
        assert "invoke-training" in found[f"configOverrides.{setting}"]
        assert plan(kind, configOverrides=requested).engine != "invoke"


@pytest.mark.parametrize(("kind", "requested", "given"), HARMLESS)
def test_what_can_be_changed_without_harm_is_changed_and_reported(
    kind: TrainingType, requested: dict[str, Any], given: dict[str, Any]
) -> None:
    """Against a job's own setting; a step sees the same images."""
    planned = plan(kind, **requested_of_invoke(kind, requested))
    settings = msgspec.to_builtins(planned.parameters)

    assert {name: settings[name] for name in given} == given
    assert given.keys() <= {change.setting for change in planned.changes if "invoke-training" in change.why}


@pytest.mark.parametrize("kind", TrainingType)
def test_what_a_preset_sets_is_changed_until_invoke_can_train_it(kind: TrainingType) -> None:
    """And every rung below it, too."""
    planned = plan(kind, **requested_of_invoke(kind, {}))

    assert planned.engine == EngineName.INVOKE
    assert [shortcomings(planned.engine, kind, rung) for rung in (planned.parameters, *planned.ladder)] == [
        {} for _ in (planned.parameters, *planned.ladder)
    ]
    assert all(change.why for change in planned.changes)


def test_flux_is_trained_as_invoke_can() -> None:
    """Batch 1 with accumulation, bfloat16, nothing cached, the base whole, on 40 GB."""
    planned = plan(FLUX, engine="invoke", preset="flux_24gb_balanced", batchSize=2)
    settings = planned.parameters

    assert planned.tier == "40gb"
    assert (settings.batch_size, settings.gradient_accumulation_steps) == (1, 16)
    assert (settings.weight_dtype, settings.quantization) == ("bfloat16", "none")
    assert not any((settings.cache_text_encoder_outputs, settings.cache_vae_outputs, settings.aspect_ratio_buckets))
    assert plan(FLUX, engine="invoke").preset == "flux_40gb_balanced"


def test_flux_is_not_trained_by_invoke_on_24_gb() -> None:
    """A request for that is refused."""
    found = faults(FLUX, engine="invoke", gpuMemoryTier="24gb", preset="flux_24gb_balanced")

    assert found == {
        "gpuMemoryTier": "FLUX_LORA with preset flux_24gb_balanced by invoke requires at least 40gb, not 24gb"
    }


def test_a_batch_that_accumulation_cannot_stand_for_is_refused() -> None:
    """By the field that sets it."""
    assert list(faults(FLUX, engine="invoke", preset="flux_24gb_balanced", batchSize=64)) == ["batchSize"]


def test_all_faults_are_reported_at_once() -> None:
    """Tier, cards, settings, and settings of invoke-training's."""
    requested = {"quantization": "nf4", "maskedLoss": True, "base_output_dir": "/", "optimizer": {"beta1": "x"}}
    found = faults(FLUX, engine="invoke", gpuMemoryTier="24gb", gpuCount=2, configOverrides=requested)

    assert found.keys() == {
        "gpuMemoryTier",
        "gpuCount",
        "configOverrides.quantization",
        "configOverrides.maskedLoss",
        "configOverrides.base_output_dir",
        "configOverrides.optimizer.beta1",
    }


def test_what_stays_wrong_is_a_warning() -> None:
    """No setting changes it; other engines have nothing to warn of."""
    for kind in TrainingType:
        requested = requested_of_invoke(kind, {})
        planned = plan(kind, **requested)
        reported = [one.message for one in planned.warnings]
        assert defects(EngineName.INVOKE, kind, planned.parameters)
        assert set(defects(EngineName.INVOKE, kind, planned.parameters)) <= set(reported)
        assert not any("invoke-training" in one.message for one in plan(kind).warnings)


def test_settings_of_invoke_training_are_kept_apart() -> None:
    """`optimizer` is a setting of both: a name is ours, an object theirs."""
    settings = {"optimizer": {"beta1": 0.8}, "enable_cpu_offload_during_validation": True}
    planned = plan(LORA, engine="invoke", configOverrides=settings | {"seed": 3})

    assert (planned.upstream, planned.parameters.seed) == (settings, 3)
    assert plan(LORA, configOverrides={"seed": 3}).upstream == {}


@pytest.mark.parametrize("engine", ["auto", "diffusers"])
def test_settings_of_invoke_training_are_unknown_to_other_engines(engine: str) -> None:
    """The reason names whose they are."""
    assert faults(LORA, engine=engine, configOverrides={"xformers": True, "nonsense": 1}) == {
        "configOverrides.xformers": "unknown field; engine invoke has one of that name",
        "configOverrides.nonsense": "unknown field",
    }


def test_a_plan_for_any_engine_is_never_changed_for_invokes_sake() -> None:
    """The worker checks whether invoke can train it, and why not."""
    plain, flipped = plan(LORA), plan(LORA, configOverrides={"randomFlip": True})

    assert (plain.engine, shortcomings(EngineName.INVOKE, LORA, plain.parameters)) == ("auto", {})
    assert shortcomings(EngineName.INVOKE, LORA, plain.parameters, gpu_count=2).keys() == {"gpu_count"}
    assert flipped.parameters.cache_vae_outputs
    assert shortcomings(EngineName.INVOKE, LORA, flipped.parameters).keys() == {"cache_vae_outputs"}
    assert shortcomings(EngineName.INVOKE, FINETUNE, plan(FINETUNE).parameters).keys() == {"optimizer", "weight_dtype"}
    assert shortcomings(EngineName.INVOKE, INVERSION, plan(INVERSION).parameters).keys() >= {"initial_token"}


@pytest.mark.parametrize("kind", TrainingType)
def test_what_is_planned_for_any_engine_the_built_in_trainer_can_train(kind: TrainingType) -> None:
    """It is the one that every worker has."""
    for engine in (EngineName.AUTO, EngineName.DIFFUSERS):
        assert shortcomings(engine, kind, plan(kind).parameters) == {}

"""What a job will be trained with, and where: precedence, tiers, and refusals that name everything at once."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training_presets.planner import DoesNotFitError, Plan, fit, plan_job
from training_presets.presets import Preset, presets
from training_presets.tiers import MINIMUM_TIERS, least_memory_mib
from training_schemas.jobs import CostOptimization, MemoryTier, TrainingJob, TrainingType
from training_schemas.spec import FluxLoraParameters, SdxlParameters
from training_schemas.validation import InvalidMessageError, convert_strictly


def job(training_type: str = "FLUX_LORA", **fields: Any) -> TrainingJob:
    """A valid job with these fields, named as on the wire."""
    message = {"jobId": "a", "trainingType": training_type, "datasetPath": "/d", "outputPath": "/o"}
    return convert_strictly(message | fields, TrainingJob)


def plan(training_type: str = "FLUX_LORA", **fields: Any) -> Plan:
    """The plan of such a job."""
    return plan_job(job(training_type, **fields))


def faults(training_type: str = "FLUX_LORA", **fields: Any) -> dict[str, str]:
    """Why such a job cannot be planned, by path."""
    with pytest.raises(InvalidMessageError) as caught:
        plan(training_type, **fields)
    assert len(caught.value.faults) == len({fault.path for fault in caught.value.faults})
    return {fault.path: fault.reason for fault in caught.value.faults}


@pytest.mark.parametrize(
    ("training_type", "preset", "tier", "kind"),
    [
        ("FLUX_LORA", "flux_24gb_balanced", "24gb", FluxLoraParameters),
        ("SDXL_LORA", "sdxl_balanced", "8gb", SdxlParameters),
        ("SDXL_TEXTUAL_INVERSION", "sdxl_balanced", "8gb", SdxlParameters),
        ("SDXL_FINETUNE", "sdxl_balanced", "24gb", SdxlParameters),
    ],
)
def test_a_job_that_sets_nothing_gets_the_balanced_preset_of_its_least_tier(
    training_type: str, preset: str, tier: str, kind: type
) -> None:
    """Four fields are enough for a whole plan."""
    planned = plan(training_type)

    assert (planned.preset, planned.tier, type(planned.parameters)) == (preset, tier, kind)
    assert planned.family == training_type.partition("_")[0].lower()


def test_a_jobs_own_fields_win_over_its_preset() -> None:
    """The preset fills in only what the job does not set."""
    parameters = plan(preset="flux_24gb_aggressive", loraRank=64, learningRate=5e-5, resolution=768).parameters

    assert (parameters.lora_rank, parameters.learning_rate, parameters.resolution) == (64, 5e-5, 768)
    assert (parameters.max_train_steps, parameters.gradient_accumulation_steps) == (500, 8)


def test_overrides_win_over_the_jobs_own_fields() -> None:
    """Preset, then fields, then overrides: whoever was most explicit wins."""
    parameters = plan(maxTrainSteps=100, batchSize=2, configOverrides={"maxTrainSteps": 7, "seed": 3}).parameters

    assert (parameters.max_train_steps, parameters.batch_size, parameters.seed) == (7, 2, 3)


def test_every_field_of_a_job_that_names_a_parameter_reaches_it() -> None:
    """No field is accepted and then passed over."""
    fields = {"resolution": 256, "batchSize": 3, "learningRate": 0.5, "maxTrainSteps": 11, "loraRank": 5}
    parameters = plan("SDXL_LORA", **fields).parameters

    assert (parameters.resolution, parameters.batch_size, parameters.learning_rate) == (256, 3, 0.5)
    assert (parameters.max_train_steps, parameters.lora_rank) == (11, 5)


def test_an_override_of_one_job_does_not_leak_into_the_next() -> None:
    """Presets are shared between jobs and never changed."""
    plan(configOverrides={"validationPrompts": ["a cat"], "seed": 9})

    assert plan().parameters == convert_strictly(presets()["flux_24gb_balanced"].parameters, FluxLoraParameters)


@pytest.mark.parametrize(
    ("training_type", "fields", "tier"),
    [
        ("FLUX_LORA", {}, "24gb"),
        ("FLUX_LORA", {"preset": "flux_80gb_quality"}, "80gb"),
        ("FLUX_LORA", {"gpuMemoryTier": "40gb"}, "40gb"),
        ("FLUX_LORA", {"preset": "flux_24gb_balanced", "gpuMemoryTier": "80gb"}, "80gb"),
        ("SDXL_LORA", {}, "8gb"),
        ("SDXL_LORA", {"preset": "sdxl_quality", "gpuMemoryTier": "16gb"}, "16gb"),
        ("SDXL_FINETUNE", {"preset": "sdxl_quality"}, "24gb"),
        ("SDXL_FINETUNE", {"gpuMemoryTier": "80gb"}, "80gb"),
    ],
)
def test_the_tier_is_the_highest_of_type_preset_and_request(
    training_type: str, fields: dict[str, Any], tier: str
) -> None:
    """A job never waits for a card that is smaller than any of the three requires."""
    assert plan(training_type, **fields).tier == tier


@pytest.mark.parametrize(
    ("fields", "preset"),
    [
        ({"gpuMemoryTier": "40gb"}, "flux_40gb_balanced"),
        ({"gpuMemoryTier": "80gb", "costOptimization": "quality"}, "flux_80gb_quality"),
        ({"costOptimization": "aggressive"}, "flux_24gb_aggressive"),
        ({"costOptimization": "quality"}, "flux_24gb_balanced"),
        ({"gpuMemoryTier": "80gb", "costOptimization": "aggressive"}, "flux_80gb_balanced"),
        ({"preset": "flux_24gb_aggressive", "costOptimization": "quality"}, "flux_24gb_aggressive"),
    ],
)
def test_the_preset_follows_from_tier_and_optimization_unless_it_is_named(fields: dict[str, Any], preset: str) -> None:
    """Balanced replaces a kind that a tier does not have; a named preset is used as it is."""
    assert plan(**fields).preset == preset


@pytest.mark.parametrize(
    ("training_type", "fields"),
    [
        ("FLUX_LORA", {"gpuMemoryTier": "8gb"}),
        ("FLUX_LORA", {"gpuMemoryTier": "16gb"}),
        ("FLUX_LORA", {"preset": "flux_80gb_balanced", "gpuMemoryTier": "40gb"}),
        ("SDXL_FINETUNE", {"gpuMemoryTier": "16gb"}),
    ],
)
def test_a_request_for_too_small_a_card_is_refused_not_corrected(training_type: str, fields: dict[str, Any]) -> None:
    """Whoever requests a tier gets a fault with what is needed instead."""
    found = faults(training_type, **fields)

    assert found.keys() == {"gpuMemoryTier"}
    assert "requires at least" in found["gpuMemoryTier"]
    assert found["gpuMemoryTier"].endswith(f"not {fields['gpuMemoryTier']}")


@pytest.mark.parametrize(
    ("training_type", "preset"),
    [("FLUX_LORA", "sdxl_balanced"), ("SDXL_LORA", "flux_24gb_balanced"), ("SDXL_LORA", "x")],
)
def test_a_preset_of_another_family_is_refused_with_the_presets_that_fit(training_type: str, preset: str) -> None:
    """The reason lists every preset of the job's own family, and no other."""
    found = faults(training_type, preset=preset)

    assert found.keys() == {"preset"}
    listed = found["preset"].partition("; one of ")[2].split(", ")
    family = training_type.partition("_")[0].lower()
    assert listed == [name for name in presets() if name.startswith(family)]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("batchSize", 0),
        ("loraRank", 1.5),
        ("learningRate", None),
        ("t5TokenizerMaxLength", 513),
        ("weightDtype", "int4"),
        ("seed", -1),
        ("unheardOf", 1),
        ("batch_size", 1),
        ("jobId", "b"),
    ],
)
def test_an_override_that_is_no_valid_parameter_is_refused_by_its_path(override: str, value: object) -> None:
    """Overrides are checked key by key, by the names of the wire."""
    assert faults(configOverrides={override: value}).keys() == {f"configOverrides.{override}"}


def test_flux_parameters_are_unknown_to_sdxl() -> None:
    """A setting that the other family alone understands is not silently dropped."""
    assert faults("SDXL_LORA", configOverrides={"guidanceScale": 1.0}).keys() == {"configOverrides.guidanceScale"}


def test_all_that_is_wrong_with_a_plan_is_reported_at_once() -> None:
    """Preset, tier and two overrides: four faults in one refusal."""
    found = faults(preset="nonsense", gpuMemoryTier="8gb", configOverrides={"loraRank": 0, "unheardOf": 1})

    assert found.keys() == {"preset", "gpuMemoryTier", "configOverrides.loraRank", "configOverrides.unheardOf"}


tiers = st.none() | st.sampled_from(MemoryTier)
override_names = st.sampled_from(["batchSize", "loraRank", "seed", "weightDtype", "validationPrompts", "guidanceScale"])
override_values = st.none() | st.booleans() | st.integers(-1, 300) | st.floats(-1, 5) | st.just("bfloat16")
jobs = st.builds(
    TrainingJob,
    job_id=st.just("a"),
    training_type=st.sampled_from(TrainingType),
    dataset_path=st.just("/d"),
    output_path=st.just("/o"),
    preset=st.none() | st.sampled_from([*presets(), "nonsense"]),
    resolution=st.none() | st.integers(4, 128).map(lambda n: 16 * n),
    batch_size=st.none() | st.integers(1, 64),
    learning_rate=st.none() | st.floats(1e-9, 1),
    max_train_steps=st.none() | st.integers(1, 1_000_000),
    lora_rank=st.none() | st.integers(1, 256),
    gpu_memory_tier=tiers,
    cost_optimization=st.none() | st.sampled_from(CostOptimization),
    config_overrides=st.just({}) | st.dictionaries(override_names, override_values, max_size=3),
)


@settings(max_examples=10_000, deadline=None)
@given(jobs)
def test_a_valid_job_is_planned_or_refused_and_never_waits_for_too_small_a_card(wanted: TrainingJob) -> None:
    """There is no third way; its tier is no lower than type, preset and request, and its least card holds the plan."""
    try:
        planned = plan_job(wanted)
    except InvalidMessageError as error:
        names = {fault.path.partition(".")[0] for fault in error.faults}
        assert names
        assert names <= {"preset", "gpuMemoryTier", "configOverrides"}
        return
    tiers = [MINIMUM_TIERS[wanted.training_type], presets()[planned.preset].tier, wanted.gpu_memory_tier]
    assert planned.tier.gigabytes >= max(tier.gigabytes for tier in tiers if tier)
    assert wanted.gpu_memory_tier in (None, planned.tier)
    assert planned.memory.peak_mib == planned.peak_mib <= least_memory_mib(planned.tier)
    assert planned.preset == (wanted.preset or planned.preset)


@settings(deadline=None)
@given(jobs)
def test_a_valid_job_without_preset_tier_or_overrides_always_has_a_plan(wanted: TrainingJob) -> None:
    """A job's own fields are never a reason to refuse: some tier can train it, with what the planner had to change."""
    simple = msgspec.structs.replace(wanted, preset=None, gpu_memory_tier=None, config_overrides={}, batch_size=None)

    planned = plan_job(simple)

    assert planned.tier.gigabytes >= MINIMUM_TIERS[wanted.training_type].gigabytes
    assert all(change.why for change in planned.changes)


@pytest.mark.parametrize("training_type", TrainingType)
@pytest.mark.parametrize("preset", presets().values(), ids=lambda preset: preset.name)
def test_every_preset_fits_its_tier_as_it_is(training_type: str, preset: Preset) -> None:
    """On the least card of the tier; those for SDXL are for any card, and may be made smaller."""
    if preset.family is not TrainingType(training_type).family:
        return
    planned = plan(training_type, preset=preset.name)

    assert planned.peak_mib <= least_memory_mib(planned.tier)
    assert planned.tier == (preset.tier or planned.tier)
    assert {change.setting for change in planned.changes} <= (
        set() if preset.family == "flux" else {"batchSize", "gradientAccumulationSteps", "quantization"}
    )


def test_a_job_that_does_not_fit_its_tier_goes_down_the_ladder_and_reports_that() -> None:
    """Micro-batches first, with the same images in a step; and each change has its reason."""
    planned = plan(preset="flux_40gb_balanced", resolution=1536, batchSize=8)

    changes = {change.setting: (change.before, change.after) for change in planned.changes}
    assert planned.parameters.batch_size < 8
    assert planned.parameters.batch_size * planned.parameters.gradient_accumulation_steps == 8 * 4
    assert changes["batchSize"] == (8, planned.parameters.batch_size)
    assert all("to fit 36.0 GiB" in change.why for change in planned.changes)


def test_a_jobs_own_setting_of_its_base_holds_and_it_waits_for_a_larger_card() -> None:
    """16 bits were requested: they need 40 GB."""
    planned = plan(configOverrides={"quantization": "none"})

    assert (planned.tier, planned.parameters.quantization, planned.changes) == ("40gb", "none", [])


def test_a_job_that_insists_on_its_tier_is_refused_with_what_would_fit() -> None:
    """The reason names the memory, and the nearest choices."""
    found = faults(gpuMemoryTier="24gb", configOverrides={"quantization": "none"})

    assert list(found) == ["gpuMemoryTier"]
    assert "and there are 21.6" in found["gpuMemoryTier"]
    assert "quantization int8" in found["gpuMemoryTier"]
    assert "gpuMemoryTier 40gb" in found["gpuMemoryTier"]


@pytest.mark.parametrize(
    ("overrides", "path"),
    [
        ({"quantization": "nf4"}, "configOverrides.quantization"),
        ({"trainTextEncoder": True}, "configOverrides.trainTextEncoder"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_before_the_queue(overrides: dict[str, Any], path: str) -> None:
    """Not on a card that somebody pays for; here it is invoke-training, which the built-in trainer is not."""
    settings = {"quantization": "none"} | overrides
    assert list(faults(engine="invoke", preset="flux_80gb_balanced", configOverrides=settings)) == [path]
    assert plan(preset="flux_80gb_balanced", configOverrides=settings).engine == "diffusers"


@pytest.mark.parametrize(
    ("setting", "cache"), [("randomCrop", "cacheVaeOutputs"), ("shuffleCaptions", "cacheTextEncoderOutputs")]
)
def test_what_changes_with_each_step_is_not_cached(setting: str, cache: str) -> None:
    """The plan reports that, going down the ladder keeps it, and a job that insists on both is refused."""
    planned = plan(preset="flux_80gb_balanced", configOverrides={setting: True})
    reported = [(one.setting, one.before, one.after) for one in planned.changes]

    assert reported == [(cache, True, False)]
    assert all(not msgspec.to_builtins(rung)[cache] for rung in [planned.parameters, *planned.ladder])
    assert list(faults(preset="flux_80gb_balanced", configOverrides={setting: True, cache: True})) == [
        f"configOverrides.{cache}"
    ]


def test_prodigy_finds_the_rate_by_itself() -> None:
    """The rate is then a factor: 1, if the job sets nothing else."""
    assert plan(configOverrides={"optimizer": "prodigy"}).parameters.learning_rate == 1.0
    assert plan(configOverrides={"optimizer": "prodigy"}, learningRate=0.5).parameters.learning_rate == 0.5


def test_an_inversion_needs_a_trigger_word() -> None:
    """Its presets have one."""
    assert list(faults("SDXL_TEXTUAL_INVERSION", configOverrides={"triggerWord": ""})) == [
        "configOverrides.triggerWord"
    ]
    assert plan("SDXL_TEXTUAL_INVERSION").parameters.trigger_word == "<concept>"


def test_a_running_mean_is_kept_beside_the_weights() -> None:
    """It needs as much as they do."""
    preset = "flux_80gb_balanced"
    plain, averaged = plan(preset=preset), plan(preset=preset, configOverrides={"emaDecay": 0.99})

    assert averaged.peak_mib > plain.peak_mib


def test_the_weights_of_a_finetune_are_not_quantized() -> None:
    """They learn."""
    found = faults("SDXL_FINETUNE", configOverrides={"quantization": "nf4"})

    assert list(found) == ["configOverrides.quantization"]


def test_less_free_memory_is_one_more_step_down() -> None:
    """And where no step is left, there is an error with what would fit."""
    planned = plan(preset="flux_80gb_balanced", configOverrides={"gradientCheckpointing": False})
    sizes = [fit(planned, memory).peak_mib for memory in (80_000, 40_000, 30_000, 20_000)]

    assert sizes == sorted(sizes, reverse=True)
    assert all(peak <= memory for peak, memory in zip(sizes, (80_000, 40_000, 30_000, 20_000), strict=True))
    with pytest.raises(DoesNotFitError, match=r"needs .* GiB of GPU memory at least, and there are 2.0"):
        fit(planned, 2048)


def test_a_job_for_several_cards_is_planned_for_each_of_them() -> None:
    """The tier is that of each card; a step is shared out, and what had to change for it is reported."""
    planned = plan("SDXL_LORA", gpuCount=2, batchSize=1, configOverrides={"gradientCheckpointing": False})

    assert (planned.gpu_count, planned.tier, planned.engine) == (2, "8gb", "diffusers")
    assert planned.parameters.gradient_accumulation_steps % 2 == 0
    assert [change.why for change in planned.changes if change.setting == "gradientAccumulationSteps"] == [
        "each of 2 GPUs takes as many micro-batches of a step"
    ]
    assert planned.peak_mib > plan("SDXL_LORA", batchSize=1, configOverrides={"gradientCheckpointing": False}).peak_mib


def test_every_rung_of_a_job_for_several_cards_can_be_shared_out() -> None:
    """Whatever it falls back to on a card with less memory."""
    planned = plan("SDXL_LORA", gpuCount=4, batchSize=8)

    assert planned.ladder
    assert all(rung.gradient_accumulation_steps % 4 == 0 for rung in planned.ladder)


def test_what_cannot_be_shared_out_is_refused() -> None:
    """By the setting that the job itself names; and an engine that knows one card reports that."""
    odd = faults(gpuCount=2, configOverrides={"gradientAccumulationSteps": 3})
    other = faults("SDXL_LORA", gpuCount=2, engine="invoke")

    assert odd == {
        "configOverrides.gradientAccumulationSteps": "cannot be shared out: "
        "each of 2 GPUs takes as many micro-batches of a step"
    }
    assert other == {"gpuCount": "engine invoke trains on one GPU"}


def test_weights_that_learn_are_not_kept_in_float16() -> None:
    """The built-in trainer scales no losses: small gradients would be none. An adapter learns in float32 anyway."""
    low = {"weightDtype": "float16"}

    assert faults("SDXL_FINETUNE", gpuMemoryTier="80gb", configOverrides=low) == {
        "configOverrides.weightDtype": "weights that learn in float16 lose small gradients; bfloat16 or float32"
    }
    assert plan("SDXL_LORA", configOverrides=low).parameters.weight_dtype == "float16"

"""A plan as invoke-training's settings: complete, of the right kinds, and what the built-in trainer would do."""

import json
import math
import os
import statistics
import subprocess
from typing import Any

import pytest
from tests.presets.test_invoke_schema import INTERPRETER, parameters

from training_presets import invoke_config as module
from training_presets.invoke_config import invoke_config
from training_presets.invoke_schema import Field, schema
from training_schemas.jobs import ModelFamily, TrainingType
from training_worker.engines.diffusers.data.buckets import DIVISORS, buckets

# What the trainer fills in.
PATHS = {"model": "/m", "base_output_dir": "/o"}
DATASET = {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "/d.jsonl"}

VALIDATE = """
import json, sys
from pydantic import TypeAdapter
from invoke_training.config.pipeline_config import PipelineConfig
json.dump([TypeAdapter(PipelineConfig).validate_python(one).model_dump() for one in json.load(sys.stdin)], sys.stdout)
"""
LAYERS = """
import json, sys, peft
from diffusers import FluxTransformer2DModel
model = FluxTransformer2DModel(in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8])
names = [name for name, one in model.named_modules() if type(one).__name__ == "Linear"]
found = peft.get_peft_model(model, peft.LoraConfig(target_modules=json.load(sys.stdin))).targeted_module_names
json.dump([names, found], sys.stdout)
"""
KINDS: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool, "null": type(None)}


def config(training_type: TrainingType, upstream: dict[str, Any] | None = None, **overrides: Any) -> dict[str, Any]:
    """That of a job with such overrides."""
    return invoke_config(training_type, parameters(training_type, **overrides), upstream or {})


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """As the trainer makes it."""
    return config | PATHS | {"data_loader": config["data_loader"] | {"dataset": DATASET}}


def misfits(value: Any, kinds: list[Any], path: str = "") -> list[str]:
    """Where a value is none of the kinds, or an object has not exactly the fields that it should."""
    return [] if any(not _misfits(value, kind, path) for kind in kinds) else _misfits(value, kinds[0], path)


def _misfits(value: Any, kind: Any, path: str) -> list[str]:
    match kind:
        case str():
            fits = isinstance(value, KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
            return [] if fits else [path]
        case {"choices": choices}:
            return [] if value in choices else [path]
        case {"list": inner}:
            return [path] if not isinstance(value, list) else [one for each in value for one in misfits(each, inner)]
        case {"values": inner}:
            return (
                [path]
                if not isinstance(value, dict)
                else [one for each in value.values() for one in misfits(each, inner)]
            )
        case {"object": name} if isinstance(value, dict):
            return _object_misfits(value, schema().objects[name], path)
    return [path]


def _object_misfits(value: dict[str, Any], fields: dict[str, Field], path: str) -> list[str]:
    # A data set's defaults are its own affair: the trainer writes it.
    missing = set() if path.endswith("dataset") else fields.keys() - value.keys()
    strange = [f"{path}.{name}" for name in missing | (value.keys() - fields.keys())]
    known = value.keys() & fields.keys()
    return strange + [one for name in known for one in misfits(value[name], fields[name].kinds, f"{path}.{name}")]


VARIANTS: list[dict[str, Any]] = [
    {},
    {"optimizer": "prodigy"},
    {"optimizer": "adamw8bit", "lrScheduler": "cosine", "lrWarmupSteps": 7},
    {"loraTargets": "allLinear", "checkpointEvery": 0, "sampleEvery": 5, "validationPrompts": ["a robot"]},
    {"randomCrop": True, "randomFlip": True},
]
# Steps of sample images are invoke-training's.
STEPS = {ModelFamily.FLUX: 20, ModelFamily.SDXL: 30}
all_variants = pytest.mark.parametrize("variant", VARIANTS, ids=range(len(VARIANTS)))
all_types = pytest.mark.parametrize("training_type", TrainingType)


def variant_of(training_type: TrainingType, variant: dict[str, Any]) -> dict[str, Any]:
    """The config of one."""
    return complete(config(training_type, **variant | {"validationInferenceSteps": STEPS[training_type.family]}))


@all_types
@all_variants
def test_nothing_is_left_to_a_default_and_all_is_of_its_kind(
    training_type: TrainingType, variant: dict[str, Any]
) -> None:
    """By the project's copy of invoke-training's settings."""
    found = variant_of(training_type, variant)

    assert misfits(found, [{"object": schema().types[training_type]}]) == []


@pytest.mark.invoke
def test_invoke_trainings_own_models_agree() -> None:
    """They read each config, and what they make of it is what was set."""
    configs = [variant_of(kind, variant) for kind in TrainingType for variant in VARIANTS]
    found = _run(VALIDATE, configs)

    for one in found:
        one["data_loader"]["dataset"] = DATASET
    assert found == configs


@all_types
def test_exactly_one_of_each_pair_is_set(training_type: TrainingType) -> None:
    """invoke-training would die of an assertion, with the models loaded."""
    found = config(training_type)

    for what in ("max_train_{}", "save_every_n_{}", "validate_every_n_{}"):
        assert (found[what.format("epochs")], type(found[what.format("steps")])) == (None, int)


@all_types
def test_a_jobs_own_settings_come_last(training_type: TrainingType) -> None:
    """Deeply: what they do not name stays."""
    plain = config(training_type)
    settings = {"optimizer": {"beta1": 0.5}, "data_loader": {"dataloader_num_workers": 3}, "mixed_precision": "fp16"}
    found = config(training_type, settings)

    assert found["optimizer"] == plain["optimizer"] | {"beta1": 0.5}
    assert found["data_loader"] == plain["data_loader"] | {"dataloader_num_workers": 3}
    assert found["mixed_precision"] == "fp16"
    assert plain == config(training_type)


@pytest.mark.parametrize("resolution", [64, 128, 256, 512, 768, 1024, 1536])
def test_buckets_are_those_of_the_built_in_trainer(resolution: int) -> None:
    """As invoke-training makes them: for each side from start to end the greatest other side, both ways."""
    found = config(TrainingType.SDXL_LORA, resolution=resolution)["data_loader"]["aspect_ratio_buckets"]
    step = found["divisible_by"]
    sides = range(found["start_dim"], found["end_dim"] + 1, step)
    made = {(side, found["target_resolution"] ** 2 // side // step * step) for side in sides}

    assert made | {(high, wide) for wide, high in made} == set(buckets(resolution, DIVISORS[ModelFamily.SDXL]))


@pytest.mark.parametrize("resolution", range(64, 2049, 16))
def test_buckets_can_be_had_at_every_resolution(resolution: int) -> None:
    """invoke-training asserts that all three are multiples of the step."""
    loader = config(TrainingType.SDXL_LORA, resolution=resolution)["data_loader"]
    found = loader["aspect_ratio_buckets"]

    assert [found[key] % found["divisible_by"] for key in ("target_resolution", "start_dim", "end_dim")] == [0, 0, 0]
    assert 0 < found["start_dim"] <= found["target_resolution"] <= found["end_dim"]
    assert loader["resolution"] % 32 == 0


def test_levels_called_shift_are_nearly_those_of_the_built_in_trainer() -> None:
    """Theirs is the sigmoid of a normal variable, which at a certain scale is nearly uniform."""
    found = config(TrainingType.FLUX_LORA)
    normal = statistics.NormalDist(sigma=found["sigmoid_scale"])
    levels = [level / 1000 for level in range(1, 1000)]

    assert max(abs(normal.cdf(math.log(level / (1 - level))) - level) for level in levels) < 0.01
    assert (found["timestep_sampler"], found["discrete_flow_shift"]) == ("shift", 3.0)


@pytest.mark.parametrize(
    ("sampler", "expected"), [("sigmoid", ("shift", 1.0, 1.0)), ("uniform", ("uniform", 3.0, 1.702))]
)
def test_other_levels(sampler: str, expected: tuple[str, float, float]) -> None:
    """The sigmoid is theirs without a shift."""
    found = config(TrainingType.FLUX_LORA, timestepSampler=sampler)

    assert (found["timestep_sampler"], found["discrete_flow_shift"], found["sigmoid_scale"]) == expected


def test_prodigy_has_one_rate_for_all() -> None:
    """It refuses several."""
    found = config(TrainingType.SDXL_LORA, optimizer="prodigy", trainTextEncoder=True)

    assert (found["unet_learning_rate"], found["text_encoder_learning_rate"]) == (None, None)
    assert found["optimizer"]["learning_rate"] == 1.0
    assert not found["cache_text_encoder_outputs"]


def test_the_trigger_word_of_an_inversion_is_put_before_each_caption_by_invoke_training() -> None:
    """So the list of captions is written without it."""
    loader = config(TrainingType.SDXL_TEXTUAL_INVERSION)["data_loader"]

    assert (loader["caption_templates"], loader["keep_original_captions"]) == (["{}"], True)


def test_the_layers_are_those_of_the_built_in_trainer() -> None:
    """Their names are written twice, since that one's module needs torch."""
    pytest.importorskip("torch")
    from training_worker.engines.diffusers.models import lora  # noqa: PLC0415 - needs the trainer extra

    for name in ("FLUX_ATTENTION", "FLUX_FEED_FORWARD", "SDXL_ATTENTION", "SDXL_FEED_FORWARD", "CLIP_ATTENTION"):
        assert getattr(module, name) == getattr(lora, name)


@pytest.mark.invoke
@pytest.mark.parametrize("targets", ["attention", "attentionAndFeedForward", "allLinear"])
def test_every_layer_that_is_named_is_found_and_no_other(targets: str) -> None:
    """Those of a small FLUX, by invoke-training's own peft; its own list names feed-forward layers that are not."""
    named = config(TrainingType.FLUX_LORA, loraTargets=targets)["flux_lora_target_modules"]
    layers, found = _run(LAYERS, named)
    single = ("proj_mlp", "proj_out") if targets == "allLinear" else ()
    ends = tuple(f".{name}" for name in (*(name for name in named if not name.startswith("single")), *single))

    assert set(found) == {name for name in layers if name.endswith(ends)}
    assert ("transformer_blocks.0.ff.net.2" in found) is (targets != "attention")
    assert "proj_out" not in found


def _run(program: str, request: Any) -> Any:
    done = subprocess.run(
        [os.environ[INTERPRETER], "-c", program],
        input=json.dumps(request).encode(),
        check=True,
        capture_output=True,
        timeout=200,
    )
    return json.loads(done.stdout)

"""Reading strangers' messages: all faults at once, each with its path."""

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_schemas.jobs import CostOptimization, EngineName, MemoryTier, TrainingJob, TrainingType
from training_schemas.validation import InvalidMessageError, decode_strictly

VALID = {"jobId": "a", "trainingType": "FLUX_LORA", "datasetPath": "/d", "outputPath": "/o"}


def faults(**changes: Any) -> dict[str, str]:
    """The faults of a valid job with changes, by path."""
    with pytest.raises(InvalidMessageError) as caught:
        decode_strictly(json.dumps(VALID | changes).encode(), TrainingJob)
    return {fault.path: fault.reason for fault in caught.value.faults}


def test_a_minimal_job_is_read_with_its_defaults() -> None:
    """Four fields make a job."""
    job = decode_strictly(json.dumps(VALID).encode(), TrainingJob)

    assert (job.job_id, job.training_type, job.priority, job.max_attempts, job.engine) == (
        "a",
        TrainingType.FLUX_LORA,
        0,
        3,
        EngineName.AUTO,
    )


def test_every_optional_field_has_its_name_on_the_wire() -> None:
    """The names that backends use are those of the design, maxCostUSD among them."""
    assert {field.encode_name for field in msgspec.structs.fields(TrainingJob)} == {
        *VALID,
        *("preset", "model", "resolution", "batchSize", "learningRate", "maxTrainSteps", "loraRank", "gpuMemoryTier"),
        *("costOptimization", "configOverrides", "priority", "maxCostUSD", "maxAttempts", "engine", "labels"),
        "gpuCount",
    }


def test_all_faults_are_found_at_once() -> None:
    """A message with five faults is refused with five paths."""
    found = faults(jobId="a b", datasetPath=3, loraRank=0, learningRate="fast", extra=True)

    assert found.keys() == {"jobId", "datasetPath", "loraRank", "learningRate", "extra"}


@pytest.mark.parametrize("job_id", ["", "a.b", "a/b", "../x", "_a", "-a", "a\n", "ü", "a" * 129])
def test_an_id_that_could_not_name_a_queue_and_a_folder_is_refused(job_id: str) -> None:
    """Ids become routing keys and paths: nothing but characters, digits, _ and -, and no line end at the end."""
    assert faults(jobId=job_id).keys() == {"jobId"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resolution", 63),
        ("resolution", 1000),
        ("batchSize", 0),
        ("learningRate", 0),
        ("learningRate", 1.5),
        ("maxTrainSteps", 0),
        ("loraRank", 257),
        ("priority", 10),
        ("maxCostUSD", 0),
        ("maxAttempts", 0),
        ("loraRank", True),
        ("loraRank", 8.5),
        ("labels", {"a": 1}),
        ("labels", []),
        ("configOverrides", 1),
        ("engine", "magic"),
        ("costOptimization", "cheap"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused(field: str, value: object) -> None:
    """The one fault names the field, or the key below it."""
    assert [path.partition(".")[0] for path in faults(**{field: value})] == [field]


def test_a_fault_of_a_closed_list_names_the_list() -> None:
    """Whoever mistyped a tier gets a list of the tiers."""
    assert faults(gpuMemoryTier="12gb")["gpuMemoryTier"].endswith("; one of 8gb, 16gb, 24gb, 40gb, 80gb")


texts = st.text(min_size=1, max_size=20)
jobs = st.builds(
    TrainingJob,
    job_id=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z"),
    training_type=st.sampled_from(TrainingType),
    dataset_path=texts,
    output_path=texts,
    preset=st.none() | texts,
    resolution=st.none() | st.integers(4, 128).map(lambda n: 16 * n),
    learning_rate=st.none() | st.floats(1e-9, 1),
    lora_rank=st.none() | st.integers(1, 256),
    gpu_memory_tier=st.none() | st.sampled_from(MemoryTier),
    cost_optimization=st.none() | st.sampled_from(CostOptimization),
    config_overrides=st.dictionaries(texts, st.booleans() | st.integers(-5, 5) | texts, max_size=3),
    max_cost_usd=st.none() | st.floats(0.01, 1e6),
    labels=st.dictionaries(texts, texts, max_size=3),
)


@given(jobs)
def test_a_job_comes_back_from_the_wire_as_it_was(job: TrainingJob) -> None:
    """Encoding and decoding is the identity."""
    assert decode_strictly(msgspec.json.encode(job), TrainingJob) == job


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(body: bytes) -> None:
    """Whatever comes is a job or an `InvalidMessageError`, and no other error."""
    with suppress(InvalidMessageError):
        decode_strictly(body, TrainingJob)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([f.encode_name for f in msgspec.structs.fields(TrainingJob)]), json_values))
def test_no_json_breaks_the_search_for_faults(message: dict[str, Any]) -> None:
    """Each fault names a field that the message has, or one that it lacks."""
    found: set[str] = set()
    try:
        decode_strictly(json.dumps(message).encode(), TrainingJob)
    except InvalidMessageError as error:
        found = {fault.path.partition(".")[0] for fault in error.faults}

    assert found <= {*message, *VALID}
    assert found >= VALID.keys() - message.keys()

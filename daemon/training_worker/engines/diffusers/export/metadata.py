"""The description of a result of this trainer in its files."""

from enum import StrEnum

import msgspec

from training_schemas.jobs import TrainingType
from training_schemas.spec import FluxLoraParameters, SdxlParameters
from training_worker.engines.common.export.metadata import (
    DIFFUSERS,
    FLUX_CODE,
    SDXL_CODE,
    ResultFacts,
    metadata_of,
)


class Implementation(StrEnum):
    """The code whose names a file's tensors bear: diffusers', or the first of the model, as kohya's files do."""

    DIFFUSERS = DIFFUSERS
    FLUX = FLUX_CODE
    SDXL = SDXL_CODE


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a run made, and of what. ``date`` is ISO 8601, ``base_model`` the name of its folder."""

    training_type: TrainingType
    parameters: FluxLoraParameters | SdxlParameters
    title: str
    date: str
    base_model: str
    dataset_hash: str
    step: int
    worker_version: str


def result_metadata(result: Result, implementation: Implementation) -> dict[str, str]:
    """Describe a result in a file with the tensors' names of an implementation."""
    parameters = result.parameters
    fields = msgspec.structs.asdict(result)
    del fields["parameters"]
    facts = ResultFacts(
        **fields,
        resolution=parameters.resolution,
        trigger_word=parameters.trigger_word,
        lora_rank=parameters.lora_rank,
        settings=msgspec.json.encode(parameters).decode(),
    )
    return metadata_of(facts, implementation.value)

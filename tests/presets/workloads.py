"""Workloads for tests: a plain one of each type of training, and random ones."""

from typing import Any

import msgspec
from hypothesis import strategies as st

from training_presets.workload import Workload
from training_schemas.jobs import TrainingType
from training_schemas.spec import LoraTargets, OptimizerName, Quantization, WeightDtype


def workload(training_type: str = "FLUX_LORA", size: int = 512, **fields: Any) -> Workload:
    """A run with one image at a time, everything cached, and checkpointing."""
    given = {"training_type": training_type, "width": size, "height": size, "batch_size": 1} | fields
    return msgspec.convert(given, Workload)


def workloads() -> st.SearchStrategy[Workload]:
    """Any run that a job can request."""
    return st.builds(
        Workload,
        training_type=st.sampled_from(TrainingType),
        width=st.integers(4, 128).map(lambda number: number * 16),
        height=st.integers(4, 128).map(lambda number: number * 16),
        batch_size=st.integers(1, 64),
        accumulation=st.integers(1, 256),
        steps=st.integers(1, 10_000),
        lora_rank=st.integers(1, 256),
        lora_targets=st.sampled_from(LoraTargets),
        weight_dtype=st.sampled_from(WeightDtype),
        quantization=st.sampled_from(Quantization),
        optimizer=st.sampled_from(OptimizerName),
        gradient_checkpointing=st.booleans(),
        cache_text=st.booleans(),
        cache_latents=st.booleans(),
        train_text_encoder=st.booleans(),
        validation_prompts=st.integers(0, 16),
        checkpoints=st.integers(0, 100),
        gpu_count=st.sampled_from((1, 2, 4, 8)),
        stored_blocks=st.integers(0, 60),
        keep_attention=st.booleans(),
        data_on_device=st.booleans(),
    )

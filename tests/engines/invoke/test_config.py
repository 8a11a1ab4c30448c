"""The config that invoke-training gets."""

from typing import Any

import pytest

from training_worker.engines.common.protocol.failures import TrainingFailure
from training_worker.engines.invoke.config import _field, check_config

pytestmark = pytest.mark.trainer


def test_fields_are_named_without_the_kinds_that_were_tried() -> None:
    """Where upstream takes one of several, pydantic names each."""
    assert "$.engineConfig.optimizer.beta3" == _field(("optimizer", "AdamOptimizerConfig", "beta3"))
    assert "$.engineConfig.data_loader.x.0" == _field(("data_loader", "IMAGE_CAPTION_SD_DATA_LOADER", "x", 0))


@pytest.mark.parametrize(
    ("loader", "field"),
    [(None, "data_loader"), ({}, "data_loader.resolution"), ({"resolution": "64"}, "data_loader.resolution")],
)
def test_what_is_read_of_a_config_before_upstream_reads_it_must_be_there(loader: Any, field: str) -> None:
    """The size that images are looked at for."""
    with pytest.raises(TrainingFailure) as caught:
        check_config({"data_loader": loader})

    assert [f"$.engineConfig.{field}"] == [fault.path for fault in caught.value.faults]

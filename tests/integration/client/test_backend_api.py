"""What a backend does in Python, line by line as the documentation has it, on a live broker."""

import asyncio
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.fleet import Fleet

from training_schemas.events import JobClaimed, JobCompleted, JobQueued
from training_worker.errors import BrokerError

pytestmark = pytest.mark.broker


DOCUMENT = Path(__file__).parents[3] / "docs" / "backend.md"


def documented_lines() -> dict[str, Any]:
    """Run the Python of docs/backend.md from top to bottom; what its names stand for afterwards."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL):
        exec(block, names)
    return names


async def test_the_documented_lines_run(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receipt has plan and estimate; the job is queued for its tier, and its event has what it will need."""
    monkeypatch.setenv("TRAINING_AMQP_URL", fleet.url)
    monkeypatch.setenv("TRAINING_PREFIX", fleet.names.prefix)
    await fleet.start(dataset_roots=["/datasets"], output_roots=["/models"])

    names = await asyncio.to_thread(documented_lines)
    receipt, job, config = names["result"], names["job"], names["config"]
    event = await fleet.until("user_portrait_flux", JobQueued)

    assert (receipt.plan.tier, receipt.plan.preset, receipt.estimate.memory_tier) == (
        "40gb",
        "flux_40gb_balanced",
        "40gb",
    )
    assert receipt.estimate.training_hours > 0
    assert (job.job_id, job.config_overrides["discreteFlowShift"]) == ("advanced_flux", 3.0)
    assert config["preset"] == "flux_24gb_balanced"
    assert isinstance(event, JobQueued)
    assert event.predicted is not None
    assert event.predicted.peak_vram_mib == round(receipt.estimate.peak_vram_gib * 1024)
    assert event.predicted.cost_usd == pytest.approx(receipt.estimate.estimated_cost_usd)


async def test_a_recommended_configuration_is_one_that_can_be_submitted(fleet: Fleet) -> None:
    """As it is, with an id and paths."""
    api = fleet.api
    best = api.get_preset_recommendations("FLUX_LORA", 15.0)["recommendations"][0]

    job = api.create_simple_job("FLUX_LORA", job_id="best", dataset_path="/d", output_path="/o", **best["config"])

    assert api.estimate_job_cost(job) == best["estimate"]


async def test_a_completed_job_reports_what_was_predicted_and_what_it_needed(fleet: Fleet) -> None:
    """Time and cost of all attempts; the next job of its kind is predicted from what this one needed."""
    await fleet.start(mode="steady", prices={"RTX 4090": 3.6})
    await fleet.submit("first", max_train_steps=8)
    first = (await fleet.events("first"))[-1]
    await fleet.submit("second", max_train_steps=8)
    (claimed,) = [event for event in await fleet.events("second") if isinstance(event, JobClaimed)]

    assert isinstance(first, JobCompleted)
    assert first.predicted is not None
    assert first.measured is not None
    assert not first.predicted.from_measurements
    assert first.measured.gpu_seconds == first.usage.gpu_seconds
    assert first.measured.cost_usd == pytest.approx(first.usage.gpu_seconds / 1000, rel=0.01)
    assert first.measured.seconds_per_step == pytest.approx(0.05, rel=1.0)
    assert claimed.predicted is not None
    assert claimed.predicted.from_measurements
    assert claimed.predicted.seconds_per_step == pytest.approx(first.measured.seconds_per_step, rel=0.01)


@pytest.mark.usefixtures("broker_url")
def test_a_broker_that_is_not_there_is_reported_in_good_time(missing: Callable[[str], Any], tmp_path: Path) -> None:
    """A clear error, and nothing was sent."""
    from training_worker import TrainingWorkerAPI, flux_lora_job  # noqa: PLC0415

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        api = TrainingWorkerAPI(f"amqp://guest:guest@127.0.0.1:{nobody.getsockname()[1]}/")
        began = time.monotonic()
        with pytest.raises(BrokerError, match=r"cannot reach the broker at 127\.0\.0\.1:\d+"):
            api.submit_job(flux_lora_job(job_id="a", dataset_path="/d", output_path="/o"))

    assert time.monotonic() - began < 60

"""The client where there is no broker: what is wrong is reported at once, and nobody waits for ever."""

import asyncio
import gc
import socket
from collections.abc import Callable, Iterator
from contextlib import closing

import aio_pika
import pytest

from training_schemas.jobs import MemoryTier, TrainingJob, TrainingType
from training_schemas.validation import InvalidMessageError
from training_worker.client.async_client import AsyncTrainingWorkerAPI
from training_worker.client.job_builder import flux_lora_job
from training_worker.client.sync_client import TrainingWorkerAPI
from training_worker.errors import BrokerError, TrainingWorkerError

# A refused connection takes milliseconds; the machine may be slow.
TIMEOUT = 30.0
JOB = flux_lora_job(job_id="a", dataset_path="/d", output_path="/o")


@pytest.fixture
def nobody() -> Iterator[str]:
    """The address of a port that is in use and that nobody listens on."""
    with closing(socket.socket()) as in_use:
        in_use.bind(("127.0.0.1", 0))
        yield f"amqp://guest:secret@127.0.0.1:{in_use.getsockname()[1]}/"


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize(
    "call",
    [
        lambda api: api.submit_job(JOB),
        lambda api: api.cancel("a"),
        lambda api: api.checkpoint_now("a"),
        lambda api: api.sample_now("a"),
        lambda api: api.drain("all"),
        lambda api: api.pause("all"),
        lambda api: api.resume("all"),
        lambda api: api.dead_letters(),
        lambda api: api.requeue("a"),
        lambda api: api.drop("a"),
        lambda api: api.wait("a"),
        lambda api: list(api.events("a")),
    ],
    ids=[
        "submit",
        "cancel",
        "checkpoint",
        "sample",
        "drain",
        "pause",
        "resume",
        "letters",
        "requeue",
        "drop",
        "wait",
        "events",
    ],
)
def test_every_call_reports_that_the_broker_cannot_be_reached(
    nobody: str, call: Callable[[TrainingWorkerAPI], object]
) -> None:
    """It is an error of this package, whatever the libraries raise, and it does not repeat the password."""
    with pytest.raises(BrokerError) as caught:
        call(TrainingWorkerAPI(nobody))

    assert "secret" not in str(caught.value)


async def test_the_asyncio_client_reports_the_same(nobody: str) -> None:
    """Within a bounded time."""
    with pytest.raises(BrokerError):
        await asyncio.wait_for(AsyncTrainingWorkerAPI(nobody).submit_job(JOB), TIMEOUT)


@pytest.mark.parametrize("url", ["nonsense", "amqp://127.0.0.1:port/"])
async def test_an_address_that_is_none_is_an_error_of_this_package(url: str) -> None:
    """A mistyped variable is no traceback for the user."""
    with pytest.raises(TrainingWorkerError):
        await asyncio.wait_for(AsyncTrainingWorkerAPI(url).submit_job(JOB), TIMEOUT)


def test_a_failed_call_leaves_no_connection_for_the_garbage_collector_to_close(nobody: str) -> None:
    """Nobody could wait for that: it warns of a coroutine that was never awaited, in whatever runs at that moment."""
    with pytest.raises(BrokerError) as held:
        TrainingWorkerAPI(nobody).cancel("a")
    left = [thing for thing in gc.get_objects() if type(thing) is aio_pika.Connection and not thing.is_closed]

    assert left == []
    assert held.value


@pytest.mark.parametrize(
    ("job", "path"),
    [
        (flux_lora_job(job_id="a", dataset_path="/d", output_path="/o", preset="nonsense"), "preset"),
        (
            flux_lora_job(job_id="a", dataset_path="/d", output_path="/o", gpu_memory_tier=MemoryTier.GB8),
            "gpuMemoryTier",
        ),
        (
            flux_lora_job(job_id="a", dataset_path="/d", output_path="/o", config_overrides={"rank": 1}),
            "configOverrides.rank",
        ),
        (
            TrainingJob(job_id="a.b", training_type=TrainingType.FLUX_LORA, dataset_path="/d", output_path="/o"),
            "jobId",
        ),
        (
            TrainingJob(
                job_id="a",
                training_type=TrainingType.FLUX_LORA,
                dataset_path="/d" * 4096,
                output_path="/o",
                priority=10,
            ),
            "priority",
        ),
    ],
    ids=["preset", "tier", "override", "id", "unchecked fields"],
)
async def test_a_job_that_no_worker_would_accept_is_refused_without_a_broker(
    nobody: str, job: TrainingJob, path: str
) -> None:
    """The intake would reject it later; the caller learns it now, also of a job that was made past the builders."""
    with pytest.raises(InvalidMessageError) as caught:
        await asyncio.wait_for(AsyncTrainingWorkerAPI(nobody).submit_job(job), TIMEOUT)

    assert path in {fault.path for fault in caught.value.faults}


def test_the_address_of_the_environment_counts_where_none_is_given(
    monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    """The variable is that of the daemon."""
    monkeypatch.setenv("TRAINING_AMQP_URL", nobody)
    port = nobody.rpartition(":")[2].rstrip("/")

    with pytest.raises(BrokerError, match=port):
        TrainingWorkerAPI().cancel("a")


def test_a_client_can_be_used_from_many_threads_after_a_failure(nobody: str) -> None:
    """One call's error is that call's alone."""
    api = TrainingWorkerAPI(nobody)

    async def in_threads() -> list[object]:
        calls = [asyncio.to_thread(api.cancel, "a") for _ in range(4)]
        return await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(error, BrokerError) for error in asyncio.run(in_threads()))

"""A job on its way through the queues: what goes in comes out, and what others put there does no harm."""

import json
from typing import Any

import msgspec
import pytest
from aio_pika import DeliveryMode, IncomingMessage, Message
from aiormq.abc import DeliveredMessage
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from training_schemas.jobs import TrainingJob
from training_schemas.validation import InvalidMessageError
from training_worker.jobs import flux_lora_job
from training_worker.queued_job import SUBMITTED_HEADER, QueuedJob

JOB = flux_lora_job(job_id="a", dataset_path="/d", output_path="/o", priority=4, labels={"b": "2", "a": "1"})
BODY = msgspec.json.encode(JOB)


def delivered(message: Message) -> IncomingMessage:
    """A message as it comes back from a broker: its properties through the bytes of the protocol."""
    frame = ContentHeader(0, len(message.body), message.properties).marshal()
    header = ContentHeader()
    header.unmarshal(frame)
    delivery = Basic.Deliver("consumer", 1, False, "", "flux.24gb")
    return IncomingMessage(DeliveredMessage(delivery=delivery, header=header, body=message.body, channel=None))  # type: ignore[arg-type]


def job(**fields: Any) -> TrainingJob:
    """The job with changes."""
    return msgspec.structs.replace(JOB, **fields)


def test_a_submitted_job_has_its_plan_and_its_time() -> None:
    """It is ready for the queue of its tier."""
    queued = QueuedJob.submitted(BODY, now=1000.5)

    assert (queued.job, queued.job_id, queued.submitted_at) == (JOB, "a", 1000.5)
    assert (queued.plan.preset, queued.tier_key) == ("flux_24gb_balanced", "flux.24gb")


@pytest.mark.parametrize("now", [0.0, 1000.5, 1_789_000_000.123456, 1000])
def test_a_job_comes_back_from_a_queue_as_it_was(now: float) -> None:
    """Job, plan and the time of its submission, to the millisecond: the ledger is searched from there on."""
    queued = QueuedJob.submitted(BODY, now)

    again = QueuedJob.waiting(delivered(queued.message()))

    assert (again.job, again.plan) == (queued.job, queued.plan)
    assert again.submitted_at == pytest.approx(now, rel=0, abs=0.001)


def test_a_copy_can_be_told_by_its_properties() -> None:
    """Persistent, with the job's id, type and priority."""
    message = QueuedJob.submitted(BODY, now=1000.0).message()

    assert message.delivery_mode is DeliveryMode.PERSISTENT
    assert (message.content_type, message.message_id) == ("application/json", "a")
    assert (message.type, message.priority) == ("training.job.submit.v1", 4)
    assert json.loads(message.body) == json.loads(BODY)


@pytest.mark.parametrize(
    "value",
    ["yesterday", "1000.5", None, True, -1.0, float("nan"), float("inf"), 4e12, [1000.5], {"a": 1.0}, -1, 2**62],
    ids=repr,
)
def test_a_time_that_nobody_can_have_written_counts_as_the_beginning_of_time(value: Any) -> None:
    """A job whose age nobody knows may be as old as the ledger: it is looked for everywhere."""
    message = Message(BODY, headers={SUBMITTED_HEADER: value})

    assert QueuedJob.waiting(delivered(message)).submitted_at == 0.0


@pytest.mark.parametrize("headers", [None, {}, {"x-death": [{"count": 1}]}])
def test_a_message_without_a_time_counts_as_the_beginning_of_time(headers: dict[str, Any] | None) -> None:
    """It was put there past an intake."""
    assert QueuedJob.waiting(delivered(Message(BODY, headers=headers))).submitted_at == 0.0


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"", ""),
        (b"{", ""),
        (b"[]", ""),
        (b'"a"', ""),
        (BODY.replace(b'"/d"', b"7"), "datasetPath"),
        (BODY.replace(b'"FLUX_LORA"', b'"SDXL_LORA","preset":"flux_24gb_balanced"'), "preset"),
    ],
)
def test_what_is_no_job_or_has_no_plan_is_refused_from_either_queue(body: bytes, path: str) -> None:
    """With the path of the fault."""
    with pytest.raises(InvalidMessageError) as submitted:
        QueuedJob.submitted(body, 1.0)
    with pytest.raises(InvalidMessageError) as waiting:
        QueuedJob.waiting(delivered(Message(body)))

    assert [fault.path for fault in submitted.value.faults] == [path]
    assert submitted.value.faults == waiting.value.faults


def test_the_digest_is_the_jobs_and_not_its_spellings() -> None:
    """Spaces, order and defaults that are written out make no other job."""
    spelled = json.dumps(dict(reversed(json.loads(BODY).items())) | {"maxAttempts": 3}, indent=2).encode()
    other_order = job(labels={"a": "1", "b": "2"})

    digests = {QueuedJob.submitted(body, now).digest for body, now in ((BODY, 1.0), (spelled, 2.0))} | {
        QueuedJob.submitted(msgspec.json.encode(other_order), 3.0).digest
    }

    assert len(digests) == 1
    assert len(digests.pop()) == 64


@pytest.mark.parametrize("changes", [{"lora_rank": 4}, {"priority": 5}, {"labels": {}}, {"output_path": "/o2"}])
def test_another_job_under_the_same_id_has_another_digest(changes: dict[str, Any]) -> None:
    """Whatever it is that differs."""
    body = msgspec.json.encode(job(**changes))

    assert QueuedJob.submitted(body, 1.0).digest != QueuedJob.submitted(BODY, 1.0).digest


@settings(deadline=None, max_examples=40)
@given(
    st.floats(0, 4e9),
    st.integers(0, 9),
    st.dictionaries(st.text(min_size=1, max_size=9), st.text(max_size=9), max_size=3),
)
def test_any_number_of_queues_change_nothing(now: float, priority: int, labels: dict[str, str]) -> None:
    """Released, handed over and renewed copies are the job as it was submitted."""
    queued = QueuedJob.submitted(msgspec.json.encode(job(priority=priority, labels=labels)), now)
    again = queued
    for _ in range(3):
        again = QueuedJob.waiting(delivered(again.message()))

    assert (again.job, again.plan, again.digest) == (queued.job, queued.plan, queued.digest)
    assert again.submitted_at == pytest.approx(now, rel=0, abs=0.003)

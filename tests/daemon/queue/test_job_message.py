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
from training_worker.client.job_builder import flux_lora_job
from training_worker.queue.job_message import AVOID_HEADER, MOST_PASSES, PASSED_HEADER, SUBMITTED_HEADER, QueuedJob

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


def test_a_copy_can_be_identified_by_its_properties() -> None:
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


def test_a_job_that_failed_on_a_worker_is_left_to_others_for_a_few_times() -> None:
    """That worker may be the only one that can train it."""
    queued = QueuedJob.submitted(BODY, 1.0)
    assert not queued.should_avoid("w1")
    queued = queued.elsewhere("w1")

    avoided = []
    for _ in range(MOST_PASSES + 1):
        assert not queued.should_avoid("w2")
        avoided.append(queued.should_avoid("w1"))
        queued = QueuedJob.waiting(delivered(queued.passed_on().message()))

    assert avoided == [True] * MOST_PASSES + [False]


def test_a_job_that_fails_again_is_counted_again() -> None:
    """On the same worker or on another one; only the last one is avoided."""
    queued = QueuedJob.submitted(BODY, 1.0).elsewhere("w1").passed_on().passed_on()

    assert (queued.elsewhere("w2").avoid, queued.elsewhere("w2").passed) == ("w2", 0)
    assert queued.elsewhere("w2").should_avoid("w1") is False


def test_a_job_that_failed_nowhere_has_no_count_of_failures() -> None:
    """Its headers are those of every job."""
    headers = QueuedJob.submitted(BODY, 1.0).message().headers

    assert headers.keys() == {SUBMITTED_HEADER}


@pytest.mark.parametrize("value", [7, True, None, [], {"a": 1}], ids=repr)
def test_what_nobody_can_have_avoided_is_not_avoided(value: Any) -> None:
    """A header that others wrote does no harm."""
    message = Message(BODY, headers={AVOID_HEADER: value, PASSED_HEADER: 1})

    assert QueuedJob.waiting(delivered(message)).avoid is None


@pytest.mark.parametrize("value", ["2", 1.5, True, None, [1]], ids=repr)
def test_passes_that_nobody_can_have_counted_are_none(value: Any) -> None:
    """The job is left to others a few times more."""
    message = Message(BODY, headers={AVOID_HEADER: "w1", PASSED_HEADER: value})

    assert QueuedJob.waiting(delivered(message)).passed == 0


def test_avoiding_a_worker_makes_no_other_job() -> None:
    """Its digest is what its sender wrote."""
    queued = QueuedJob.submitted(BODY, 1.0)

    assert queued.elsewhere("w1").passed_on().digest == queued.digest


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

"""Dead letters: headers that always fit into a frame, and a reading that no stranger can upset."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame, header

from training_schemas.progress import Fault
from training_schemas.usage import AttemptSummary, Usage
from training_worker.queue.dead_letter import (
    DeadLetter,
    DeadLetterFields,
    first_bytes,
    job_id_of,
    last_bytes,
    read_dead_letter,
)

USED = Usage(gpu_seconds=1.0)
ATTEMPT = AttemptSummary(attempt=1, worker="w1", outcome="failed", usage=USED, reason="stalled", message="still")
BODY = b'{"jobId": "portrait"}'

# RabbitMQ's default for the largest frame.
FRAME_MAX = 128 * 1024


class Delivery(msgspec.Struct):
    """What the AMQP library gives."""

    headers: dict[str, Any]
    body: bytes = BODY


def test_a_dead_letter_is_read_as_it_was_written() -> None:
    """Every part of it."""
    text = DeadLetterFields(
        reason="stalled",
        message="nothing happened",
        faults=[Fault(path="a.png", reason="corrupt")],
        history=[ATTEMPT],
        output_tail=["one", "two"],
    )

    assert read_dead_letter(Delivery(text.headers(1.5))) == DeadLetter(
        job_id="portrait",
        reason="stalled",
        message="nothing happened",
        faults=[Fault(path="a.png", reason="corrupt")],
        history=[ATTEMPT],
        output="one\ntwo",
        dead_lettered_at=1.5,
        body=BODY,
    )


def test_a_field_without_a_value_has_no_header() -> None:
    """A rejected message has neither attempts nor output."""
    assert DeadLetterFields(reason="rejected", message="no").headers(2.0) == {
        "x-training-buried": 2000,
        "x-training-reason": "rejected",
        "x-training-message": "no",
    }


def test_of_a_long_output_the_last_lines_are_kept() -> None:
    """Fifty of them."""
    lines = [f"line {number}" for number in range(60)]

    output = DeadLetterFields(reason="stalled", message="", output_tail=lines).headers(0.0)["x-training-output"]

    assert output.splitlines() == lines[10:]


@pytest.mark.parametrize("dead_letter", ["x", "\N{EURO SIGN}", "\N{PILE OF POO}", "\ud800", "\0"])
def test_the_headers_of_a_monster_fit_into_one_frame(dead_letter: str) -> None:
    """Whatever its texts are made of; what is kept can be read again."""
    monsters = [
        AttemptSummary(
            attempt=n, worker="w1", outcome="failed", usage=USED, reason="stalled", message=dead_letter * 99_999
        )
        for n in range(1, 60)
    ]
    text = DeadLetterFields(
        reason="stalled",
        message=dead_letter * 99_999,
        faults=[Fault(path=f"{n}", reason="x" * 999) for n in range(999)],
        history=monsters,
        output_tail=[dead_letter * 99_999] * 99,
    )

    headers = text.headers(1.7e9)

    properties = commands.Basic.Properties(headers=headers, message_id="j" * 128, content_type="application/json")
    assert len(frame.marshal(header.ContentHeader(body_size=9, properties=properties), 1)) < FRAME_MAX
    read = read_dead_letter(Delivery(headers))
    assert [attempt.attempt for attempt in read.history][-1:] == [59]
    assert [fault.path for fault in read.faults][:2] == ["0", "1"]
    assert len(read.output.encode()) <= 24 * 1024


def test_an_attempt_that_would_not_fit_alone_is_left_out() -> None:
    """Rather than a piece of it."""
    monster = msgspec.structs.replace(ATTEMPT, worker="w" * 99_999)

    assert (
        read_dead_letter(Delivery(DeadLetterFields(reason="x", message="", history=[monster]).headers(0.0))).history
        == []
    )


@given(st.text(), st.integers(1, 20))
def test_texts_are_cut_by_bytes_at_whole_characters(text: str, limit: int) -> None:
    """From the end, or from the beginning."""
    first, last = first_bytes(text, limit), last_bytes(text, limit)

    assert max(len(first.encode()), len(last.encode())) <= limit
    assert text.startswith(first)
    assert text.endswith(last)
    assert limit - len(first.encode()) < 4 or first == text
    assert limit - len(last.encode()) < 4 or last == text


def test_the_brokers_own_note_is_read() -> None:
    """Why it gave up last, when, and where the message was."""
    when = datetime(2026, 1, 1, tzinfo=UTC)
    deaths = [
        {"reason": "delivery_limit", "queue": "training.tier.flux.24gb", "count": 1, "time": when},
        {"reason": "expired", "queue": "training.lease.portrait", "count": 2, "time": when},
    ]

    dead_letter = read_dead_letter(Delivery({"x-death": deaths}))

    assert (dead_letter.reason, dead_letter.from_queue) == ("delivery_limit", "training.tier.flux.24gb")
    assert (dead_letter.dead_lettered_at, dead_letter.ended) == (when.timestamp(), False)


@pytest.mark.parametrize(
    ("reason", "ended"), [("stalled", True), ("rejected", False), ("idTaken", False), ("unknown", False)]
)
def test_only_what_failed_had_begun(reason: str, ended: bool) -> None:
    """The rest never was a job of the fleet."""
    assert read_dead_letter(Delivery({"x-training-reason": reason})).ended is ended


strange = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
NAMES = ["reason", "message", "faults", "history", "output", "buried"]


@given(st.dictionaries(st.sampled_from([f"x-training-{name}" for name in NAMES] + ["x-death"]), strange), st.binary())
def test_whatever_strangers_write_is_read(headers: dict[str, Any], body: bytes) -> None:
    """A dead letter, of which less is known."""
    dead_letter = read_dead_letter(Delivery(headers, body))

    assert dead_letter.body == body
    assert dead_letter.reason != ""


@pytest.mark.parametrize(
    ("body", "job_id"),
    [(BODY, "portrait"), (b"{}", "_"), (b"\xff", "_"), (b"[" * 9999, "_"), (b'{"jobId": "a b"}', "_")],
)
def test_a_message_without_an_id_has_that_of_no_job(body: bytes, job_id: str) -> None:
    """It need not be a valid job to have one."""
    assert job_id_of(body) == job_id

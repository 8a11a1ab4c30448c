"""A dead letter: what gave up, why, and what is known of its attempts. It is encoded in a message's headers."""

import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar

import msgspec

from training_schemas.base import JobId
from training_schemas.events import NO_JOB
from training_schemas.jobs import TrainingJob
from training_schemas.progress import Fault
from training_schemas.usage import AttemptSummary
from training_schemas.validation import MAX_MESSAGE_BYTES, UNREADABLE, decode_strictly

REASON_HEADER = "x-training-reason"
MESSAGE_HEADER = "x-training-message"
FAULTS_HEADER = "x-training-faults"
HISTORY_HEADER = "x-training-history"
OUTPUT_HEADER = "x-training-output"
DEAD_LETTERED_HEADER = "x-training-buried"
SIZE_HEADER = "x-training-size"

# The reasons of dead letters that never were jobs. All others are those of a failure.
REJECTED = "rejected"
ID_TAKEN = "idTaken"
UNKNOWN = "unknown"

# All headers travel in one frame, of at most 128 KiB unless the broker is configured otherwise. Bytes, and lines.
LONGEST_MESSAGE = 4000
LONGEST_OUTPUT = 24 * 1024
LONGEST_LIST = 24 * 1024
MOST_LINES = 50

# What is kept of a body that is too large to be a job, in bytes: enough to identify its sender.
LONGEST_BODY = 64 * 1024

# Milliseconds, in the year 2100.
LATEST_TIME = 4_102_444_800_000

T = TypeVar("T", bound=msgspec.Struct)


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A message of the dead-letter queue; ``body`` is what was published.

    ``reason`` is one of the closed list of failures, ``rejected``, ``idTaken``, or, where the broker itself gave up,
    its own reason, as ``delivery_limit``; then ``from_queue`` is the queue that the message was in.
    """

    job_id: str
    reason: str
    body: bytes
    message: str = ""
    faults: list[Fault] = []
    history: list[AttemptSummary] = []
    output: str = ""
    dead_lettered_at: float | None = None
    from_queue: str | None = None

    @property
    def buried_at(self) -> float | None:
        """Return ``dead_lettered_at`` under its former name, for one release more."""
        warnings.warn("DeadLetter.buried_at is deprecated: use dead_lettered_at", DeprecationWarning, stacklevel=2)
        return self.dead_lettered_at

    @property
    def job(self) -> TrainingJob:
        """Decode the job. Raises `InvalidMessageError` if the body is none."""
        return decode_strictly(self.body, TrainingJob)

    @property
    def ended(self) -> bool:
        """Whether the job was admitted and failed for good."""
        return self.from_queue is None and self.reason not in (REJECTED, ID_TAKEN, UNKNOWN)


class Message(Protocol):
    """The parts of a message that are read."""

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers, as the AMQP library decoded them."""

    @property
    def body(self) -> bytes:
        """The body, as it was published."""


class DeadLetterFields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that are encoded beside a body."""

    reason: str
    message: str
    faults: Sequence[Fault] = ()
    history: Sequence[AttemptSummary] = ()
    output_tail: Sequence[str] = ()

    def headers(self, now: float) -> dict[str, Any]:
        """Encode a message's headers, whose size is bounded whatever the text holds; ``now`` in unix seconds."""
        headers = {
            REASON_HEADER: first_bytes(self.reason, LONGEST_MESSAGE),
            MESSAGE_HEADER: first_bytes(self.message, LONGEST_MESSAGE),
            FAULTS_HEADER: _first_items(self.faults),
            HISTORY_HEADER: _last_items([_bounded(attempt) for attempt in self.history]),
            OUTPUT_HEADER: last_bytes("\n".join(self.output_tail[-MOST_LINES:]), LONGEST_OUTPUT),
        }
        present = {name: value for name, value in headers.items() if value}
        return {DEAD_LETTERED_HEADER: round(now * 1000)} | present


def _bounded(attempt: AttemptSummary) -> AttemptSummary:
    if attempt.message is None:
        return attempt
    return msgspec.structs.replace(attempt, message=first_bytes(attempt.message, LONGEST_MESSAGE))


def kept_body(body: bytes) -> bytes:
    """Return what a dead letter keeps of a body: the beginning, if it is too large to be a job; else all."""
    return body if len(body) <= MAX_MESSAGE_BYTES else body[:LONGEST_BODY]


def first_bytes(text: str, limit: int) -> str:
    """Return the beginning of a text, of at most ``limit`` bytes and whole characters."""
    return text.encode(errors="replace")[:limit].decode(errors="ignore")


def last_bytes(text: str, limit: int) -> str:
    """Return the end of a text, of at most ``limit`` bytes and whole characters."""
    return text.encode(errors="replace")[-limit:].decode(errors="ignore")


def _first_items(items: Sequence[msgspec.Struct]) -> str:
    return _array(_fitting(items))


def _last_items(items: Sequence[msgspec.Struct]) -> str:
    return _array(_fitting(items[::-1])[::-1])


def _fitting(items: Sequence[msgspec.Struct]) -> list[bytes]:
    """Encode as many items, as JSON, as fit into an array of `LONGEST_LIST`."""
    fitting, used = [], 2
    for item in items:
        encoded = msgspec.json.encode(item)
        used += len(encoded) + 1
        if used > LONGEST_LIST:
            break
        fitting.append(encoded)
    return fitting


def _array(encoded: list[bytes]) -> str:
    return f"[{b','.join(encoded).decode()}]" if encoded else ""


def read_dead_letter(message: Message) -> DeadLetter:
    """Decode a message of the dead-letter queue, whoever put it there. Never fails."""
    headers = message.headers
    death = _first_death(headers)
    return DeadLetter(
        job_id=job_id_of(message.body),
        reason=_text(headers.get(REASON_HEADER)) or _text(death.get("reason")) or UNKNOWN,
        message=_text(headers.get(MESSAGE_HEADER)),
        faults=_list(headers.get(FAULTS_HEADER), Fault),
        history=_list(headers.get(HISTORY_HEADER), AttemptSummary),
        output=_text(headers.get(OUTPUT_HEADER)),
        dead_lettered_at=_dead_lettered_at(headers, death),
        from_queue=None if REASON_HEADER in headers else _text(death.get("queue")) or None,
        body=message.body,
    )


def _first_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the broker's own record of why it last dead-lettered the message."""
    deaths = headers.get("x-death")
    return deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _list(value: Any, kind: type[T]) -> list[T]:
    try:
        return msgspec.json.decode(_text(value), type=list[kind])  # type: ignore[valid-type]
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return []


def _dead_lettered_at(headers: Mapping[str, Any], death: Mapping[str, Any]) -> float | None:
    value = headers.get(DEAD_LETTERED_HEADER)
    if type(value) is int and 0 <= value < LATEST_TIME:
        return value / 1000
    time = death.get("time")
    return time.timestamp() if isinstance(time, datetime) else None


class _JobIdOnly(msgspec.Struct, rename="camel"):
    job_id: JobId


def job_id_of(body: bytes) -> str:
    """Return the id in a message that need not be a valid job; `NO_JOB` if there is none."""
    if len(body) > MAX_MESSAGE_BYTES:
        return NO_JOB
    try:
        return msgspec.json.decode(body, type=_JobIdOnly).job_id
    except UNREADABLE:
        return NO_JOB

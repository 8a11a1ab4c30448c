"""The commands dead list, show, requeue and drop."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from training_schemas.usage import AttemptSummary
from training_worker.cli.job_view import money
from training_worker.cli.terminal import printable
from training_worker.client.async_client import AsyncTrainingWorkerAPI
from training_worker.errors import DeadLetterError
from training_worker.queue.dead_letter import DeadLetter


def list_dead_letters(*, as_json: bool) -> None:
    """Print a line for each dead letter."""
    dead_letters = asyncio.run(AsyncTrainingWorkerAPI().dead_letters())
    if as_json:
        _print_json(dead_letters)
        return
    table = Table("job", "reason", "attempts", "dead-lettered", "message")
    for dead_letter in dead_letters:
        row = (
            dead_letter.job_id,
            dead_letter.reason,
            str(len(dead_letter.history)),
            _time(dead_letter.dead_lettered_at),
            dead_letter.message,
        )
        table.add_row(*(Text(printable(cell), overflow="ellipsis", no_wrap=True) for cell in row))
    Console().print(table)


def show_dead_letters(job_id: str, *, as_json: bool) -> None:
    """Print all about a job's dead letters. Raises `DeadLetterError` if it has none."""
    dead_letters = asyncio.run(AsyncTrainingWorkerAPI().dead_letters(job_id))
    if not dead_letters:
        raise DeadLetterError(f"the dead-letter queue has no dead letter of {job_id}")
    if as_json:
        _print_json(dead_letters)
        return
    print("\n\n".join(printable(_described(dead_letter)) for dead_letter in dead_letters))


def requeue_dead_letters(job_ids: Sequence[str]) -> None:
    """Put jobs back. Raises `DeadLetterError`."""
    for dead_letter in asyncio.run(AsyncTrainingWorkerAPI().requeue(*job_ids)):
        print(f"{dead_letter.job_id}: put back after {dead_letter.reason}")


def drop_dead_letters(job_ids: Sequence[str]) -> None:
    """Drop jobs' dead letters. Raises `DeadLetterError`."""
    for dead_letter in asyncio.run(AsyncTrainingWorkerAPI().drop(*job_ids)):
        print(
            printable(
                f"{dead_letter.job_id}: dropped {dead_letter.reason}: {dead_letter.message}\n{_body(dead_letter)}"
            )
        )


def _print_json(dead_letters: list[DeadLetter]) -> None:
    print(msgspec.json.encode([_as_json(dead_letter) for dead_letter in dead_letters]).decode())


def _as_json(dead_letter: DeadLetter) -> dict[str, Any]:
    """Return the dead letter with its body as JSON where it is JSON, and as text elsewhere."""
    try:
        body = msgspec.json.decode(dead_letter.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = dead_letter.body.decode(errors="replace")
    # The former name of "deadLetteredAt", for one release more.
    return {**msgspec.to_builtins(dead_letter), "body": body, "buriedAt": dead_letter.dead_lettered_at}


def _described(dead_letter: DeadLetter) -> str:
    lines = [
        f"{dead_letter.job_id}: {dead_letter.reason}: {dead_letter.message}",
        f"dead-lettered: {_time(dead_letter.dead_lettered_at)}",
    ]
    lines += [f"from: {dead_letter.from_queue}"] if dead_letter.from_queue else []
    lines += [f"  {fault.path or 'message'}: {fault.reason}" for fault in dead_letter.faults]
    lines += [_attempt(attempt) for attempt in dead_letter.history]
    lines += ["output:", *(f"  {line}" for line in dead_letter.output.splitlines())] if dead_letter.output else []
    return "\n".join([*lines, "job:", _body(dead_letter)])


def _attempt(attempt: AttemptSummary) -> str:
    why = f": {attempt.reason}: {attempt.message or ''}" if attempt.reason else ""
    return f"attempt {attempt.attempt} on {attempt.worker}: {attempt.outcome}  {money(attempt.usage)}{why}"


def _body(dead_letter: DeadLetter) -> str:
    try:
        return msgspec.json.format(dead_letter.body, indent=2).decode(errors="replace")
    except (msgspec.DecodeError, RecursionError):
        return dead_letter.body.decode(errors="replace")


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")

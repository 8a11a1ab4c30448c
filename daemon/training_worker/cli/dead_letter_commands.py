"""dead list, show, requeue and drop."""

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
from training_worker.errors import LetterError
from training_worker.queue.dead_letter import DeadLetter


def list_letters(*, as_json: bool) -> None:
    """Print a line for each dead letter."""
    letters = asyncio.run(AsyncTrainingWorkerAPI().dead_letters())
    if as_json:
        _print_json(letters)
        return
    table = Table("job", "reason", "attempts", "buried", "message")
    for letter in letters:
        row = (letter.job_id, letter.reason, str(len(letter.history)), _time(letter.buried_at), letter.message)
        table.add_row(*(Text(printable(cell), overflow="ellipsis", no_wrap=True) for cell in row))
    Console().print(table)


def show_letters(job_id: str, *, as_json: bool) -> None:
    """Print all about a job's dead letters. Raises `LetterError` if it has none."""
    letters = asyncio.run(AsyncTrainingWorkerAPI().dead_letters(job_id))
    if not letters:
        raise LetterError(f"the dead queue has no letter of {job_id}")
    if as_json:
        _print_json(letters)
        return
    print("\n\n".join(printable(_described(letter)) for letter in letters))


def requeue_letters(job_ids: Sequence[str]) -> None:
    """Put jobs back. Raises `LetterError`."""
    for letter in asyncio.run(AsyncTrainingWorkerAPI().requeue(*job_ids)):
        print(f"{letter.job_id}: put back after {letter.reason}")


def drop_letters(job_ids: Sequence[str]) -> None:
    """Drop jobs' letters. Raises `LetterError`."""
    for letter in asyncio.run(AsyncTrainingWorkerAPI().drop(*job_ids)):
        print(printable(f"{letter.job_id}: dropped {letter.reason}: {letter.message}\n{_body(letter)}"))


def _print_json(letters: list[DeadLetter]) -> None:
    print(msgspec.json.encode([_as_json(letter) for letter in letters]).decode())


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    """The letter with its body as JSON where it is JSON, and as text elsewhere."""
    try:
        body = msgspec.json.decode(letter.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = letter.body.decode(errors="replace")
    return {**msgspec.to_builtins(letter), "body": body}


def _described(letter: DeadLetter) -> str:
    lines = [f"{letter.job_id}: {letter.reason}: {letter.message}", f"buried: {_time(letter.buried_at)}"]
    lines += [f"from: {letter.from_queue}"] if letter.from_queue else []
    lines += [f"  {fault.path or 'message'}: {fault.reason}" for fault in letter.faults]
    lines += [_attempt(attempt) for attempt in letter.history]
    lines += ["output:", *(f"  {line}" for line in letter.output.splitlines())] if letter.output else []
    return "\n".join([*lines, "job:", _body(letter)])


def _attempt(attempt: AttemptSummary) -> str:
    why = f": {attempt.reason}: {attempt.message or ''}" if attempt.reason else ""
    return f"attempt {attempt.attempt} on {attempt.worker}: {attempt.outcome}  {money(attempt.usage)}{why}"


def _body(letter: DeadLetter) -> str:
    try:
        return msgspec.json.format(letter.body, indent=2).decode(errors="replace")
    except (msgspec.DecodeError, RecursionError):
        return letter.body.decode(errors="replace")


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")

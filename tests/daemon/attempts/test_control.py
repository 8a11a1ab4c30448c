"""The control requests for a job, and which of them outlive the daemon that received them."""

from pathlib import Path

import msgspec
import pytest
from tests.support.runs import make_folder

from training_schemas.commands import CancelJob, CheckpointJob, SampleJob
from training_worker.attempts.control import ControlRequests
from training_worker.runs.run_directory import STOP_FILE, RunDirectory, StopOrder


@pytest.fixture
def folder(tmp_path: Path) -> RunDirectory:
    """The folder of a run."""
    return make_folder(tmp_path)


def order(folder: RunDirectory) -> StopOrder | None:
    """What the next daemon will find."""
    return folder.read(STOP_FILE, StopOrder)


def requests(folder: RunDirectory) -> list[str]:
    """The control requests that the trainer received."""
    path = folder.path / "requests.jsonl"
    return [msgspec.json.decode(line)["request"] for line in path.read_bytes().splitlines()] if path.exists() else []


def test_nothing_is_requested_at_first(folder: RunDirectory) -> None:
    """Nor written down."""
    control = ControlRequests()
    control.attach(folder)

    assert (control.stop.is_set(), control.abort.is_set(), control.detach.is_set()) == (False, False, False)
    assert (control.cancelled, order(folder), requests(folder)) == (False, None, [])


def test_requests_wait_for_a_trainer_and_then_do_not(folder: RunDirectory) -> None:
    """Each is made once, in the order in which they came."""
    control = ControlRequests()
    control.receive(msgspec.json.encode(CheckpointJob()))
    control.attach(folder)
    assert requests(folder) == ["checkpoint"]

    control.receive(msgspec.json.encode(SampleJob()))
    assert requests(folder) == ["checkpoint", "sample"]


def test_a_request_between_two_attempts_is_for_the_next_one(folder: RunDirectory, tmp_path: Path) -> None:
    """The first trainer is gone."""
    control = ControlRequests()
    control.attach(folder)
    control.detached()
    control.receive(msgspec.json.encode(SampleJob()))
    later = make_folder(tmp_path / "later")
    control.attach(later)

    assert (requests(folder), requests(later)) == ([], ["sample"])


def test_a_cancellation_stops_the_trainer_and_is_written_down(folder: RunDirectory) -> None:
    """Should this daemon die now, the next one still knows why the trainer ended."""
    control = ControlRequests()
    control.attach(folder)
    control.receive(msgspec.json.encode(CancelJob()))

    assert (control.stop.is_set(), control.cancelled) == (True, True)
    assert order(folder) == StopOrder(why="cancelled", cancelled=True)


def test_a_request_before_there_was_a_trainer_is_written_down_with_it(folder: RunDirectory) -> None:
    """Both kinds of it."""
    control = ControlRequests()
    control.end("SIGTERM")
    control.attach(folder)

    assert order(folder) == StopOrder(why="SIGTERM", cancelled=False)


@pytest.mark.parametrize("cancelled", [True, False])
def test_what_an_earlier_daemon_ordered_still_holds(folder: RunDirectory, *, cancelled: bool) -> None:
    """For the reason that it gave."""
    before = ControlRequests()
    before.attach(folder)
    if cancelled:
        before.cancel()
    else:
        before.end("SIGTERM")
    after = ControlRequests()
    after.attach(folder)

    assert (after.stop.is_set(), after.cancelled, after.why) == (True, cancelled, before.why)


def test_a_cancellation_that_came_while_nobody_listened_is_added_to_an_earlier_order(folder: RunDirectory) -> None:
    """A release does not undo it."""
    folder.write(STOP_FILE, StopOrder(why="SIGTERM", cancelled=False))
    control = ControlRequests()
    control.cancel()
    control.attach(folder)

    assert (control.stop.is_set(), control.cancelled) == (True, True)


def test_the_first_reason_to_stop_is_the_one_that_is_reported() -> None:
    """But for a cancellation, which is more than a stop."""
    control = ControlRequests()
    control.end("SIGTERM")
    control.end("superseded")
    assert control.why == "SIGTERM"

    control.cancel()
    assert (control.why, control.cancelled) == ("cancelled", True)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"command": "explode"}', b'{"command": 7}'])
def test_a_command_that_nobody_understands_does_nothing(folder: RunDirectory, body: bytes) -> None:
    """Anybody may send one."""
    control = ControlRequests()
    control.attach(folder)
    control.receive(body)

    assert (control.stop.is_set(), requests(folder)) == (False, [])


def test_a_request_for_one_job_does_not_reach_the_next() -> None:
    """A cancellation is one job's."""
    control = ControlRequests()
    control.cancel()
    control.receive(msgspec.json.encode(SampleJob()))
    following = control.for_next_job()

    assert (following.stop.is_set(), following.cancelled) == (False, False)


def test_a_request_to_the_slot_holds_for_every_later_job() -> None:
    """A job that was consumed in that instant is requeued as well."""
    control = ControlRequests()
    control.release("SIGTERM")
    following = control.for_next_job().for_next_job()

    assert (following.stop.is_set(), following.why, following.cancelled) == (True, "SIGTERM", False)


def test_an_abort_and_a_detachment_reach_the_job_that_comes_next() -> None:
    """Also when they are requested later, of what is by then an earlier job."""
    control = ControlRequests()
    following = control.for_next_job()
    control.abort.set()
    control.detach.set()

    assert (following.abort.is_set(), following.detach.is_set()) == (True, True)

"""Whether a job has room on the host's disks, beside the jobs that are there."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.daemon.attempts.test_run_spec import GPU, STAND_IN, Host
from tests.support import runs

from training_presets.disk import DiskNeed
from training_schemas.progress import FailureReason
from training_worker.attempts.disk_needs import keep_reserved, reserve_as_planned
from training_worker.errors import AttemptError
from training_worker.settings import Settings
from training_worker.storage.reservations import Reservation, Reservations

MIB = 2**20


def need(output: int, state: int = 0) -> DiskNeed:
    return DiskNeed(result=output, checkpoints=0, samples=0, state=state)


class Disk:
    """A small disk with outputs and state."""

    def __init__(self, folder: Path) -> None:
        self.outputs, self.state = folder / "models", folder / "state"
        self.reservations = Reservations(Settings(state_dir=self.state, output_roots=[self.outputs]))

    def take(self, reservation: Reservation, mib: int, state_mib: int = 0) -> str | None:
        """What a job lacks."""
        name = reservation.job_id
        run, attempt = self.state / "runs" / f"{name}.1", self.outputs / f".{name}.{name}.1"
        shortage = reservation.take(need(mib * MIB, state_mib * MIB), self.outputs / name, run, attempt)
        return None if shortage is None else shortage.text

    def passes(self, reservation: Reservation, mib: int) -> bool | None:
        """Whether what a job lacks may be there once the others have ended; None if it lacks nothing."""
        shortage = reservation.take(need(mib * MIB), self.outputs / reservation.job_id)
        return None if shortage is None else shortage.passes

    def write(self, job_id: str, mib: int, name: str = "checkpoint") -> Path:
        """Something that a job has written."""
        path = self.outputs / f".{job_id}.{job_id}.1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(mib * MIB))
        return path


@pytest.fixture
def disk(small_disk: Callable[[Path, int], Path], tmp_path: Path) -> Disk:
    """Of 64 MiB."""
    return Disk(small_disk(tmp_path / "disk", 64 * MIB))


def test_what_does_not_fit_is_reported_with_figures(small_disk: Callable[[Path, int], Path], tmp_path: Path) -> None:
    """On real file systems: a byte more than is free does not fit, and the output need not be there yet."""
    outputs = small_disk(tmp_path / "outputs", 64 * MIB)
    state = small_disk(tmp_path / "state", 16 * MIB)
    output = outputs / "team" / "portrait"
    job = Reservations(Settings(state_dir=state, output_roots=[outputs])).make("a")

    assert job.take(need(64 * MIB, 16 * MIB), output) is None
    more = job.take(need(64 * MIB + 1, 16 * MIB), output)
    both = job.take(need(2**30, 2**31), output)

    assert more is not None
    assert both is not None
    assert both.text == (
        f"1.0 GiB are needed at {output}, and 0.1 are free; 2.0 GiB are needed at {state}, and 0.0 are free"
    )


def test_one_disk_must_hold_both(disk: Disk) -> None:
    """Where state and outputs share a file system, each alone may fit and both may not."""
    job = disk.reservations.make("a")

    assert disk.take(job, 40, 40) is not None
    assert disk.take(job, 32, 32) is None


def test_what_one_job_will_write_is_not_free_for_the_next(disk: Disk) -> None:
    """Until it is out of hand, however that came about."""
    with disk.reservations.make("a") as first, disk.reservations.make("b") as second:
        assert disk.take(first, 40) is None
        lacking = disk.take(second, 40)
        assert lacking is not None
        assert lacking.endswith("and 0.1 are free, of which running jobs will fill 0.0")
        assert disk.take(second, 24) is None
        assert disk.take(first, 41) is not None

    def fail() -> None:
        with disk.reservations.make("c") as third:
            assert disk.take(third, 64) is None
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        fail()
    assert disk.reservations.job_ids() == set()
    assert disk.take(disk.reservations.make("d"), 64) is None


def test_what_a_job_has_written_is_not_counted_twice(disk: Disk) -> None:
    """It is not free any more; what the job has yet to write is its need without that, and never less than nothing."""
    first, second = disk.reservations.make("a"), disk.reservations.make("b")
    assert disk.take(first, 40) is None
    disk.write("a", 30)

    assert disk.take(second, 25) is not None
    assert disk.take(second, 24) is None

    disk.write("a", 15, "more")
    assert disk.take(second, 20) is not None
    assert disk.take(second, 19) is None


def test_a_checkpoint_that_is_dropped_is_room_for_the_next_one(disk: Disk) -> None:
    """Of the same job, and of no other."""
    first, second = disk.reservations.make("a"), disk.reservations.make("b")
    assert disk.take(first, 40) is None
    disk.write("a", 40).unlink()

    assert disk.take(second, 25) is not None


def test_what_a_job_lacks_passes_if_others_have_it(disk: Disk) -> None:
    """What they have written goes with them, as far as is known; what strangers have written does not."""
    first, second = disk.reservations.make("a"), disk.reservations.make("b")
    assert disk.take(first, 40) is None
    disk.write("a", 30)

    assert [disk.passes(second, mib) for mib in (24, 25, 64, 65)] == [None, True, True, False]

    (disk.outputs / "stranger").write_bytes(bytes(10 * MIB))
    assert [disk.passes(second, mib) for mib in (14, 54, 55)] == [None, True, False]
    disk.reservations.drop(first)
    assert disk.passes(second, 25) is False


def test_a_job_reserves_again_what_it_had(disk: Disk) -> None:
    """Its next attempt here has other settings; one that does not fit has nothing any more."""
    first, second = disk.reservations.make("a"), disk.reservations.make("b")

    assert disk.take(first, 40) is None
    assert disk.take(first, 60) is None
    assert disk.take(first, 65) is not None
    assert disk.take(second, 64) is None


def test_a_second_copy_of_a_job_needs_no_room_beside_it(disk: Disk) -> None:
    """It finds the job claimed, and is handed to the owner."""
    first, copy, other = (disk.reservations.make(name) for name in "aab")

    assert disk.take(first, 40) is None
    assert disk.take(copy, 40) is None
    disk.reservations.drop(copy)
    assert disk.take(other, 40) is not None


def test_jobs_that_come_at_once_are_not_given_the_same_room(disk: Disk) -> None:
    """From threads of their own, at the same moment."""
    jobs = [disk.reservations.make(f"job-{number}") for number in range(8)]
    together, given = threading.Barrier(8), []

    def take(job: Reservation) -> None:
        together.wait()
        if disk.take(job, 20) is None:
            given.append(job)

    threads = [threading.Thread(target=take, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(given) == 3


def test_caches_make_room_for_a_job(disk: Disk) -> None:
    """Before it is refused."""
    entry = disk.state / "caches" / "entries" / "aa" / "aa1"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(bytes(10 * MIB))
    job = disk.reservations.make("a")

    assert disk.take(job, 65) is not None
    assert entry.exists()
    assert disk.take(job, 60) is None
    assert not entry.exists()


def test_a_job_without_room_is_left_to_others(small_disk: Callable[[Path, int], Path], tmp_path: Path) -> None:
    """As hostUnfit, with the figures; a simulated GPU trains tiny models, and is not checked."""
    host = Host(tmp_path)
    small_disk(host.outputs, 64 * MIB)

    with pytest.raises(
        AttemptError, match=r"no room on the disk: .* GiB are needed at .*portrait, and 0\.1 are free"
    ) as caught:
        host.spec(device=GPU)

    assert caught.value.reason is FailureReason.HOST_UNFIT
    assert host.spec(device=STAND_IN).device == "cpu"


def test_before_a_claim_room_is_reserved_as_planned(small_disk: Callable[[Path, int], Path], tmp_path: Path) -> None:
    """A job that names paths of others is claimed, and refused with its faults: nothing of theirs is looked at."""
    host = Host(tmp_path)
    small_disk(host.outputs, 1000 * MIB)
    first, second, third = (host.reservations.make(name) for name in "abc")

    assert reserve_as_planned(host.queued(), first, host.settings) is None
    shortage = reserve_as_planned(host.queued(), second, host.settings)
    stranger = reserve_as_planned(host.queued(output_path=str(tmp_path / "portrait")), third, host.settings)

    assert shortage is not None
    assert shortage.passes
    assert stranger is None
    assert third.portions == []


def test_a_run_that_is_found_keeps_its_room(small_disk: Callable[[Path, int], Path], tmp_path: Path) -> None:
    """Whether it has it or not: it runs."""
    disk = Disk(small_disk(tmp_path / "disk", 64 * MIB))
    run = runs.make_run(disk.state)
    found, other = disk.reservations.make("portrait"), disk.reservations.make("b")

    keep_reserved(run, found)

    assert sum(portion.left for portion in found.portions) > 64 * MIB
    assert disk.take(other, 1) is not None

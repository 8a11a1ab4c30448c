"""A trainer is seen to its end, stopped where it must be, and judged: real children, and records of every kind."""

import asyncio
import os
import time
from pathlib import Path

import msgspec
import pytest
from tests.support import runs
from tests.support.owning import TIMEOUT, RecordingLink, a_reporter, own

from training_schemas.progress import AnyRecord, FailureReason, Phase
from training_worker.attempts import supervisor
from training_worker.attempts.control import ControlRequests
from training_worker.attempts.outcome import Broken, Detached, Done, Outcome, Stopped
from training_worker.attempts.progress import ProgressReader
from training_worker.attempts.supervisor import Limits, Supervisor
from training_worker.attempts.usage import UsageMeter
from training_worker.runs import run_directory
from training_worker.runs.child_process import ChildProcess
from training_worker.runs.file_tail import follow_lines
from training_worker.runs.run import Run
from training_worker.runs.run_directory import STOP_FILE, StopOrder

# For trainers that must not be stopped before their end.
LONG = 10 * TIMEOUT
SHORT = 0.1
OBEDIENT = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done"
DEAF = "trap '' TERM; echo ready; while :; do sleep 0.01; done"
LIMITS = Limits(stop_grace=LONG, stall_preparing=LONG, stall_training=LONG, budget_usd=None)


class Watch:
    """One daemon that sees to a run."""

    def __init__(self, run: Run, limits: Limits = LIMITS, started: float | None = None) -> None:
        self.run = run
        self.control = ControlRequests()
        self.control.attach(run.folder)
        connection = RecordingLink()
        self.meter = UsageMeter(3.6, started=time.time() if started is None else started, clock=time.time)
        self.progress = ProgressReader(
            run.folder, self.meter, a_reporter(connection, run.folder), own(connection), runs.unmeasured(), saved_step=5
        )
        self.supervisor = Supervisor(run.folder, self.meter, self.progress, self.control, limits)

    def start(self, script: str) -> ChildProcess:
        """Start a trainer that is a shell's script."""
        return self.run.start(["/bin/sh", "-c", script], {"PATH": "/usr/bin:/bin"})

    async def see(self, script: str, *records: AnyRecord) -> Outcome | Detached:
        """See a trainer to its end that has recorded this already."""
        runs.append(self.run.folder, *records)
        return await asyncio.wait_for(self.supervisor.follow(self.start(script)), TIMEOUT)

    async def see_stopped(self, why: str, script: str, *records: AnyRecord) -> Outcome | Detached:
        """The same, of a trainer that is told to stop as soon as it says that it is ready."""
        runs.append(self.run.folder, *records)
        child = self.start(script)
        following = asyncio.create_task(self.supervisor.follow(child))
        await self.until_ready(child)
        self.control.end(why)
        return await asyncio.wait_for(following, TIMEOUT)

    async def until_ready(self, child: ChildProcess) -> None:
        """Wait until the trainer has printed a line."""
        async with asyncio.timeout(TIMEOUT):
            await anext(follow_lines(self.run.folder.stdout, child.ended))

    async def see_broken(self, script: str, *records: AnyRecord) -> Broken:
        """The same, of a trainer that fails."""
        outcome = await self.see(script, *records)
        assert isinstance(outcome, Broken)
        return outcome

    async def look_back(self, *records: AnyRecord, last_sign: float = 0.0, rebooted: bool = False) -> Outcome:
        """Judge a trainer that nobody saw end."""
        runs.append(self.run.folder, *records)
        return await asyncio.wait_for(self.supervisor.look_back(last_sign, rebooted=rebooted), TIMEOUT)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose trainer has not started."""
    return runs.make_run(tmp_path)


async def test_a_trainer_that_says_done_and_ends_well_is_done(run: Run) -> None:
    """With its result, and what it has used."""
    result = runs.done()

    outcome = await Watch(run, started=time.time() - 100).see("exit 0", runs.step(1), result)

    assert isinstance(outcome, Done)
    assert outcome.record == result
    assert 100 <= outcome.usage.gpu_seconds < 100 + TIMEOUT
    assert outcome.usage.wasted_gpu_seconds == 0.0


async def test_a_last_record_that_comes_with_the_end_counts(run: Run) -> None:
    """It is read before the trainer is judged."""
    line = msgspec.json.encode(runs.done()).decode()

    assert isinstance(await Watch(run).see(f"echo '{line}' >> \"$0/progress.jsonl\""), Done)


async def test_a_trainer_that_ends_without_a_word_has_crashed(run: Run) -> None:
    """Told are the phase, how it ended, and its last lines of output; what no checkpoint holds is wasted."""
    started = time.time() - 100
    records: list[AnyRecord] = [runs.phase(), runs.checkpoint(1, at=started + 60), runs.step(2)]

    broken = await Watch(run, started=started).see_broken("echo oops >&2; exit 9", *records)

    assert (broken.reason, broken.output_tail) == (FailureReason.TRAINER_CRASHED, ["oops"])
    assert broken.message == "trainer ended without reporting a result in phase training: exit status 9"
    assert broken.usage.wasted_gpu_seconds == pytest.approx(broken.usage.gpu_seconds - 60)


@pytest.mark.parametrize("end", ["exit 1", "kill -KILL $$"])
async def test_done_is_not_believed_if_the_trainer_ends_badly(run: Run, end: str) -> None:
    """It may have died while it still wrote."""
    assert (await Watch(run).see_broken(end, runs.done())).reason == FailureReason.TRAINER_CRASHED


async def test_a_trainer_that_knows_why_it_failed_is_quoted(run: Run) -> None:
    """Its reason, its message and each fault."""
    record = runs.failed(FailureReason.DATASET_INVALID)

    broken = await Watch(run).see_broken("exit 1", record)

    assert (broken.reason, broken.message, broken.faults) == (record.reason, record.message, record.faults)


async def test_a_trainer_that_prepares_for_too_long_has_stalled(run: Run) -> None:
    """It is stopped; the phase and the bound are told."""
    limits = msgspec.structs.replace(LIMITS, stall_preparing=SHORT)

    broken = await Watch(run, limits).see_broken(OBEDIENT, runs.phase(Phase.CACHING_TEXT))

    assert broken.reason == FailureReason.STALLED
    assert broken.message == "stopped: nothing new for 0 s in phase cachingText"


async def test_a_trainer_that_stalls_in_training_does_not_have_the_time_that_preparing_has(run: Run) -> None:
    """The bound is that of the phase, from the moment at which the phase begins."""
    watch = Watch(run, msgspec.structs.replace(LIMITS, stall_training=SHORT))
    child = watch.start(OBEDIENT)
    following = asyncio.create_task(watch.supervisor.follow(child))
    await watch.until_ready(child)

    runs.append(run.folder, runs.phase(), runs.step(1))

    outcome = await asyncio.wait_for(following, TIMEOUT)
    assert isinstance(outcome, Broken)
    assert outcome.reason == FailureReason.STALLED


async def test_a_step_that_takes_about_as_long_as_others_is_no_stall(run: Run) -> None:
    """A large card at full resolution may need minutes for each."""
    limits = msgspec.structs.replace(LIMITS, stall_training=SHORT)
    steps = [runs.step(1, at=0.0), runs.step(2, at=LONG)]

    assert isinstance(await Watch(run, limits).see("sleep 0.4", runs.phase(), *steps, runs.done()), Done)


async def test_a_job_is_stopped_when_it_has_cost_its_limit(run: Run) -> None:
    """Which is told."""
    limits = msgspec.structs.replace(LIMITS, budget_usd=0.0002)

    broken = await Watch(run, limits).see_broken(OBEDIENT, runs.step(1))

    assert broken.reason == FailureReason.BUDGET_EXHAUSTED
    assert "limit of 0.0002 USD" in broken.message
    assert broken.usage.cost_usd is not None
    assert broken.usage.cost_usd >= 0.0002


async def test_a_loss_that_is_not_finite_ends_the_run(run: Run) -> None:
    """Nothing that comes after it is worth its price."""
    broken = await Watch(run).see_broken(OBEDIENT, runs.step(1), runs.step(2, loss=None))

    assert broken.reason == FailureReason.LOSS_NOT_FINITE


async def test_what_the_trainer_says_of_its_failure_counts_more_than_the_alarm(run: Run) -> None:
    """It was nearer."""
    watch = Watch(run)
    watch.progress.raise_alarm(FailureReason.STALLED, "stopped")

    broken = await watch.see_broken("exit 1", runs.failed(FailureReason.DISK_FULL))

    assert broken.reason == FailureReason.DISK_FULL


async def test_a_trainer_that_is_told_to_stop_has_stopped(run: Run) -> None:
    """Whether it says so or not; a later attempt goes on from its last checkpoint."""
    records: list[AnyRecord] = [runs.step(8), runs.checkpoint(8), runs.step(9)]
    outcome = await Watch(run).see_stopped("SIGTERM", OBEDIENT, *records)

    assert isinstance(outcome, Stopped)
    assert outcome.step == 8


async def test_a_trainer_that_resumed_and_saved_nothing_new_stops_where_it_began(run: Run) -> None:
    """Its own attempt is lost, what came before is not."""
    outcome = await Watch(run).see_stopped("SIGTERM", OBEDIENT, runs.step(6))

    assert isinstance(outcome, Stopped)
    assert outcome.step == 5


async def test_a_trainer_that_stopped_by_itself_has_stopped(run: Run) -> None:
    """It found itself an orphan."""
    assert isinstance(await Watch(run).see("exit 3", runs.stopped(5)), Stopped)


async def test_a_trainer_that_was_done_before_it_could_stop_is_done(run: Run) -> None:
    """The result is there."""
    script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done"

    assert isinstance(await Watch(run).see_stopped("SIGTERM", script, runs.done()), Done)


async def test_an_abort_does_not_wait_for_the_grace(run: Run) -> None:
    """The trainer is asked, and killed."""
    watch = Watch(run)
    watch.control.abort.set()

    assert isinstance(await watch.see_stopped("aborted", DEAF), Stopped)


async def test_a_trainer_that_is_left_runs_on_and_is_found(run: Run) -> None:
    """By the daemon that takes this one's place, which sees it to the same end."""
    watch = Watch(run)
    child = watch.start(OBEDIENT)
    following = asyncio.create_task(watch.supervisor.follow(child))
    watch.control.detach.set()
    assert await asyncio.wait_for(following, TIMEOUT) == Detached()

    identity = run.identity
    while identity is None:
        await asyncio.sleep(0.01)
        identity = run.identity
    assert not child.ended.is_set()
    os.kill(child.pid, 0)
    later, again = Watch(run), ChildProcess.find(identity)
    assert again is not None
    later.control.end("SIGTERM")
    assert isinstance(await asyncio.wait_for(later.supervisor.follow(again), TIMEOUT), Stopped)
    child._reap()  # for the sake of `subprocess`, which has not seen the end


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([], "trainerCrashed"),
        ([runs.phase(), runs.step(1)], "trainerCrashed"),
        ([runs.step(1), runs.checkpoint(1)], "trainerCrashed"),
        ([runs.sample(1)], "trainerCrashed"),
        ([runs.warning()], "trainerCrashed"),
        ([runs.step(1, loss=None)], "lossNotFinite"),
        ([runs.failed(FailureReason.OUT_OF_MEMORY)], "outOfMemory"),
    ],
)
async def test_a_trainer_that_failed_unseen_is_judged_by_its_last_record(
    run: Run, records: list[AnyRecord], reason: str
) -> None:
    """Its exit status is not known."""
    outcome = await Watch(run).look_back(*records)

    assert isinstance(outcome, Broken)
    assert outcome.reason == reason


async def test_a_trainer_that_crashed_unseen_says_so(run: Run) -> None:
    """No status is made up."""
    outcome = await Watch(run).look_back(runs.phase())

    assert isinstance(outcome, Broken)
    assert outcome.message == "trainer ended without reporting a result in phase training: exit status unknown"


async def test_a_trainer_that_was_done_unseen_is_done(run: Run) -> None:
    """It has cost what it had cost at its last sign of life, not what the daemon's absence would add."""
    outcome = await Watch(run, started=1000.0).look_back(runs.done(), last_sign=1090.0)

    assert isinstance(outcome, Done)
    assert outcome.usage.gpu_seconds == 90.0


@pytest.mark.parametrize("last", [runs.stopped(7), runs.checkpoint(7)])
async def test_a_trainer_that_was_told_to_stop_by_an_earlier_daemon_has_stopped(run: Run, last: AnyRecord) -> None:
    """The order was written down: its end is no crash."""
    run.folder.write(STOP_FILE, StopOrder(why="SIGTERM", cancelled=False))

    outcome = await Watch(run).look_back(runs.checkpoint(7), last)

    assert isinstance(outcome, Stopped)
    assert outcome.step == 7


async def test_a_trainer_that_its_host_took_down_is_no_crash(run: Run) -> None:
    """Its end was no fault of its own, and does not count against the job."""
    outcome = await Watch(run).look_back(runs.phase(), rebooted=True)

    assert isinstance(outcome, Broken)
    assert outcome.reason is FailureReason.WORKER_LOST


async def test_a_trainer_that_writes_without_end_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its output is cut while it runs, and its last words are told all the same."""
    monkeypatch.setattr(supervisor, "OUTPUT_CHECKS", 0.02)
    monkeypatch.setattr(run_directory, "LARGEST_OUTPUT", 10_000)
    monkeypatch.setattr(run_directory, "KEPT_OUTPUT", 5_000)
    watch = Watch(runs.make_run(tmp_path))
    lines = "n=$((n + 1)); echo line $n >&2; [ $((n % 300)) != 0 ] || sleep 0.1"
    endless = f"n=0; while [ $n -lt 3000 ]; do {lines}; done; exit 9"

    outcome = await watch.see(endless)

    assert isinstance(outcome, Broken)
    assert outcome.output_tail[-1] == "line 3000"
    sizes = [path.stat().st_size for path in watch.run.folder.path.glob("stderr.log*")]
    assert len(sizes) == 2
    assert sum(sizes) < 20_000

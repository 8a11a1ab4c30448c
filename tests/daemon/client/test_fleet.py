"""What is known of a fleet from what its workers have published."""

import pytest

from training_schemas.events import (
    CardState,
    Event,
    Gpu,
    JobCheckpoint,
    Taking,
    WorkerDraining,
    WorkerHeartbeat,
    WorkerOffline,
    WorkerOnline,
    WorkerQuarantined,
)
from training_worker.client.fleet import MOST_MISSED, WorkerCondition, Workers, WorkerState

GPU = Gpu(uuid="GPU-1", name="RTX 4090", memory_mib=24564, tier=None)
GPU_STATE = CardState(gpu="GPU-1", name="RTX 4090", memory_mib=24564)
BUSY = CardState(gpu="GPU-1", name="RTX 4090", memory_mib=24564, job="portrait", temperature_c=71)

ONLINE = WorkerOnline(worker="w1", simulated=False, version="1", gpus=[GPU], families=[], host="h")
HEARTBEAT = WorkerHeartbeat(worker="w1", simulated=False, version="1", interval_seconds=10, cards=[BUSY], host="h")
PAUSED = WorkerHeartbeat(worker="w1", simulated=False, version="1", interval_seconds=10, cards=[], taking=Taking.PAUSED)
DRAINING = WorkerDraining(worker="w1", simulated=False, why="SIGINT")
OFFLINE = WorkerOffline(worker="w1", simulated=False, why="SIGINT")
SICK = WorkerQuarantined(worker="w1", simulated=False, gpu="GPU-1", reason="too hot")
WELL = WorkerQuarantined(worker="w1", simulated=False, gpu="GPU-1", reason="too hot", recovered=True)
OF_A_JOB = JobCheckpoint(worker="w1", simulated=False, job_id="j", attempt=1, sequence=1, step=1, path="/x")


def state_after(*events: Event, now: float | None = None) -> WorkerState:
    """The only worker, when these were published in turn, a second each from 1 on."""
    workers = Workers()
    for second, event in enumerate(events, start=1):
        workers.apply(event, float(second))
    (state,) = workers.states(float(len(events)) if now is None else now)
    return state


@pytest.mark.parametrize(
    ("events", "condition", "why"),
    [
        ([ONLINE], "open", None),
        ([ONLINE, PAUSED], "paused", None),
        ([ONLINE, PAUSED, HEARTBEAT], "open", None),
        ([ONLINE, DRAINING], "draining", "SIGINT"),
        # Its last heartbeat may have been on its way.
        ([ONLINE, DRAINING, HEARTBEAT], "draining", "SIGINT"),
        ([ONLINE, DRAINING, OFFLINE], "offline", "SIGINT"),
        ([OFFLINE, ONLINE], "open", None),
    ],
)
def test_a_worker_is_as_it_reported_last(events: list[Event], condition: str, why: str | None) -> None:
    """With the reason, where it gave one."""
    state = state_after(*events)

    assert (state.condition, state.why, state.last_seen_at) == (condition, why, len(events))


def test_a_heartbeat_alone_reports_all() -> None:
    """Whoever begins to listen has missed its first event."""
    state = state_after(HEARTBEAT)

    assert (state.worker, state.host, state.version, state.cards) == ("w1", "h", "1", [BUSY])


def test_before_the_first_heartbeat_the_gpus_are_those_it_came_online_with() -> None:
    """Of what they do nothing is known yet."""
    assert state_after(ONLINE).cards == [GPU_STATE]


def test_a_gpu_is_sick_until_it_is_reported_to_be_well() -> None:
    """At once, and not only with the next heartbeat."""
    assert state_after(HEARTBEAT, SICK).cards[0].quarantined == "too hot"
    assert state_after(HEARTBEAT, SICK, WELL).cards == [BUSY]


def test_a_worker_that_leaves_out_its_heartbeats_is_silent() -> None:
    """By the interval that it named itself; one that published its end is not missed."""
    last = 1 + MOST_MISSED * HEARTBEAT.interval_seconds

    assert state_after(HEARTBEAT, now=last).condition is WorkerCondition.OPEN
    assert state_after(HEARTBEAT, now=last + 1).condition is WorkerCondition.SILENT
    assert state_after(OFFLINE, now=last + 1000).condition is WorkerCondition.OFFLINE


def test_events_of_jobs_make_no_worker() -> None:
    """Intakes publish events of jobs, too."""
    workers = Workers()
    workers.apply(OF_A_JOB, 1.0)

    assert workers.states(1.0) == []


def test_workers_are_in_the_order_of_their_names() -> None:
    """Whoever published first."""
    workers = Workers()
    for name in ("w2", "w1"):
        workers.apply(WorkerOnline(worker=name, simulated=True, version="1", gpus=[], families=[]), 1.0)

    assert [(state.worker, state.simulated) for state in workers.states(1.0)] == [("w1", True), ("w2", True)]

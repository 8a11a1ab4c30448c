"""Whether the daemon lives, and whether it is ready."""

from training_schemas.events import Taking
from training_worker.instrumentation.health import LONGEST_SILENCE, Liveness
from training_worker.observations import AdmissionChanged, BrokerChanged, LoopTurned, Observation

CONNECTED = BrokerChanged(connected=True)
LOST = BrokerChanged(connected=False)


def health(*records: Observation, later: float = 0.0) -> Liveness:
    """After these records, and so many seconds."""
    now = [100.0]
    health = Liveness(clock=lambda: now[0])
    for record in records:
        health.observe(record)
    now[0] += later
    return health


def test_a_daemon_that_starts_lives_and_is_not_ready() -> None:
    """It may be slow."""
    assert health(later=3600).why_dead() == []
    assert health().why_not_ready() == ["starting", "not connected to the broker"]


def test_a_connected_daemon_is_ready() -> None:
    """Nothing is wrong."""
    assert health(LoopTurned(), CONNECTED, later=LONGEST_SILENCE).why_not_ready() == []


def test_a_loop_that_hangs_is_dead() -> None:
    """The broker may not have noticed yet."""
    silent = health(LoopTurned(), CONNECTED, later=LONGEST_SILENCE + 1)

    assert silent.why_dead() == silent.why_not_ready() == ["the event loop has not turned for 16 s"]


def test_a_daemon_without_its_broker_lives_and_is_not_ready() -> None:
    """A restart would not help."""
    cut = health(LoopTurned(), CONNECTED, LOST)

    assert cut.why_dead() == []
    assert cut.why_not_ready() == ["not connected to the broker"]
    assert health(LoopTurned(), CONNECTED, LOST, CONNECTED).why_not_ready() == []


def test_a_paused_daemon_is_ready_and_a_draining_one_is_not() -> None:
    """A pause is an order and no fault; a drain has an end."""
    paused, draining = (AdmissionChanged(taking=taking) for taking in (Taking.PAUSED, Taking.DRAINING))

    assert health(LoopTurned(), CONNECTED, paused).why_not_ready() == []
    assert health(LoopTurned(), CONNECTED, draining).why_not_ready() == ["draining"]

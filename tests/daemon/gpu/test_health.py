"""The rules of health: from a GPU's readings to whether it is given jobs."""

from typing import Any

import pytest

from training_worker.gpu.health import MOST_CROWDED, GpuHealth
from training_worker.gpu.xid import CRITICAL_XIDS
from training_worker.observations import Reading

HOTTEST = 92.0


def reading(**fields: Any) -> Reading:
    """What the driver reports of a GPU, healthy unless given otherwise."""
    return Reading(uuid="GPU-1", **({"temperature_c": 60, "ecc_uncorrected": 0} | fields))


@pytest.fixture
def health() -> GpuHealth:
    """Of a GPU that comes back after two good readings."""
    health = GpuHealth(HOTTEST, probes=2)
    health.update(reading())
    return health


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"lost": True}, "lost: the driver does not show it any more"),
        ({"fault": "Unknown Error"}, "the driver cannot read it: Unknown Error"),
        ({"ecc_uncorrected": 2}, "uncorrected memory errors (ECC): 2"),
        ({"temperature_c": 93}, "too hot: 93 C, over 92 C"),
    ],
)
def test_a_sick_reading_quarantines_at_once(health: GpuHealth, fields: dict[str, Any], reason: str) -> None:
    """With a reason as text."""
    assert health.update(reading(**fields))
    assert health.quarantined == reason


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature_c": 92},
        {"temperature_c": None, "ecc_uncorrected": None},
        {"throttled": ["power cap"], "utilisation": 100},
    ],
)
def test_a_gpu_without_a_complaint_is_healthy(health: GpuHealth, fields: dict[str, Any]) -> None:
    """What a GPU does not report is no complaint."""
    assert not health.update(reading(**fields))
    assert health.quarantined is None


def test_a_gpu_whose_memory_others_hold_is_sick_until_a_job_has_what_it_needs(health: GpuHealth) -> None:
    """It comes back like any other; what was wanted once is forgotten then."""
    assert not health.update(reading(free_mib=3000))
    health.want(14000)

    assert health.update(reading(free_mib=3000))
    assert health.quarantined == "too little free memory: 3000 MiB, where a job needs 14000 at least"
    assert [health.update(reading(free_mib=free)) for free in (14000, 14000)] == [False, True]
    assert not health.update(reading(free_mib=3000))


def test_a_crowded_gpu_is_given_to_smaller_jobs_after_a_while(health: GpuHealth) -> None:
    """What others hold may be theirs for days."""
    health.want(14000)
    looks = [health.update(reading(free_mib=3000)) for _ in range(MOST_CROWDED + 2)]

    assert [number for number, changed in enumerate(looks) if changed] == [0, MOST_CROWDED + 1]
    assert health.quarantined is None


@pytest.mark.parametrize("xid", sorted(CRITICAL_XIDS))
def test_a_critical_xid_quarantines(health: GpuHealth, xid: int) -> None:
    """The reading may look healthy: what came in between counts."""
    assert health.update(reading(), [13, xid])
    assert health.quarantined == f"Xid {xid}: {CRITICAL_XIDS[xid].meaning}"


@pytest.mark.parametrize("xid", [13, 31, 43, 45, 63, 92, 109])
def test_another_one_does_not(health: GpuHealth, xid: int) -> None:
    """A trainer that reads past its memory has not broken the GPU, and what is to be remapped can wait."""
    assert not health.update(reading(), [xid])


def test_a_gpu_comes_back_after_so_many_good_readings_in_a_row(health: GpuHealth) -> None:
    """One that is hot now and then stays away."""
    temperatures = [95, 60, 95, 60, 60, 60]

    changes = [health.update(reading(temperature_c=temperature)) for temperature in temperatures]

    assert changes == [True, False, False, False, True, False]
    assert health.quarantined is None


def test_the_first_reason_stays(health: GpuHealth) -> None:
    """What follows is often its consequence."""
    health.update(reading(temperature_c=99))

    assert not health.update(reading(lost=True))
    assert health.quarantined == "too hot: 99 C, over 92 C"


@pytest.mark.parametrize("xid", sorted(xid for xid, kind in CRITICAL_XIDS.items() if kind.lasting))
def test_after_an_xid_that_calls_for_a_reset_the_gpu_stays_away(health: GpuHealth, xid: int) -> None:
    """Good readings prove nothing then."""
    health.update(reading(), [xid])

    assert not any(health.update(reading()) for _ in range(10))


@pytest.mark.parametrize("xid", sorted(xid for xid, kind in CRITICAL_XIDS.items() if not kind.lasting))
def test_after_another_one_it_comes_back(health: GpuHealth, xid: int) -> None:
    """The error was contained."""
    health.update(reading(), [xid])

    assert [health.update(reading()) for _ in range(2)] == [False, True]


def test_errors_from_before_the_start_do_not_count() -> None:
    """Whoever started the daemon on this GPU knows of them."""
    health = GpuHealth(HOTTEST, probes=2)

    assert not health.update(reading(ecc_uncorrected=5))
    assert health.update(reading(ecc_uncorrected=6))
    assert health.quarantined == "uncorrected memory errors (ECC): 1"


def test_a_reset_of_the_gpu_forgets_its_errors(health: GpuHealth) -> None:
    """Its counter begins again; until then the GPU stays away."""
    health.update(reading(ecc_uncorrected=3))
    assert not any(health.update(reading(ecc_uncorrected=3)) for _ in range(5))

    assert [health.update(reading(ecc_uncorrected=0)) for _ in range(2)] == [False, True]

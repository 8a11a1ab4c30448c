"""The monitor: what it does about readings, with a driver that answers as the test says."""

from typing import Any

import pytest

from training_worker.gpu import monitor as monitor_module
from training_worker.gpu import nvml
from training_worker.gpu.devices import GpuDevice
from training_worker.gpu.monitor import Monitor
from training_worker.gpu.nvml import DriverHangsError
from training_worker.observations import GpuRead, Observation, Reading, ServingChanged
from training_worker.queue.admission import Admission
from training_worker.settings import Settings


class Driver:
    """Answers with the readings it was given last; None is no answer."""

    def __init__(self) -> None:
        self.readings: dict[str, Reading] | None = {}

    async def ask(self, _: object, limit: float) -> dict[str, Reading]:
        """In place of the real one."""
        if self.readings is None:
            raise DriverHangsError(f"the driver has not answered within {limit:g} s")
        return self.readings


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """In place of the real one."""
    driver = Driver()
    monkeypatch.setattr(nvml, "ask_async", driver.ask)
    return driver


class Watched:
    """A monitor of two slots, and what it reported."""

    def __init__(self, *devices: GpuDevice) -> None:
        self.reported: list[tuple[str, str, bool]] = []
        self.observed: list[Observation] = []
        self.admissions = [Admission() for _ in devices]
        settings = Settings(healthy_probes=2, driver_timeout=7)
        self.monitor = Monitor(
            list(zip(devices, self.admissions, strict=True)), settings, self.report, self.observed.append
        )

    def report(self, gpu: str, reason: str, *, recovered: bool) -> None:
        """Keep it."""
        self.reported.append((gpu, reason, recovered))

    @property
    def closed(self) -> list[bool]:
        """Which slots consume nothing."""
        return [admission.closed for admission in self.admissions]


def device(uuid: str, *, simulated: bool = False) -> GpuDevice:
    """A GPU that is there."""
    return GpuDevice(uuid=uuid, name="A", memory_mib=24564, simulated=simulated, usd_per_hour=None)


def readings(**gpus: dict[str, Any]) -> dict[str, Reading]:
    """By GPU."""
    return {uuid: Reading(uuid=uuid, **fields) for uuid, fields in gpus.items()}


async def test_the_slot_of_a_sick_gpu_consumes_nothing_until_it_has_recovered(driver: Driver) -> None:
    """The other one keeps working."""
    watched = Watched(device("A"), device("B"))

    for temperature, closed in [(60, False), (95, True), (60, True), (60, False)]:
        driver.readings = readings(A={"temperature_c": temperature}, B={"temperature_c": 60})
        await watched.monitor.check()
        assert watched.closed == [closed, False]

    reason = "too hot: 95 C, over 92 C"
    assert watched.reported == [("A", reason, False), ("A", reason, True)]


async def test_nothing_is_consumed_before_a_gpu_has_been_read(driver: Driver) -> None:
    """It may be sick already; a simulated one is not."""
    watched = Watched(device("A"), device("SIMULATED-0", simulated=True))
    assert watched.closed == [True, False]

    driver.readings = readings(A={})
    await watched.monitor.check()

    assert watched.closed == [False, False]


async def test_a_slot_of_several_gpus_consumes_nothing_while_one_of_them_is_sick(driver: Driver) -> None:
    """It comes back with the last of them."""
    watched = Watched(device("A,B"), device("C"))
    driver.readings = readings(A={"lost": True}, B={"temperature_c": 95}, C={})
    await watched.monitor.check()

    driver.readings = readings(A={"lost": True}, B={}, C={})
    await watched.monitor.check()
    await watched.monitor.check()
    assert watched.closed == [True, False]
    driver.readings = readings(A={}, B={}, C={})
    await watched.monitor.check()
    await watched.monitor.check()

    assert watched.closed == [False, False]
    assert [gpu for gpu, _, recovered in watched.reported if recovered] == ["B", "A"]


async def test_each_reading_is_reported_with_the_xids_and_what_it_means_for_the_slot(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each GPU by itself, and of what serves together as one."""
    watched = Watched(device("A,B"))
    driver.readings = readings(A={"temperature_c": 95}, B={})
    monkeypatch.setattr(watched.monitor._xids, "heard", lambda: [("B", 13), ("C", 79), ("B", 31)])

    await watched.monitor.check()

    assert watched.observed == [
        GpuRead(reading=driver.readings["A"], xids=[]),
        GpuRead(reading=driver.readings["B"], xids=[13, 31]),
        ServingChanged(gpu="A,B", serves=False),
    ]


async def test_a_gpu_whose_memory_others_hold_is_quarantined_where_a_job_needs_it(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a slot of several, the one that lacks it; a slot of other GPUs keeps working."""
    monkeypatch.setattr(monitor_module, "CROWDED_PAUSE", 0)
    watched = Watched(device("A,B"), device("C"))
    driver.readings = readings(A={"free_mib": 24000}, B={"free_mib": 3000}, C={"free_mib": 3000})

    assert await watched.monitor.is_crowded("A,B", 14000)

    assert watched.reported == [("B", "too little free memory: 3000 MiB, where a job needs 14000 at least", False)]
    assert watched.closed == [True, False]


async def test_memory_that_a_trainer_has_just_let_go_of_is_waited_for(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is free a moment after the trainer's end: no GPU is sick for that."""
    monkeypatch.setattr(monitor_module, "CROWDED_PAUSE", 0)
    watched = Watched(device("A"))
    frees = iter([3000, 3000, 24000])

    async def ask(_: object, __: float) -> dict[str, Reading]:
        return readings(A={"free_mib": next(frees)})

    monkeypatch.setattr(nvml, "ask_async", ask)

    assert not await watched.monitor.is_crowded("A", 14000)
    assert watched.reported == []


async def test_a_gpu_that_does_not_report_its_memory_is_not_crowded(driver: Driver) -> None:
    """Nor one that is not watched."""
    watched = Watched(device("A"))
    driver.readings = readings(A={})

    assert not await watched.monitor.is_crowded("A", 14000)
    assert not await watched.monitor.is_crowded("SIMULATED-0", 14000)


async def test_while_the_driver_does_not_answer_nothing_is_consumed(driver: Driver) -> None:
    """A job would not get far."""
    watched = Watched(device("A"), device("B"))
    driver.readings = None

    await watched.monitor.check()

    assert watched.closed == [True, True]
    assert watched.monitor.quarantined("A") == "the driver cannot read it: the driver has not answered within 7 s"


async def test_a_simulated_gpu_is_always_healthy(driver: Driver) -> None:
    """There is nothing to read, and the monitor ends at once."""
    driver.readings = None
    watched = Watched(device("SIMULATED-0", simulated=True))

    await watched.monitor.run()

    assert (watched.closed, watched.reported) == ([False], [])
    assert watched.monitor.quarantined("SIMULATED-0") is None


async def test_a_gpu_is_checked_on_request(driver: Driver) -> None:
    """Of several, one is enough; of what is not watched, nothing is known."""
    watched = Watched(device("A,B"), device("C"))
    driver.readings = readings(A={}, B={"lost": True}, C={})

    assert await watched.monitor.find_fault("A,B") == "lost: the driver does not show it any more"
    assert await watched.monitor.find_fault("C") is None
    assert await watched.monitor.find_fault("SIMULATED-0") is None
    assert watched.closed == [True, False]


async def test_a_paused_worker_stays_paused_when_a_gpu_recovers(driver: Driver) -> None:
    """Nor does a resume open the slot of a sick one."""
    outer = Admission()
    inner = outer.inner()

    outer.pause()
    inner.bar()
    inner.unbar()
    assert inner.closed
    inner.bar()
    outer.resume()
    assert (outer.closed, inner.closed) == (False, True)
    outer.drain()
    assert await inner.wait_open() is False

"""Each record shows in its metrics; no label grows with the jobs."""

import socket
from pathlib import Path

import pytest
from tests.support.scrape import free_port, get

from training_schemas.events import Gpu, Taking
from training_schemas.jobs import EngineName, MemoryTier, TrainingType
from training_schemas.progress import FailureReason, Phase
from training_schemas.selftest import Verdict
from training_schemas.usage import Usage
from training_worker.errors import SettingsError
from training_worker.instrumentation.http_server import served
from training_worker.instrumentation.prometheus import Metrics
from training_worker.observations import (
    AdmissionChanged,
    AttemptEnded,
    AttemptOutcome,
    AttemptStarted,
    BrokerChanged,
    DiskMeasured,
    DiskUse,
    GpuFound,
    GpuRead,
    JobWaited,
    KernelsTested,
    LeaseChanged,
    LeaseEvent,
    LoopTurned,
    Observation,
    PhaseEnded,
    PredictionChecked,
    ProgressMade,
    Reading,
    ServingChanged,
    StepTaken,
)
from training_worker.version import __version__

FLUX = TrainingType.FLUX_LORA
GPU = "GPU-1"
DEVICE = Gpu(uuid=GPU, name="NVIDIA L4", memory_mib=1024, tier=MemoryTier.GB24, count=1)
FOUND = GpuFound(device=DEVICE, simulated=False)
STAND_IN = GpuFound(device=DEVICE, simulated=True)
STARTED = AttemptStarted(training_type=FLUX, tier=MemoryTier.GB24, gpu=GPU)
ENDED = AttemptEnded(
    training_type=FLUX,
    tier=MemoryTier.GB24,
    gpu=GPU,
    outcome=AttemptOutcome.RETRIED,
    reason=FailureReason.DISK_FULL,
    usage=Usage(gpu_seconds=10.0, cost_usd=0.5, wasted_gpu_seconds=4.0, energy_wh=0.25),
)
JOB = {"training_type": "FLUX_LORA"}
GPU_LABEL = {"gpu": GPU}
READ = GpuRead(
    reading=Reading(
        uuid=GPU,
        memory_mib=1024,
        free_mib=256,
        utilisation=97,
        temperature_c=71,
        power_w=300.5,
        throttled=["power cap"],
        ecc_uncorrected=2,
    ),
    xids=[13, 13, 79],
)
TESTED, RETESTED = (
    KernelsTested(gpu=GPU, engine=EngineName.DIFFUSERS, verdicts={"attention.flash_attention": verdict})
    for verdict in (Verdict.NOT_FINITE, Verdict.RIGHT)
)
FLASH = {"gpu": GPU, "engine": "diffusers", "kernel": "attention.flash_attention"}
UNREADABLE = GpuRead(reading=Reading(uuid=GPU, lost=True), xids=[])
THROTTLED = GPU_LABEL | {"reason": "power cap"}


def value(tmp_path: Path, name: str, labels: dict[str, str], *records: Observation) -> float | None:
    """One sample, after these records."""
    metrics = Metrics(tmp_path)
    for record in records:
        metrics.observe(record)
    return metrics.registry.get_sample_value(f"training_worker_{name}", labels)


@pytest.mark.parametrize(
    ("records", "name", "labels", "expected"),
    [
        ([LoopTurned()], "broker_connected", {}, 0),
        ([STARTED], "jobs_running", JOB, 1),
        ([STARTED], "failures_total", JOB | {"reason": "hostUnfit"}, 0),
        ([STARTED], "attempts_total", JOB | {"outcome": "failed"}, 0),
        ([STARTED, ENDED], "jobs_running", JOB, 0),
        ([STARTED, ENDED], "attempts_total", JOB | {"outcome": "retried"}, 1),
        ([STARTED, ENDED], "failures_total", JOB | {"reason": "diskFull"}, 1),
        ([STARTED, ENDED], "jobs_total", JOB | {"tier": "24gb", "outcome": "retried"}, None),
        ([STARTED, ENDED], "jobs_total", JOB | {"tier": "24gb", "outcome": "failed"}, 0),
        ([STARTED, ENDED], "gpu_seconds_total", JOB | {"outcome": "retried"}, 10),
        ([STARTED, ENDED], "useful_gpu_seconds_total", JOB | {"outcome": "retried"}, 6),
        ([STARTED, ENDED], "wasted_gpu_seconds_total", JOB | {"outcome": "retried"}, 4),
        ([STARTED, ENDED], "cost_usd_total", JOB | {"outcome": "retried"}, 0.5),
        ([FOUND], "card_info", {"gpu": GPU, "name": "NVIDIA L4", "tier": "24gb", "simulated": "false"}, 1),
        ([STARTED, ENDED], "energy_joules_total", JOB | {"outcome": "retried"}, 900),
        ([STARTED], "energy_joules_total", JOB | {"outcome": "completed"}, 0),
        ([FOUND], "card_up", GPU_LABEL, 0),
        ([STAND_IN], "card_up", GPU_LABEL, 1),
        ([FOUND, ServingChanged(gpu=GPU, serves=True)], "card_up", GPU_LABEL, 1),
        ([FOUND, *(ServingChanged(gpu=GPU, serves=well) for well in (True, False))], "card_up", GPU_LABEL, 0),
        ([TESTED], "card_kernels", FLASH | {"verdict": "notFinite"}, 1),
        ([TESTED, RETESTED], "card_kernels", FLASH | {"verdict": "notFinite"}, None),
        ([TESTED, RETESTED], "card_kernels", FLASH | {"verdict": "right"}, 1),
        ([READ], "card_memory_free_bytes", GPU_LABEL, 256 * 1024**2),
        ([READ], "card_memory_used_bytes", GPU_LABEL, 768 * 1024**2),
        ([READ], "card_temperature_celsius", GPU_LABEL, 71),
        ([READ], "card_power_watts", GPU_LABEL, 300.5),
        ([READ], "card_utilisation_ratio", GPU_LABEL, 0.97),
        ([READ], "card_ecc_uncorrected_errors_total", GPU_LABEL, 2),
        ([READ], "card_throttled", THROTTLED, 1),
        ([READ], "card_throttled", GPU_LABEL | {"reason": "power brake"}, 0),
        ([READ, UNREADABLE], "card_xids_total", GPU_LABEL | {"xid": "13"}, 2),
        ([READ, UNREADABLE], "card_xids_total", GPU_LABEL | {"xid": "79"}, 1),
        *(
            ([READ, UNREADABLE], f"card_{name}", labels, None)
            for name, labels in {
                "memory_free_bytes": GPU_LABEL,
                "memory_used_bytes": GPU_LABEL,
                "temperature_celsius": GPU_LABEL,
                "power_watts": GPU_LABEL,
                "utilisation_ratio": GPU_LABEL,
                "ecc_uncorrected_errors_total": GPU_LABEL,
                "throttled": THROTTLED,
            }.items()
        ),
        ([FOUND], "card_memory_bytes", GPU_LABEL, 1024**3),
        ([FOUND], "card_busy", GPU_LABEL, 0),
        ([FOUND, STARTED], "card_busy", GPU_LABEL, 1),
        ([FOUND, STARTED, ENDED], "card_busy", GPU_LABEL, 0),
        ([ProgressMade(gpu=GPU, time=5.0)], "card_last_progress_timestamp_seconds", GPU_LABEL, 5),
        ([JobWaited(training_type=FLUX, seconds=7.0)], "queue_wait_seconds_sum", JOB, 7),
        (
            [PhaseEnded(training_type=FLUX, phase=Phase.EXPORTING, seconds=3.0)],
            "phase_duration_seconds_bucket",
            JOB | {"phase": "exporting", "le": "5.0"},
            1,
        ),
        ([StepTaken(training_type=FLUX, gpu=GPU, loss=0.5, seconds=None)], "step_duration_seconds_sum", JOB, None),
        ([StepTaken(training_type=FLUX, gpu=GPU, loss=0.5, seconds=2.0)], "step_duration_seconds_sum", JOB, 2),
        ([StepTaken(training_type=FLUX, gpu=GPU, loss=0.5, seconds=None)], "last_loss", JOB | GPU_LABEL, 0.5),
        ([StepTaken(training_type=FLUX, gpu=GPU, loss=None, seconds=None)], "last_loss", JOB | GPU_LABEL, None),
        ([PredictionChecked(step_seconds=1.5, peak_memory=None)], "prediction_ratio_sum", {"of": "step_seconds"}, 1.5),
        ([PredictionChecked(step_seconds=None, peak_memory=0.5)], "prediction_ratio_sum", {"of": "peak_memory"}, 0.5),
        ([LeaseChanged(event=LeaseEvent.RENEWED)], "lease_renewals_total", {}, 1),
        ([LeaseChanged(event=LeaseEvent.NOT_RENEWED)], "lease_renewal_failures_total", {}, 1),
        ([LeaseChanged(event=LeaseEvent.REJOINED)], "rejoins_total", {}, 1),
        ([LeaseChanged(event=LeaseEvent.LOST)], "lease_losses_total", {}, 1),
        ([BrokerChanged(connected=True)], "broker_connected", {}, 1),
        ([BrokerChanged(connected=True)], "broker_reconnects_total", {}, 0),
        ([BrokerChanged(connected=up) for up in (True, False)], "broker_connected", {}, 0),
        ([BrokerChanged(connected=up) for up in (True, False, True)], "broker_reconnects_total", {}, 1),
        ([BrokerChanged(connected=up) for up in (True, False, True)], "broker_connections_total", {}, 2),
        ([AdmissionChanged(taking=Taking.PAUSED)], "paused", {}, 1),
        ([AdmissionChanged(taking=Taking.PAUSED), AdmissionChanged(taking=Taking.OPEN)], "paused", {}, 0),
        ([AdmissionChanged(taking=Taking.DRAINING)], "draining", {}, 1),
        ([DiskMeasured(use={DiskUse.CACHES: 7})], "disk_bytes", {"kind": "caches"}, 7),
        ([DiskMeasured(use={DiskUse.CACHES: n}) for n in (7, 5)], "disk_bytes", {"kind": "caches"}, 5),
    ],
)
def test_each_record_shows(
    tmp_path: Path, records: list[Observation], name: str, labels: dict[str, str], expected: float | None
) -> None:
    """In the sample that is meant for it."""
    assert value(tmp_path, name, labels, *records) == expected


def test_a_job_counts_once_however_many_attempts_it_took(tmp_path: Path) -> None:
    """Where it came to its end."""
    done = AttemptEnded(
        training_type=FLUX,
        tier=MemoryTier.GB24,
        gpu=GPU,
        outcome=AttemptOutcome.COMPLETED,
        reason=None,
        usage=Usage(gpu_seconds=1.0),
    )
    labels = JOB | {"tier": "24gb", "outcome": "completed"}

    assert value(tmp_path, "jobs_total", labels, STARTED, ENDED, STARTED, done) == 1


def test_the_disk_of_the_state_directory_is_read_at_each_scrape(tmp_path: Path) -> None:
    """One that is not there has no figures, and the scrape continues."""
    assert (value(tmp_path, "state_disk_free_bytes", {}) or 0) > 0
    assert value(tmp_path / "none", "state_disk_free_bytes", {}) is None


@pytest.fixture
def port() -> int:
    """A free one."""
    return free_port()


def test_three_pages_are_served_and_no_other(tmp_path: Path, port: int) -> None:
    """What the observer is given shows at once."""
    with served("127.0.0.1", port, tmp_path) as observe:
        assert get(port, "/healthz") == (200, "ok\n")
        assert get(port, "/readyz") == (503, "starting\nnot connected to the broker\n")
        observe(LoopTurned())
        observe(BrokerChanged(connected=True))
        assert get(port, "/readyz") == (200, "ok\n")
        status, text = get(port, "/metrics")
        assert status == 200
        assert "training_worker_broker_connected 1.0" in text
        assert f'version="{__version__}"' in text
        assert get(port, "/")[0] == 404


def test_who_connects_and_sends_nothing_keeps_nobody_waiting(tmp_path: Path, port: int) -> None:
    """Each connection has a thread."""
    with served("127.0.0.1", port, tmp_path), socket.create_connection(("127.0.0.1", port)):
        assert get(port, "/healthz") == (200, "ok\n")


def test_a_port_that_is_in_use_is_reported(tmp_path: Path, port: int) -> None:
    """It is a setting that is wrong."""
    with (
        served("127.0.0.1", port, tmp_path),
        pytest.raises(SettingsError, match=f"cannot serve metrics on 127.0.0.1:{port}"),
        served("127.0.0.1", port, tmp_path),
    ):
        pass

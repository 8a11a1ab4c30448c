"""Metrics of a worker for Prometheus, from its observations."""

import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from training_schemas.events import Taking
from training_schemas.progress import FailureReason
from training_worker.instrumentation.gpu_metrics import GpuMetrics
from training_worker.observations import (
    AdmissionChanged,
    AttemptEnded,
    AttemptOutcome,
    AttemptStarted,
    BrokerChanged,
    DiskMeasured,
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
    ServingChanged,
    StepTaken,
)
from training_worker.version import __version__

MIB = 1024 * 1024
PREFIX = "training_worker"
JOULES_PER_WH = 3600

WAITS = (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)
PHASES = (0.1, 1, 5, 15, 60, 300, 900, 3600, 10800, 36000)
STEPS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
RATIOS = (0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 2.5, 4)

# The ends of an attempt that are also the end of its job.
ENDS = {AttemptOutcome.COMPLETED, AttemptOutcome.FAILED, AttemptOutcome.CANCELLED}


class Metrics:
    """All metrics on their own registry. Labels are closed lists and this host's GPUs: none grows with the jobs.

    ``state_dir`` is the folder whose disk is measured.
    """

    def __init__(self, state_dir: Path) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_Disk(state_dir))
        Info(f"{PREFIX}_build", "Versions of the daemon and its Python.", registry=self.registry).info(
            {"version": __version__, "python": platform.python_version()}
        )
        self._jobs = _Jobs(self.registry)
        self._cards = _Cards(self.registry)
        self._pace = _Pace(self.registry)
        self._fleet = _Fleet(self.registry)
        self._use = Gauge(
            f"{PREFIX}_disk_bytes",
            "What the worker keeps on its disks, by what it is.",
            ["kind"],
            registry=self.registry,
        )

    def observe(self, record: Observation) -> None:
        """Apply an observation."""
        match record:
            case AttemptStarted():
                self._jobs.started(record)
                self._cards.started(record)
            case AttemptEnded():
                self._jobs.ended(record)
                self._cards.ended(record)
            case GpuRead() | ServingChanged() | KernelsTested():
                self._cards.hear(record)
            case GpuFound() | ProgressMade() | StepTaken():
                self._cards.observe(record)
                self._pace.observe(record)
            case JobWaited() | PhaseEnded() | PredictionChecked():
                self._pace.observe(record)
            case LeaseChanged() | BrokerChanged() | AdmissionChanged():
                self._fleet.observe(record)
            case DiskMeasured():
                for kind, size in record.use.items():
                    self._use.labels(kind).set(size)
            case LoopTurned():
                pass


class _Jobs:
    """The metrics of jobs, attempts, and what they used."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}_total", text, ["training_type", *labels], registry=registry)

        self._running = Gauge(
            f"{PREFIX}_jobs_running", "Jobs that this worker owns.", ["training_type"], registry=registry
        )
        self._jobs = counter("jobs", "Jobs that ended here, by the tier they waited in.", "tier", "outcome")
        self._ended = counter("attempts", "Attempts that ended, by how.", "outcome")
        self._failures = counter("failures", "Attempts whose trainer failed, by why.", "reason")
        self._gpu_seconds = counter(
            "gpu_seconds", "Seconds for which a trainer had a GPU, by how its attempt ended.", "outcome"
        )
        self._useful = counter("useful_gpu_seconds", "Those of these seconds whose work is kept.", "outcome")
        self._wasted = counter(
            "wasted_gpu_seconds", "Those of these seconds that led to nothing that is kept.", "outcome"
        )
        self._dollars = counter("cost_usd", "What those seconds cost at the GPU's price, in US dollars.", "outcome")
        self._energy = counter(
            "energy_joules", "What the GPUs used meanwhile, of those that count their energy.", "outcome"
        )

    def started(self, record: AttemptStarted) -> None:
        self._running.labels(record.training_type).inc()
        # A series that begins with its first event shows no increase by it: all exist before they are needed.
        for outcome in AttemptOutcome:
            for counter in (self._ended, self._gpu_seconds, self._useful, self._wasted, self._dollars, self._energy):
                counter.labels(record.training_type, outcome)
        for outcome in ENDS:
            self._jobs.labels(record.training_type, record.tier, outcome)
        for reason in FailureReason:
            self._failures.labels(record.training_type, reason)

    def ended(self, record: AttemptEnded) -> None:
        labels, usage = (record.training_type, record.outcome), record.usage
        self._running.labels(record.training_type).dec()
        self._ended.labels(*labels).inc()
        if record.outcome in ENDS:
            self._jobs.labels(record.training_type, record.tier, record.outcome).inc()
        if record.reason is not None:
            self._failures.labels(record.training_type, record.reason).inc()
        self._gpu_seconds.labels(*labels).inc(usage.gpu_seconds)
        self._useful.labels(*labels).inc(max(0.0, usage.gpu_seconds - usage.wasted_gpu_seconds))
        self._wasted.labels(*labels).inc(usage.wasted_gpu_seconds)
        self._dollars.labels(*labels).inc(usage.cost_usd or 0)
        self._energy.labels(*labels).inc(JOULES_PER_WH * (usage.energy_wh or 0))


class _Cards:
    """The metrics of each GPU of this host."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", text, [*labels, "gpu"], registry=registry)

        self._info = gauge("card_info", "Always 1; what the GPU is.", "name", "tier", "simulated")
        self._up = gauge("card_up", "Whether the GPU is fit for jobs: 0 while it, or one of its slot, is quarantined.")
        self._busy = gauge("card_busy", "Whether a job has the GPU: 1 or 0.")
        self._memory = gauge("card_memory_bytes", "Memory of the GPU; of several together, that of each.")
        self._progress = gauge(
            "card_last_progress_timestamp_seconds", "When a trainer on the GPU last recorded something new, or began."
        )
        self._readings = GpuMetrics(registry)
        self._loss = gauge("last_loss", "Loss of the last optimizer step.", "training_type")

    def started(self, record: AttemptStarted) -> None:
        self._busy.labels(record.gpu).set(1)
        self._progress.labels(record.gpu).set(time.time())

    def ended(self, record: AttemptEnded) -> None:
        self._busy.labels(record.gpu).set(0)

    def hear(self, record: GpuRead | ServingChanged | KernelsTested) -> None:
        """Apply the driver's reading of a GPU, its self-test, or what it means for the slot."""
        match record:
            case GpuRead():
                self._readings.observe(record)
            case KernelsTested():
                self._readings.tested(record)
            case ServingChanged():
                self._up.labels(record.gpu).set(record.serves)

    def observe(self, record: GpuFound | ProgressMade | StepTaken) -> None:
        match record:
            case GpuFound(device=card):
                self._info.labels(card.name, card.tier or "none", str(record.simulated).lower(), card.uuid).set(1)
                # A real GPU is not served before it has been read.
                self._up.labels(card.uuid).set(record.simulated)
                self._busy.labels(card.uuid).set(0)
                self._memory.labels(card.uuid).set(card.memory_mib * MIB)
            case ProgressMade():
                self._progress.labels(record.gpu).set(record.time)
            case StepTaken(loss=float() as loss):
                self._loss.labels(record.training_type, record.gpu).set(loss)
            case _:
                pass


class _Pace:
    """The metrics of how long things take, and whether that was predicted."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", text, labels, buckets=buckets, registry=registry)

        self._wait = histogram(
            "queue_wait_seconds", "From a job's submission to its first claim.", WAITS, "training_type"
        )
        self._phase = histogram(
            "phase_duration_seconds",
            "How long a trainer stayed in a phase, each stretch for itself.",
            PHASES,
            "training_type",
            "phase",
        )
        self._step = histogram("step_duration_seconds", "From one optimizer step to the next.", STEPS, "training_type")
        self._prediction = histogram(
            "prediction_ratio", "What a completed attempt took by what was planned; 1 is as planned.", RATIOS, "of"
        )

    def observe(self, record: GpuFound | ProgressMade | StepTaken | JobWaited | PhaseEnded | PredictionChecked) -> None:
        match record:
            case JobWaited():
                self._wait.labels(record.training_type).observe(record.seconds)
            case PhaseEnded():
                self._phase.labels(record.training_type, record.phase).observe(record.seconds)
            case StepTaken(seconds=float() as seconds):
                self._step.labels(record.training_type).observe(seconds)
            case PredictionChecked():
                if record.step_seconds is not None:
                    self._prediction.labels("step_seconds").observe(record.step_seconds)
                if record.peak_memory is not None:
                    self._prediction.labels("peak_memory").observe(record.peak_memory)
            case _:
                pass


class _Fleet:
    """The metrics of the worker in the fleet: its broker, its leases, and whether it consumes jobs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"{PREFIX}_{name}_total", text, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", text, registry=registry)

        self._connected = gauge("broker_connected", "Whether there is a connection to the broker: 1 or 0.")
        self._connections = counter("broker_connections", "Connections to the broker that were made.")
        self._reconnects = counter("broker_reconnects", "Those of them that came after a lost one.")
        self._paused = gauge("paused", "Whether the worker was ordered to consume nothing new until resumed: 1 or 0.")
        self._draining = gauge("draining", "Whether the worker is on its way out: 1 or 0.")
        self._leases = {
            LeaseEvent.RENEWED: counter("lease_renewals", "Leases of jobs that were renewed."),
            LeaseEvent.NOT_RENEWED: counter("lease_renewal_failures", "Renewals of leases that failed."),
            LeaseEvent.REJOINED: counter("rejoins", "Jobs that were re-attached on a new connection."),
            LeaseEvent.LOST: counter("lease_losses", "Jobs that another worker had taken over."),
        }
        self._was_connected = False

    def observe(self, record: LeaseChanged | BrokerChanged | AdmissionChanged) -> None:
        match record:
            case LeaseChanged():
                self._leases[record.event].inc()
            case AdmissionChanged():
                self._paused.set(record.taking is Taking.PAUSED)
                self._draining.set(record.taking is Taking.DRAINING)
            case BrokerChanged():
                self._connected.set(record.connected)
                if record.connected:
                    self._connections.inc()
                    self._reconnects.inc(self._was_connected)
                    self._was_connected = True


class _Disk(Collector):
    """The metrics of the disk, read at each scrape."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            usage = shutil.disk_usage(self._folder)
        except OSError:
            free, size = None, None
        else:
            free, size = usage.free, usage.total
        yield GaugeMetricFamily(f"{PREFIX}_state_disk_free_bytes", "Free on the disk of the state directory.", free)
        yield GaugeMetricFamily(f"{PREFIX}_state_disk_size_bytes", "Size of that disk.", size)

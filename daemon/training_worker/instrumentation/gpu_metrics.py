"""The metrics of single GPUs, from the driver's last reading."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from training_schemas.jobs import EngineName
from training_schemas.selftest import Verdict
from training_worker.gpu.nvml import MIB, THROTTLING
from training_worker.observations import GpuRead, KernelsTested, Reading

PREFIX = "training_worker_card"


class GpuMetrics:
    """The driver's readings of each GPU, and its Xids.

    An Xid's number is a label: what to do differs with it, and NVIDIA's catalogue has less than two hundred, of which a
    GPU has few. A series begins with the first of its kind, so a query for an increase would miss that: whether a GPU
    is unhealthy is shown by `card_up`.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._readings = _Readings()
        registry.register(self._readings)
        self._xids = Counter(
            f"{PREFIX}_xids_total", "Xids that the driver reported, by number.", ["xid", "gpu"], registry=registry
        )

        self._kernels = Gauge(
            f"{PREFIX}_kernels",
            "Always 1; what the GPU's last self-test found of a kernel.",
            ["engine", "kernel", "verdict", "gpu"],
            registry=registry,
        )
        self._verdicts: dict[tuple[str, EngineName], dict[str, Verdict]] = {}

    def tested(self, record: KernelsTested) -> None:
        """Take in a self-test: the GPU's verdicts in an engine's interpreter, in the place of those before."""
        for kernel, verdict in self._verdicts.get((record.gpu, record.engine), {}).items():
            self._kernels.remove(record.engine, kernel, verdict, record.gpu)
        self._verdicts[record.gpu, record.engine] = record.verdicts
        for kernel, verdict in record.verdicts.items():
            self._kernels.labels(record.engine, kernel, verdict, record.gpu).set(1)

    def observe(self, record: GpuRead) -> None:
        """Apply a reading."""
        self._readings.take(record.reading)
        for xid in record.xids:
            self._xids.labels(str(xid), record.reading.uuid).inc()


class _Readings(Collector):
    """The last reading of each GPU. What it lacks has no sample: an older value would be outdated."""

    def __init__(self) -> None:
        self._last: dict[str, Reading] = {}

    def take(self, reading: Reading) -> None:
        self._last[reading.uuid] = reading

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Return the metrics of a scrape; called from the server's thread."""
        readings = list(self._last.values())

        def gauge(name: str, text: str, values: dict[str, float | None]) -> GaugeMetricFamily:
            family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=["gpu"])
            for uuid, value in values.items():
                if value is not None:
                    family.add_metric([uuid], value)
            return family

        yield gauge("memory_free_bytes", "Memory that nobody uses.", {one.uuid: _free(one) for one in readings})
        yield gauge("memory_used_bytes", "Memory that is in use.", {one.uuid: _used(one) for one in readings})
        yield gauge("temperature_celsius", "How hot the GPU is.", {one.uuid: one.temperature_c for one in readings})
        yield gauge("power_watts", "What the GPU draws.", {one.uuid: one.power_w for one in readings})
        yield gauge(
            "utilisation_ratio", "Share of time in which it computes.", {one.uuid: _busy(one) for one in readings}
        )
        yield _throttled(readings)
        yield _errors(readings)


def _free(reading: Reading) -> float | None:
    return None if reading.free_mib is None else reading.free_mib * MIB


def _used(reading: Reading) -> float | None:
    if reading.memory_mib is None or reading.free_mib is None:
        return None
    return (reading.memory_mib - reading.free_mib) * MIB


def _busy(reading: Reading) -> float | None:
    return None if reading.utilisation is None else reading.utilisation / 100


def _throttled(readings: list[Reading]) -> GaugeMetricFamily:
    text = "Whether the GPU's clocks are held down, by why: 1 or 0."
    family = GaugeMetricFamily(f"{PREFIX}_throttled", text, labels=["reason", "gpu"])
    for reading in readings:
        if reading.throttled is not None:
            for reason in THROTTLING.values():
                family.add_metric([reason, reading.uuid], float(reason in reading.throttled))
    return family


def _errors(readings: list[Reading]) -> CounterMetricFamily:
    text = "Uncorrected memory errors since the GPU was reset."
    family = CounterMetricFamily(f"{PREFIX}_ecc_uncorrected_errors", text, labels=["gpu"])
    for reading in readings:
        if reading.ecc_uncorrected is not None:
            family.add_metric([reading.uuid], reading.ecc_uncorrected)
    return family

"""All groups of checks, in the order in which they are made."""

from collections.abc import Callable, Iterator

from training_worker.doctor import broker, engines, host, kernels, model_weights
from training_worker.doctor.findings import BROKER, Finding
from training_worker.doctor.gpus import HostGpus, look_at_gpus
from training_worker.settings import Settings

Check = Callable[[Settings, HostGpus], Iterator[Finding]]

GROUPS: dict[str, Check] = {
    host.GROUP: host.check,
    engines.GROUP: engines.check,
    kernels.GROUP: kernels.check,
    model_weights.GROUP: lambda settings, _: model_weights.check(settings),
    BROKER: lambda settings, _: broker.check(settings),
}


def examine(settings: Settings) -> Iterator[Finding]:
    """Make all checks; yield each finding as soon as it is known."""
    devices = look_at_gpus(settings)
    for check in GROUPS.values():
        yield from check(settings, devices)

"""The prediction of what a run will take on its GPU, and the measurement of what a job has taken."""

from training_presets.cards import CardSpec, cost_usd, find_card
from training_presets.duration import estimate_time
from training_presets.estimates import RANGE
from training_presets.memory import CONTEXT, estimate_memory
from training_presets.workload import Workload
from training_schemas.jobs import EngineName
from training_schemas.plans import Measured, Prediction
from training_schemas.selftest import GpuRates
from training_schemas.usage import AttemptSummary
from training_worker.attempts.outcome import Done
from training_worker.attempts.step_rates import StepRates
from training_worker.gpu.devices import GpuDevice
from training_worker.gpu.nvml import MIB

# How many times as long as planned a step may take without a warning: the model of time is off by 1.84 at worst.
SLOWER = 2.5


def predict_here(  # noqa: PLR0913 - all that decides it
    work: Workload,
    engine: EngineName,
    device: GpuDevice,
    extra: list[CardSpec],
    rates: StepRates,
    *,
    gpu_rates: GpuRates | None = None,
) -> Prediction | None:
    """Predict what a run takes on a GPU of this host: by the step that it took here before, else by its self-test.

    None if nobody knows the GPU.
    """
    spec = find_card(device.name, device.memory_mib, extra)
    measured = rates.find(device, engine, work)
    if spec is None:
        return None
    time = estimate_time(work, spec, measured=measured, rates=gpu_rates)
    return Prediction(
        card=device.name,
        peak_vram_mib=estimate_memory(work).peak_mib,
        seconds_per_step=time.seconds_per_step,
        gpu_seconds=time.seconds * device.count,
        cost_usd=cost_usd(time.seconds, device.usd_per_hour),
        from_measurements=measured is not None,
    )


def overruns(predicted: Prediction | None, done: Done, device: GpuDevice) -> list[str]:
    """Describe what a run took clearly more of than planned; nothing for a simulated GPU."""
    if predicted is None or device.simulated:
        return []
    found = []
    peak, step, total = done.record.peak_vram_mib, done.seconds_per_step, done.usage.gpu_seconds
    planned = _planned_peak(predicted)
    if peak is not None and peak > planned:
        found.append(f"the trainer held {peak} MiB of its GPU, and the plan predicted {planned}")
    if step is not None and step > SLOWER * predicted.seconds_per_step:
        found.append(f"a step took {step:.3g} s, and the plan predicted {predicted.seconds_per_step:.3g}")
    if total > RANGE[1] * predicted.gpu_seconds:
        found.append(f"the attempt took {total:.0f} GPU-seconds, and the plan predicted {predicted.gpu_seconds:.0f}")
    return found


def ratios(predicted: Prediction | None, done: Done, device: GpuDevice) -> tuple[float | None, float | None]:
    """Return seconds a step and peak memory by what was planned, where both are known; neither for a simulated GPU."""
    if predicted is None or device.simulated:
        return None, None
    step, peak = done.seconds_per_step, done.record.peak_vram_mib
    return (
        None if step is None else step / predicted.seconds_per_step,
        None if peak is None else peak / _planned_peak(predicted),
    )


def _planned_peak(predicted: Prediction) -> int:
    # The trainer counts only its own memory, without the driver's part.
    return predicted.peak_vram_mib - int(CONTEXT) // MIB


def measure(done: Done, attempts: list[AttemptSummary]) -> Measured:
    """Return what a completed job took."""
    costs = [attempt.usage.cost_usd for attempt in attempts if attempt.usage.cost_usd is not None]
    return Measured(
        gpu_seconds=sum(attempt.usage.gpu_seconds for attempt in attempts),
        cost_usd=sum(costs) if costs else None,
        peak_vram_mib=done.record.peak_vram_mib,
        seconds_per_step=done.seconds_per_step,
    )

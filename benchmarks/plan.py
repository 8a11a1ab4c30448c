"""How long a plan and an estimate take, after import.

python -m benchmarks.plan
"""

import time
from collections.abc import Callable

from training_presets.estimates import estimate_cost
from training_presets.planner import plan_job
from training_presets.presets import presets
from training_schemas.jobs import TrainingJob, TrainingType

ROUNDS = 200


def main() -> None:
    """Print microseconds a call, over all types and presets."""
    jobs = [
        TrainingJob(job_id="a", training_type=kind, dataset_path="/d", output_path="/o", preset=preset.name)
        for kind in TrainingType
        for preset in presets().values()
        if preset.family is kind.family
    ]
    plans = [plan_job(job) for job in jobs]
    print(f"plan_job: {_microseconds(lambda: [plan_job(job) for job in jobs], len(jobs)):.0f} us")
    print(f"estimate_cost: {_microseconds(lambda: [estimate_cost(plan) for plan in plans], len(plans)):.0f} us")


def _microseconds(call: Callable[[], object], count: int) -> float:
    call()
    began = time.perf_counter()
    for _ in range(ROUNDS):
        call()
    return (time.perf_counter() - began) / ROUNDS / count * 1e6


if __name__ == "__main__":
    main()

"""plan and presets."""

import msgspec
from rich.console import Console
from rich.table import Table

from training_presets.planner import plan_job
from training_presets.presets import presets
from training_worker.cli.client_commands import read_job


def show_plan(file: str, *, as_json: bool) -> None:
    """Print a job's plan: settings and tier. Raises `InvalidMessageError`."""
    plan = plan_job(read_job(file))
    if as_json:
        print(msgspec.json.encode(plan).decode())
        return
    table = Table("setting", "value", title=f"{plan.training_type}, preset {plan.preset}, cards of {plan.tier} or more")
    for name, value in msgspec.to_builtins(plan.parameters).items():
        table.add_row(name, str(value))
    Console().print(table)


def show_presets(*, as_json: bool) -> None:
    """Print all presets."""
    if as_json:
        print(msgspec.json.encode(list(presets().values())).decode())
        return
    columns = ("batchSize", "gradientAccumulationSteps", "maxTrainSteps", "loraRank", "resolution", "learningRate")
    table = Table("preset", "tier", *columns)
    for preset in presets().values():
        table.add_row(preset.name, preset.tier or "-", *(str(preset.parameters[column]) for column in columns))
    Console().print(table)

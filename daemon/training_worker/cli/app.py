"""The commands, and how their errors end: a line that says what is wrong, and a status that says whose turn it is."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from training_schemas.validation import InvalidMessageError
from training_worker.errors import NoGpuError, SettingsError, TrainingWorkerError

# sysexits(3): the operator must change something, the input is wrong, the broker is away.
EX_DATAERR = 65
EX_UNAVAILABLE = 69
EX_CONFIG = 78

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train FLUX and SDXL adapters on GPU hosts, from a RabbitMQ queue.",
)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).", show_default=False)]
JobArgument = Annotated[str, typer.Argument(help="The job's id.")]


@app.command()
def run(config: ConfigOption = None, *, verbose: Annotated[bool, typer.Option(help="Log more.")] = False) -> None:
    """Run the daemon on this host until it is told to stop.

    SIGTERM gives a running job back to the queue; SIGINT finishes it first.
    """
    from training_worker.cards import find_cards  # noqa: PLC0415
    from training_worker.logs import configure_logging  # noqa: PLC0415
    from training_worker.settings import load_settings  # noqa: PLC0415
    from training_worker.worker import Worker  # noqa: PLC0415

    settings = load_settings(config, os.environ)
    configure_logging(verbose=verbose)
    worker = Worker(settings, find_cards(settings.gpus, settings.prices))
    asyncio.run(worker.run())


@app.command()
def submit(
    file: Annotated[str, typer.Argument(help="The job as JSON: a file, or - for standard input.")],
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Show the job until it ends.")] = False,
) -> None:
    """Publish a job."""
    from training_worker.cli.client_commands import submit_file  # noqa: PLC0415

    raise typer.Exit(submit_file(file, watch=watch))


@app.command()
def watch(job_id: JobArgument) -> None:
    """Show a job of the last day until it ends."""
    from training_worker.cli.client_commands import watch_job  # noqa: PLC0415

    raise typer.Exit(watch_job(job_id, since=None))


@app.command()
def cancel(job_id: JobArgument) -> None:
    """Cancel a job, waiting or running."""
    from training_worker.cli.client_commands import cancel_job  # noqa: PLC0415

    cancel_job(job_id)


@app.command()
def plan(
    file: Annotated[str, typer.Argument(help="The job as JSON: a file, or - for standard input.")],
    *,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a job would be trained with, and on which cards, without publishing it."""
    from training_worker.cli.plan_commands import show_plan  # noqa: PLC0415

    show_plan(file, as_json=json)


@app.command()
def presets(*, json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the presets."""
    from training_worker.cli.plan_commands import show_presets  # noqa: PLC0415

    show_presets(as_json=json)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("demo-output"),
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps.")] = 30,
) -> None:
    """Train a tiny LoRA on this machine, from the queue to the adapter, without a GPU."""
    from training_worker.demo.run import run_demo  # noqa: PLC0415

    run_demo(output, steps)


def main() -> None:
    """The program ``training-worker``."""
    try:
        app()
    except InvalidMessageError as error:
        for fault in error.faults:
            print(f"training-worker: {fault.path or 'message'}: {fault.reason}", file=sys.stderr)
        sys.exit(EX_DATAERR)
    except (SettingsError, NoGpuError) as error:
        _fail(error, EX_CONFIG)
    except TrainingWorkerError as error:
        _fail(error, EX_UNAVAILABLE)


def _fail(error: Exception, status: int) -> None:
    print(f"training-worker: {error}", file=sys.stderr)
    sys.exit(status)

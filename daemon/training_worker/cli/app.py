"""The commands, and how their errors end: one line with the cause, and an exit status by who must act."""

import asyncio
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from training_schemas.validation import InvalidMessageError
from training_worker.cli.plan_command import plan
from training_worker.errors import DeadLetterError, NoGpuError, SettingsError, TrainingWorkerError
from training_worker.version import __version__

if TYPE_CHECKING:
    from training_worker.observations import Observer
    from training_worker.settings import Settings

# What a command needs is imported by the command: the daemon has no use for the demo, nor `presets` for AMQP.

# sysexits(3): the input is wrong, the broker is unreachable, the operator must change something.
EX_DATAERR = 65
EX_UNAVAILABLE = 69
EX_CONFIG = 78
CREDENTIALS = {"TRAINING_AMQP_URL_FILE", "TRAINING_AMQP_KEY_FILE"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def app() -> None:
    """Train FLUX and SDXL adapters on GPU hosts, from a RabbitMQ queue.

    The client's commands find the broker by TRAINING_AMQP_URL, and the fleet by TRAINING_PREFIX.
    """


@app.command()
@click.option("--config", type=click.Path(path_type=Path), help="Settings file (TOML).")
@click.option("--verbose", is_flag=True, help="Log more.")
@click.option(
    "--check",
    is_flag=True,
    help="Only read the settings, except the broker's address, look for the GPUs, and report what is wrong.",
)
def run(config: Path | None, *, verbose: bool, check: bool) -> None:
    """Run the daemon on this host until it is stopped.

    SIGTERM returns a running job to the queue; SIGINT finishes it first; another one ends it at once. SIGHUP restarts
    the daemon in place, while training continues.
    """
    from training_worker.gpu.devices import worker_gpus  # noqa: PLC0415
    from training_worker.logging_config import configure_logging  # noqa: PLC0415
    from training_worker.settings import load_settings  # noqa: PLC0415
    from training_worker.worker.stages import Ending  # noqa: PLC0415
    from training_worker.worker.systemd_notify import Notifier  # noqa: PLC0415
    from training_worker.worker.worker import Worker  # noqa: PLC0415

    if check:
        worker_gpus(load_settings(config, _without_credentials(os.environ)))
        return
    settings = load_settings(config, os.environ)
    configure_logging(verbose=verbose)
    devices = worker_gpus(settings)
    with _observed(settings) as observe:
        ending = asyncio.run(Worker(settings, devices, observe, Notifier(os.environ)).run())
    if ending is Ending.REPLACED:
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - this very program
    sys.exit(1 if ending is Ending.ABORTED else 0)


def _without_credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a check: what systemd runs on a reload cannot see the credentials of the daemon."""
    rest = {name: value for name, value in environ.items() if name not in CREDENTIALS}
    # Any address with which all settings for TLS make sense.
    return rest | {"TRAINING_AMQP_URL": "amqps://localhost/"}


@contextmanager
def _observed(settings: "Settings") -> "Iterator[Observer]":
    """Yield the observer of the worker: it serves the metrics, if the settings ask for them."""
    if settings.metrics_port is None:
        yield lambda _: None
        return
    from training_worker.instrumentation.http_server import served  # noqa: PLC0415

    with served(settings.metrics_host, settings.metrics_port, settings.state_dir) as observe:
        yield observe


@app.command()
@click.argument("file")
@click.option("--watch", is_flag=True, help="Show the job until it ends.")
def submit(file: str, *, watch: bool) -> None:
    """Publish the job that FILE holds as JSON, or standard input for -."""
    from training_worker.cli.job_commands import submit_file  # noqa: PLC0415

    sys.exit(submit_file(file, watch=watch))


@app.command()
@click.argument("job_id")
def watch(job_id: str) -> None:
    """Show a job of the last day until it ends."""
    from training_worker.cli.job_commands import watch_job  # noqa: PLC0415

    sys.exit(watch_job(job_id))


@app.command()
@click.argument("job_id")
def cancel(job_id: str) -> None:
    """Cancel a job, waiting or running, and show which it was."""
    from training_worker.cli.job_commands import cancel_job  # noqa: PLC0415

    sys.exit(cancel_job(job_id))


@app.command()
@click.argument("job_id")
def checkpoint(job_id: str) -> None:
    """Have a running job save a checkpoint now."""
    from training_worker.cli.job_commands import checkpoint_job  # noqa: PLC0415

    sys.exit(checkpoint_job(job_id))


@app.command()
@click.argument("job_id")
def sample(job_id: str) -> None:
    """Have a running job draw its sample images now."""
    from training_worker.cli.job_commands import sample_job  # noqa: PLC0415

    sys.exit(sample_job(job_id))


@app.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def workers(*, as_json: bool) -> None:
    """Show the workers that were online within the last minutes: their GPUs, and what each of them does.

    The exit status is 1 if there is none.
    """
    from training_worker.cli.worker_commands import show_workers  # noqa: PLC0415

    sys.exit(show_workers(as_json=as_json))


@app.command()
@click.argument("worker_id", metavar="WORKER|all")
def drain(worker_id: str) -> None:
    """Have a worker finish what it trains, consume nothing new, and end."""
    from training_worker.cli.job_commands import command_worker  # noqa: PLC0415

    sys.exit(command_worker(worker_id, "drain"))


@app.command()
@click.argument("worker_id", metavar="WORKER|all")
def pause(worker_id: str) -> None:
    """Have a worker consume nothing new until it is resumed."""
    from training_worker.cli.job_commands import command_worker  # noqa: PLC0415

    sys.exit(command_worker(worker_id, "pause"))


@app.command()
@click.argument("worker_id", metavar="WORKER|all")
def resume(worker_id: str) -> None:
    """Have a paused worker consume jobs again."""
    from training_worker.cli.job_commands import command_worker  # noqa: PLC0415

    sys.exit(command_worker(worker_id, "resume"))


@app.group()
def dead() -> None:
    """Look at dead letters, put their jobs back, or drop them."""


@dead.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(*, as_json: bool) -> None:
    """List the dead-letter queue, oldest first."""
    from training_worker.cli.dead_letter_commands import list_dead_letters  # noqa: PLC0415

    list_dead_letters(as_json=as_json)


@dead.command()
@click.argument("job_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(job_id: str, *, as_json: bool) -> None:
    """Show all about a job that gave up: why, its attempts, its last output, and the job."""
    from training_worker.cli.dead_letter_commands import show_dead_letters  # noqa: PLC0415

    show_dead_letters(job_id, as_json=as_json)


@dead.command()
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB_ID...")
def requeue(job_ids: tuple[str, ...]) -> None:
    """Put jobs back: their attempts are counted again from none, and resume from the last checkpoint."""
    from training_worker.cli.dead_letter_commands import requeue_dead_letters  # noqa: PLC0415

    requeue_dead_letters(job_ids)


@dead.command()
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB_ID...")
def drop(job_ids: tuple[str, ...]) -> None:
    """Drop all dead letters of these jobs for good."""
    from training_worker.cli.dead_letter_commands import drop_dead_letters  # noqa: PLC0415

    drop_dead_letters(job_ids)


app.add_command(plan)


@app.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def presets(*, as_json: bool) -> None:
    """List the presets."""
    from training_worker.cli.plan_output import show_presets  # noqa: PLC0415

    show_presets(as_json=as_json)


@app.command()
@click.option("--config", type=click.Path(path_type=Path), help="Settings file of the worker (TOML).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(config: Path | None, *, as_json: bool) -> None:
    """Show what this host has and lacks for training, and what fixes it.

    The exit status is 1 if anything is an error. Nothing is changed, and no GPU memory is used.
    """
    from training_worker.cli.doctor_command import show_findings  # noqa: PLC0415

    sys.exit(show_findings(config, as_json=as_json))


@app.command()
@click.option("--config", type=click.Path(path_type=Path), help="Settings file of the worker (TOML).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--compile", "compiled", is_flag=True, help="Try compiled blocks as well, which takes minutes.")
@click.option("--cpu", is_flag=True, help="Try the CPU's kernels in small, to see what this does without a GPU.")
def selftest(config: Path | None, *, as_json: bool, compiled: bool, cpu: bool) -> None:
    """Try on each GPU which kernels are right, and how fast it is, with each engine's own interpreter.

    The exit status is 1 if a GPU has no right kernel. Do not run it while a job trains there: the daemon makes the
    same test by itself, at its start, and remembers it.
    """
    from training_worker.cli.selftest_command import run_self_tests  # noqa: PLC0415

    arguments = [*(["--compile"] if compiled else []), *(["--device", "cpu"] if cpu else [])]
    sys.exit(run_self_tests(config, arguments, as_json=as_json))


@app.command()
@click.option("--per-gpu", is_flag=True, help="A unit for each GPU, training-worker@N, in place of one for all.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--undo", is_flag=True, help="Remove what was installed; settings and state stay.")
@click.option("--root", type=click.Path(path_type=Path), default=Path("/"), help="The root of an image, for its build.")
def install(root: Path, *, per_gpu: bool, dry_run: bool, undo: bool) -> None:
    """Put the units of systemd in place on this host, and show each step."""
    from training_worker.cli.systemd_units import install_units  # noqa: PLC0415

    install_units(root, per_gpu=per_gpu, dry_run=dry_run, undo=undo)


@app.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("demo-output"), help="Where everything goes.")
@click.option("--steps", type=click.IntRange(min=2), default=30, show_default=True, help="Optimizer steps.")
def demo(output: Path, steps: int) -> None:
    """Train a tiny LoRA on this machine, from the queue to the adapter, without a GPU."""
    from training_worker.cli.demo_command import run_demo  # noqa: PLC0415

    run_demo(output, steps)


def main() -> None:
    """Run the program ``training-worker``."""
    # The AMQP libraries log every lost connection as an error, with a traceback. Our own code reports it once.
    logging.basicConfig(level=logging.CRITICAL)
    try:
        app(prog_name="training-worker")
    except InvalidMessageError as error:
        for fault in error.faults:
            print(f"training-worker: {fault.path or 'message'}: {fault.reason}", file=sys.stderr)
        sys.exit(EX_DATAERR)
    except (SettingsError, NoGpuError) as error:
        _fail(error, EX_CONFIG)
    except DeadLetterError as error:
        _fail(error, 1)
    except TrainingWorkerError as error:
        _fail(error, EX_UNAVAILABLE)


def _fail(error: Exception, status: int) -> None:
    from training_worker.worker.systemd_notify import Notifier  # noqa: PLC0415

    print(f"training-worker: {error}", file=sys.stderr)
    # Shown by `systemctl status` for a unit that did not start.
    Notifier(os.environ).status(str(error))
    sys.exit(status)

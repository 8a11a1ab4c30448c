"""The program: from the first record to the last."""

import os
import shutil
import sys
import tempfile
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..common.export.files import SAMPLE
from ..common.protocol.attempt_folder import make_attempt_folder
from ..common.protocol.exit_code import ExitCode
from ..common.protocol.failures import TrainingFailure, TrainingStopped, report_failure
from ..common.protocol.gpu_memory import peak_vram_mib
from .buckets import bucket_finder
from .config import check_config, upstream_config
from .dataset import read_dataset
from .export import Export, describe
from .failures import failure_of
from .model import check_model
from .progress_writer import ProgressWriter
from .run import TrainingRun
from .spec import FLUX, Spec, read_spec
from .stop_signals import Control
from .versions import versions

PROGRESS_FILE = "progress.jsonl"
# The folder of upstream's caches in the run's.
SCRATCH = "tmp"


def main() -> int:
    """Train as specified in the run folder that is named on the command line."""
    if len(sys.argv) != 2:  # noqa: PLR2004
        print(f"usage: {sys.argv[0]} RUN_FOLDER", file=sys.stderr)  # noqa: T201
        return 2
    folder = Path(sys.argv[1])
    try:
        progress = ProgressWriter(folder / PROGRESS_FILE)
    except OSError as error:
        print(f"cannot start: {error}", file=sys.stderr)  # noqa: T201 # there is no file for records
        return ExitCode.FAILED
    control = Control(folder, progress)
    control.listen()
    return run(folder, progress, control)


def run(folder: Path, progress: ProgressWriter, control: Control) -> int:
    """Run to the last record, whatever happens."""
    try:
        train(folder, progress, control)
    except TrainingStopped as stop:
        _end(control)
        progress.write("stopped", step=stop.step, why=stop.why)
        return ExitCode.STOPPED
    except Exception as error:  # noqa: BLE001 # reported, as whatever it is
        failure = failure_of(error, progress.current_phase)
        if failure is not error:
            traceback.print_exc()
        _end(control)
        _report(failure, progress)
        return ExitCode.FAILED
    return ExitCode.DONE


def _end(control: Control) -> None:
    """Before the last record, which may need the room on a full disk."""
    control.stop_listening()
    control.clean_up()


def _report(failure: TrainingFailure, progress: ProgressWriter) -> None:
    faults = [asdict(fault) for fault in failure.faults]
    report_failure(
        failure, lambda: progress.write("failed", reason=failure.reason, message=str(failure), faults=faults)
    )


def train(folder: Path, progress: ProgressWriter, control: Control) -> None:
    """Check, train, export, and report all of it up to the last record."""
    progress.phase("starting")
    control.check()
    spec = read_spec(folder)
    prepare(folder, spec, control)
    check_config(spec.config)
    dataset = read_dataset(spec, bucket_finder(spec.config), progress, control)
    lines = folder / "dataset.jsonl"
    dataset.write(lines, spec)
    summary = dataset.summary()
    progress.write("dataset", summary=summary)
    for message in [*dataset.warnings(), *standing_warnings(spec)]:
        progress.warn(message)
    check_model(spec.model, spec.training_type)
    control.check()
    training = TrainingRun(spec, upstream_config(spec, lines), progress, control)
    export = Export(spec, summary["digest"])
    training.train()
    control.check()
    control.stop_listening()
    progress.phase("exporting")
    checkpoint: Any = training.checkpoint
    files = export.write(checkpoint)
    artifacts = describe({**files, **dict.fromkeys(training.samples, SAMPLE)}, spec.attempt)
    control.clean_up()
    progress.write(
        "done",
        steps=spec.total,
        firstLoss=training.losses[0],
        lastLoss=training.losses[-1],
        artifacts=artifacts,
        peakVramMib=peak_vram_mib(),
        versions=versions(),
    )


def prepare(folder: Path, spec: Spec, control: Control) -> None:
    """Make the folders of a run; what upstream leaves behind goes when it ends.

    Raises:
        TrainingFailure: Results cannot be written.
    """
    make_attempt_folder(spec.attempt)
    scratch = folder / SCRATCH
    scratch.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    if spec.device == "cpu":  # accelerate takes a GPU where it finds one
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def clean_up() -> None:
        for path in (spec.upstream, scratch, *spec.attempt.glob(".*.partial")):
            shutil.rmtree(path, ignore_errors=True)

    control.clean_up = clean_up


def standing_warnings(spec: Spec) -> list[str]:
    """What is wrong with upstream and cannot be put right from outside, where it matters for the run."""
    found = []
    if spec.training_type == FLUX:
        found.append(
            "invoke-training does not subtract the shift of FLUX's autoencoder: it trains on latents that lie beside "
            "those that FLUX draws"
        )
    if spec.resume_from is not None:
        found.append(f"invoke-training resumes nothing: {spec.resume_from} is passed over, training starts from step 0")
    return found

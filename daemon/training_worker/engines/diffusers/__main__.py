"""The trainer program: ``python -m training_worker.engines.diffusers RUN_FOLDER``, or ``--standby`` in its place.

It reads ``spec.json`` and appends to ``progress.jsonl`` there. Its exit code repeats the last record in short. On
standby it loads its libraries first, and reads the run folder's path later.
"""

import argparse
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from training_schemas.progress import DatasetRecord, FailedRecord, Phase, StoppedRecord, WarningRecord
from training_schemas.spec import FluxLoraParameters, RunSpec, SdxlParameters
from training_worker.engines.common.protocol.attempt_folder import make_attempt_folder
from training_worker.engines.common.protocol.exit_code import ExitCode
from training_worker.engines.common.protocol.failures import (
    TrainingFailure,
    TrainingStopped,
    failure_of,
    report_failure,
)
from training_worker.engines.diffusers.data.buckets import DIVISORS
from training_worker.engines.diffusers.data.dataset import Dataset, read_dataset
from training_worker.engines.diffusers.models.folder import check_model_folder
from training_worker.engines.diffusers.protocol.preflight import read_spec
from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter
from training_worker.engines.diffusers.protocol.stop_signals import Control
from training_worker.engines.diffusers.standby import load_libraries, wait_for_run
from training_worker.engines.diffusers.training.worker_processes import LEADER, end_with_leader, progress_file

# Where the images of a data set that keeps them inside of larger files are written to.
EXTRACTED = "dataset"


def main() -> ExitCode:
    """Train as specified in the run folder that is named on the command line, or on standard input later."""
    parser = argparse.ArgumentParser(description="Train as specified in a run folder.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("run_folder", type=Path, nargs="?")
    parser.add_argument("--rank", type=int, default=LEADER, help="which GPU of the job; the first starts the others")
    source.add_argument("--standby", action="store_true", help="wait for the path of the run folder on standard input")
    arguments = parser.parse_args()
    # Without a GPU the library warns, each time that it is imported, of kernels that only inference would use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not arguments.standby:
        return train(arguments.run_folder, arguments.rank)
    load_libraries()
    folder = wait_for_run()
    return ExitCode.DONE if folder is None else train(folder)


def train(folder: Path, rank: int = LEADER) -> ExitCode:
    """Train as specified in this run folder, on the GPU of this rank."""
    control = Control(folder)
    if rank == LEADER:
        control.listen()
    else:
        end_with_leader()
    try:
        progress = ProgressWriter(folder / progress_file(rank))
    except OSError as error:
        print(f"cannot start: {error}", file=sys.stderr)  # noqa: T201 # there is no file for records
        return ExitCode.FAILED
    with progress:
        code = run(folder, progress, control, rank)
    control.stop_listening()
    return code


def run(folder: Path, progress: ProgressWriter, control: Control, rank: int = LEADER) -> ExitCode:
    """Run to the last record, whatever happens."""
    try:
        return _train_or_stop(folder, progress, control, rank)
    except Exception as error:  # noqa: BLE001 # reported, as whatever it is
        failure = failure_of(error, progress.current_phase)
        if failure is not error:
            traceback.print_exc()
        _report(failure, progress)
        return ExitCode.FAILED


def _train_or_stop(folder: Path, progress: ProgressWriter, control: Control, rank: int) -> ExitCode:
    try:
        if rank == LEADER:
            _train(folder, progress, control)
        else:
            _help(folder, rank, progress)
    except TrainingStopped as stop:
        progress.write(StoppedRecord, step=stop.step, why=stop.why)
        return ExitCode.STOPPED
    return ExitCode.DONE


def _report(failure: TrainingFailure, progress: ProgressWriter) -> None:
    fields = {"reason": failure.reason, "message": str(failure), "faults": failure.faults}
    report_failure(failure, lambda: progress.write(FailedRecord, **fields))


def _train(folder: Path, progress: ProgressWriter, control: Control) -> None:
    progress.phase(Phase.STARTING)
    control.check()
    spec, parameters = read_spec(folder)
    dataset = _read_dataset(spec, parameters, folder / EXTRACTED, progress, control.check)
    progress.write(DatasetRecord, summary=dataset.report.summary)
    for message in dataset.report.warnings():
        progress.write(WarningRecord, message=message)
    check_model_folder(Path(spec.model_path), spec.training_type.family)
    make_attempt_folder(Path(spec.attempt_path))
    control.check()
    # This imports the training libraries, which takes seconds.
    from training_worker.engines.diffusers.training.run import TrainingRun  # noqa: PLC0415

    TrainingRun(folder, spec, parameters, dataset, progress, control).run()


def _help(folder: Path, rank: int, progress: ProgressWriter) -> None:
    from training_worker.engines.diffusers.training.process_group import ProcessGroup  # noqa: PLC0415
    from training_worker.engines.diffusers.training.worker_run import HelperRun  # noqa: PLC0415

    spec, parameters = read_spec(folder)
    # The leader has checked it all; of a table, each process writes its own copy.
    dataset = _read_dataset(spec, parameters, folder / f"{EXTRACTED}-{rank}", progress, lambda: None)
    group = ProcessGroup(folder, rank, spec.gpu_count, spec.device)
    HelperRun(folder, spec, parameters, dataset, progress).run(group)


def _read_dataset(
    spec: RunSpec,
    parameters: FluxLoraParameters | SdxlParameters,
    extract_to: Path,
    progress: ProgressWriter,
    check_stop: Callable[[], None],
) -> Dataset:
    return read_dataset(
        Path(spec.dataset_path),
        parameters,
        divisor=DIVISORS[spec.training_type.family],
        extract_to=extract_to,
        check_stop=check_stop,
        on_total=lambda total: progress.phase(Phase.CHECKING_DATASET, total=total),
    )


if __name__ == "__main__":
    sys.exit(main())

"""The program of the engine ``invoke`` where invoke-training is not: all but training itself."""

import dataclasses
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.engines.conftest import PARAMETERS, SDXL_PARAMETERS, WriteRun, read_records
from tests.engines.datasets import faults_of, read, write_example, write_image, write_lines, write_mask
from tests.engines.invoke_runs import PROGRAM, engine_config

from training_schemas.jobs import TrainingType
from training_schemas.progress import (
    CheckpointRecord,
    FailedRecord,
    FailureReason,
    Phase,
    PhaseRecord,
    StepRecord,
    StoppedRecord,
    WarningRecord,
)
from training_schemas.spec import LEASE_FILE, PROGRESS_FILE, REQUESTS_FILE, FluxLoraParameters, RunLease
from training_worker.engines.common.data.captions import full_caption
from training_worker.engines.common.export import kohya
from training_worker.engines.common.export.metadata import write_with_metadata
from training_worker.engines.common.protocol.failures import TrainingFailure, TrainingStopped
from training_worker.engines.diffusers.data.captions import base_caption
from training_worker.engines.diffusers.export.metadata import (
    Implementation,
    Result,
    result_metadata,
)
from training_worker.engines.invoke import program
from training_worker.engines.invoke.config import _field, check_config
from training_worker.engines.invoke.dataset import Dataset, read_dataset
from training_worker.engines.invoke.export import Export
from training_worker.engines.invoke.failures import failure_of
from training_worker.engines.invoke.model import check_model
from training_worker.engines.invoke.progress_writer import ProgressWriter
from training_worker.engines.invoke.run import TrainingRun
from training_worker.engines.invoke.spec import Spec
from training_worker.engines.invoke.stop_signals import Control
from training_worker.engines.invoke.versions import upstream_commit
from training_worker.engines.invoke.weights import flux_weights, sdxl_weights
from training_worker.version import __version__

pytestmark = pytest.mark.trainer

FLUX, SDXL = TrainingType.FLUX_LORA, TrainingType.SDXL_LORA
INVERSION = TrainingType.SDXL_TEXTUAL_INVERSION


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run sets what is the process's: its temporary folder and which cards it sees."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a run folder in this process; gives the exit code and the last record."""
    monkeypatch.setattr(Control, "stop_listening", lambda _: None)
    # As an environment without it, also where this one has it.
    monkeypatch.setitem(sys.modules, "invoke_training", None)

    def run(folder: Path) -> tuple[int, Any]:
        records = ProgressWriter(folder / PROGRESS_FILE)
        return program.run(folder, records, Control(folder, records)), read_records(folder)[-1]

    return run


def spec_of(dataset: Path, kind: TrainingType = FLUX, **changes: Any) -> Spec:
    """A spec for reading a data set."""
    parameters = msgspec.to_builtins(msgspec.structs.replace(PARAMETERS, **changes))
    return Spec(
        job_id="job",
        training_type=kind.value,
        model=Path("/model"),
        dataset=dataset,
        attempt=dataset.parent / "attempt",
        device="cpu",
        parameters=parameters,
        config=engine_config(kind),
        resume_from=None,
    )


def read_by(spec: Spec, tmp_path: Path) -> Dataset:
    """Read a data set at 64 x 64 pixels."""
    folder = tmp_path / "records"
    folder.mkdir(exist_ok=True)
    records = ProgressWriter(folder / PROGRESS_FILE)
    return read_dataset(spec, lambda _: (64, 64), records, Control(folder, records))


# The program.


@pytest.mark.parametrize(
    ("arguments", "code", "said"), [([], 2, "usage: "), (["/nowhere"], 1, "cannot start: [Errno 2]")]
)
def test_what_cannot_be_recorded_is_told_on_stderr(arguments: list[str], code: int, said: str) -> None:
    """There is nowhere else to tell it."""
    done = subprocess.run([sys.executable, "-I", PROGRAM, *arguments], text=True, capture_output=True, check=False)

    assert (code, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith(said)


def test_a_host_without_invoke_training_is_unfit(run_here: Any, write_run: WriteRun) -> None:
    """After all that can be known without it."""
    folder = write_run(engine_config=engine_config(FLUX))
    code, failed = run_here(folder)

    assert isinstance(failed, FailedRecord)
    assert (1, FailureReason.HOST_UNFIT) == (code, failed.reason)
    assert "install invoke-training" in failed.message
    records = read_records(folder)
    assert [Phase.STARTING, Phase.CHECKING_DATASET] == [one.phase for one in records if isinstance(one, PhaseRecord)]
    assert not (folder / "tmp").exists()


def test_a_spec_for_another_engine_is_refused(run_here: Any, write_run: WriteRun) -> None:
    """Which has no config of upstream's."""
    code, failed = run_here(write_run())

    assert (1, FailureReason.CONFIG_INVALID) == (code, failed.reason)
    assert ["$.engineConfig"] == [fault.path for fault in failed.faults]


def test_an_attempt_folder_that_cannot_be_made_is_told(run_here: Any, write_run: WriteRun, tmp_path: Path) -> None:
    """Somebody has put a file there."""
    (tmp_path / "file").touch()
    code, failed = run_here(write_run(attempt_path=str(tmp_path / "file/attempt"), engine_config=engine_config(FLUX)))

    assert (1, FailureReason.OUTPUT_INVALID) == (code, failed.reason)


def test_an_orphan_does_not_even_begin(run_here: Any, write_run: WriteRun) -> None:
    """There is nothing to save."""
    folder = write_run(engine_config=engine_config(FLUX))
    (folder / LEASE_FILE).write_bytes(msgspec.json.encode(RunLease(deadline=0, max_isolation=5)))
    code, stopped = run_here(folder)

    assert isinstance(stopped, StoppedRecord)
    assert (3, 0, "orphan") == (code, stopped.step, stopped.why)


# Records and control.


def test_a_record_that_was_half_written_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full for a moment."""
    records, write = ProgressWriter(tmp_path / PROGRESS_FILE), os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, data: write(file, data[:10]))
        with pytest.raises(OSError, match="No space left"):
            records.warn("first")
    records.warn("second")

    assert [(1, "first"), (2, "second")] == [
        (record.sequence, record.message) for record in read_records(tmp_path) if isinstance(record, WarningRecord)
    ]
    with pytest.raises(FileExistsError):
        ProgressWriter(tmp_path / PROGRESS_FILE)


def test_requests_are_taken_once_and_only_when_whole(tmp_path: Path) -> None:
    """What cannot be read is a warning each."""
    control = Control(tmp_path, ProgressWriter(tmp_path / PROGRESS_FILE))
    path = tmp_path / REQUESTS_FILE
    assert control.take_requests() == set()
    path.write_bytes(b'{"request": "sample"}\n{"request": "sample"}\n\xff\n[]\n{"request": []}\n{"request": "check')
    assert {"sample"} == control.take_requests()
    with path.open("ab") as file:
        file.write(b'point"}\n')
    assert {"checkpoint"} == control.take_requests()
    assert control.take_requests() == set()
    assert [WarningRecord] * 3 == [type(record) for record in read_records(tmp_path)]


def test_a_lease_is_looked_at_once_a_second(tmp_path: Path) -> None:
    """And what cannot be read is none."""
    now = [100.0]
    control = Control(tmp_path, ProgressWriter(tmp_path / PROGRESS_FILE), clock=lambda: now[0])
    (tmp_path / LEASE_FILE).write_text("{")
    assert control.why_stop() is None
    (tmp_path / LEASE_FILE).write_bytes(msgspec.json.encode(RunLease(deadline=90, max_isolation=5)))
    now[0] += 0.5
    assert control.why_stop() is None
    now[0] += 0.5
    assert control.why_stop() == "orphan"


def test_sigterm_ends_the_program_at_once_where_no_step_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else, and while a record is being written, it waits for the next step's end."""
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    records = ProgressWriter(tmp_path / PROGRESS_FILE)
    control = Control(tmp_path, records)
    control.clean_up = lambda: left.append(-1)
    control.step = 4
    control._on_signal(signal.SIGTERM, None)
    control.saved_step, records.busy = 4, True
    control._on_signal(signal.SIGTERM, None)
    assert [] == left
    with pytest.raises(TrainingStopped):
        control.check()
    records.busy = False
    control._on_signal(signal.SIGTERM, None)

    assert [-1, 3] == left
    stopped = read_records(tmp_path)[-1]
    assert isinstance(stopped, StoppedRecord)
    assert (4, "signal") == (stopped.step, stopped.why)


@pytest.mark.parametrize(
    ("error", "phase", "reason", "said"),
    [
        (MemoryError("too much"), "training", "outOfMemory", "out of memory in phase training: too much"),
        (torch.cuda.OutOfMemoryError("CUDA"), "sampling", "outOfMemory", "in phase sampling"),
        (OSError(errno.ENOSPC, "No space"), "training", "diskFull", "cannot write"),
        (RuntimeError("No space left on device (os error 28)"), "training", "diskFull", "cannot write"),
        (PermissionError(errno.EACCES, "no", "/a"), "checkpointing", "outputInvalid", "cannot write"),
        (PermissionError(errno.EACCES, "no", "/a"), "loadingModel", "modelInvalid", "cannot read"),
        (ModuleNotFoundError("No module named 'peft'"), "loadingModel", "hostUnfit", "'peft'; install"),
        (AssertionError(), "training", "trainerCrashed", "AssertionError: "),
        (TypeError("a NoneType"), "loadingModel", "trainerCrashed", "TypeError: a NoneType"),
    ],
)
def test_exceptions_are_told_by_what_they_mean(error: Exception, phase: str, reason: str, said: str) -> None:
    """As reasons of the closed list."""
    failure = failure_of(error, phase)

    assert FailureReason(reason) == failure.reason
    assert said in str(failure)


# The data set.


def test_a_data_set_is_read_as_the_built_in_trainer_reads_it(tmp_path: Path, robots: Path) -> None:
    """The same numbers, and the same digest."""
    spec = spec_of(robots)

    assert msgspec.to_builtins(read(robots).report.summary) == read_by(spec, tmp_path).summary()


def test_lines_with_masks_and_repeats_are_read_the_same(tmp_path: Path) -> None:
    """And written for upstream with absolute paths, final captions, and a line for each repeat."""
    folder = tmp_path / "set"
    write_image(folder / "a.png", (64, 80), "red")
    write_image(folder / "b.png", (60, 60), "blue")
    write_mask(folder / "m.png", (64, 80))
    write_mask(folder / "masks/b.png", (60, 60))
    write_lines(
        folder / "data.jsonl",
        {"image": "a.png", "text": " ä square ", "mask": "m.png", "repeats": 2},
        {"file_name": "b.png", "caption": "a rbt, blue"},
    )
    changes: dict[str, Any] = {"masked_loss": True, "trigger_word": "rbt", "caption_prefix": "photo of"}
    spec = spec_of(folder, **changes)
    dataset = read_by(spec, tmp_path)

    assert msgspec.to_builtins(read(folder, **changes).report.summary) == dataset.summary()
    assert ["1 of 2 images are enlarged, which blurs them"] == dataset.warnings()
    dataset.write(tmp_path / "lines", spec)
    first = {"image": str(folder / "a.png"), "text": "photo of rbt, ä square", "mask": str(folder / "m.png")}
    other = {"image": str(folder / "b.png"), "text": "photo of a rbt, blue", "mask": str(folder / "masks/b.png")}
    assert [first, first, other] == [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]


def test_all_faults_are_told_at_once_as_the_built_in_trainer_tells_them(tmp_path: Path) -> None:
    """By the same paths; somebody who fixes a data set should not have to try again for each fault."""
    images = [write_example(tmp_path / "set" / f"{name}.png") for name in "abcde"]
    images[0].write_bytes(images[0].read_bytes()[:50])
    images[1].with_suffix(".txt").unlink()
    images[2].with_suffix(".txt").write_text(" \n", encoding="utf-8")
    images[3].with_suffix(".txt").write_bytes(b"\xff")
    write_image(images[4], (31, 64))
    assert_same_faults(tmp_path / "set", tmp_path)


def test_faults_of_lines_are_the_same_too(tmp_path: Path) -> None:
    """Paths that lead out, also by links, and lines that are none."""
    folder = tmp_path / "set"
    image = write_image(folder / "a.png")
    (folder / "link.png").symlink_to("/etc/hostname")
    write_mask(folder / "black.png", grey=0)
    write_mask(folder / "small.png", (32, 32))
    lines = [
        "{",
        "[]",
        '{"text": "a"}',
        '{"image": "a.png"}',
        '{"image": "a.png", "text": null}',
        '{"image": "a.png", "text": 1}',
        '{"image": "a.png", "text": "  "}',
        '{"image": "a.png", "text": "a", "repeats": 0}',
        '{"image": "a.png", "text": "a", "repeats": true}',
        '{"image": "../a.png", "text": "a"}',
        '{"image": "link.png", "text": "a"}',
        f'{{"image": "{image}", "text": "a"}}',
        '{"image": "none.png", "text": "a"}',
        '{"image": "a.png", "text": "a", "mask": "black.png"}',
        '{"image": "a.png", "text": "a", "mask": "small.png"}',
        '{"image": "a.png", "text": "a", "mask": "../m.png"}',
        '{"image": "a.png", "text": "a"}',
    ]
    (folder / "metadata.jsonl").write_text("\ufeff" + "\n\n".join(lines), encoding="utf-8")
    assert_same_faults(folder, tmp_path, masked_loss=True)


def assert_same_faults(dataset: Path, tmp_path: Path, **changes: Any) -> None:
    """Both trainers refuse a data set for faults at the same places, of the same kinds."""
    with pytest.raises(TrainingFailure) as caught:
        read_by(spec_of(dataset, **changes), tmp_path)

    assert FailureReason.DATASET_INVALID == caught.value.reason
    expected = [(fault.path, fault.reason.partition(":")[0]) for fault in faults_of(dataset, **changes)]
    found = [(fault.path, fault.reason.partition(":")[0]) for fault in caught.value.faults]
    assert [path for path, _ in expected] == [path for path, _ in found]
    # Of lines that are no JSON, two parsers have two opinions.
    assert [reason for path, reason in expected if ".jsonl" not in path] == [
        reason for path, reason in found if ".jsonl" not in path
    ]


def test_tables_are_for_the_other_engine(tmp_path: Path) -> None:
    """Which is said, and not that there are no images."""
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / "data/train.parquet").touch()
    with pytest.raises(TrainingFailure, match=r"the engine invoke reads folders of images and .jsonl files") as caught:
        read_by(spec_of(folder), tmp_path)
    assert FailureReason.DATASET_INVALID == caught.value.reason


@pytest.mark.parametrize("caption", ["", "a square", "rbt", "a rbt, blue", "artbt", " rbts "])
@pytest.mark.parametrize("prefix", ["", " photo of "])
def test_captions_are_those_of_the_built_in_trainer(caption: str, prefix: str) -> None:
    """The trigger word is put only where it is not a word of its own."""
    settings: FluxLoraParameters = msgspec.structs.replace(PARAMETERS, trigger_word=" rbt", caption_prefix=prefix)

    assert base_caption(caption, settings) == full_caption(caption, " rbt", prefix)


def test_an_inversion_leaves_its_trigger_word_to_the_template(tmp_path: Path) -> None:
    """Also where a caption is empty, which is then enough."""
    write_example(tmp_path / "set/a.png", "")
    spec = spec_of(tmp_path / "set", INVERSION, trigger_word="<concept>")
    read_by(spec, tmp_path).write(tmp_path / "lines", spec)

    assert json.loads((tmp_path / "lines").read_text())["text"] == ""


# The model and the config.


def test_a_published_model_is_fit(tiny_model: Path, tiny_sdxl: Path) -> None:
    """Of its own family."""
    check_model(tiny_model, FLUX)
    check_model(tiny_sdxl, SDXL)
    with pytest.raises(TrainingFailure, match="a FluxPipeline, which SDXL_LORA cannot be trained on"):
        check_model(tiny_model, SDXL)
    with pytest.raises(TrainingFailure) as caught:
        check_model(tiny_model / "nowhere", SDXL)
    assert FailureReason.MODEL_MISSING == caught.value.reason


def test_what_transformers_4_would_read_wrongly_is_refused(tiny_sdxl: Path, tmp_path: Path) -> None:
    """It fills weights that it does not know by name with random numbers, and says nothing."""
    model = tmp_path / "model"
    shutil.copytree(tiny_sdxl, model)
    file = model / "text_encoder/model.safetensors"
    save_file({name.removeprefix("text_model."): weight for name, weight in load_file(file).items()}, file)
    (model / "tokenizer_2/merges.txt").unlink()
    (model / "vae/diffusion_pytorch_model.safetensors").rename(model / "vae/diffusion_pytorch_model.bin")
    with pytest.raises(TrainingFailure) as caught:
        check_model(model, SDXL)

    assert FailureReason.MODEL_INVALID == caught.value.reason
    assert [str(model / name) for name in ("vae", "text_encoder", "tokenizer_2/merges.txt")] == [
        fault.path for fault in caught.value.faults
    ]


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{"])
def test_files_that_are_no_weights_are_refused(tiny_model: Path, tmp_path: Path, content: bytes) -> None:
    """Without reading what they say is their header's length."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "text_encoder/model.safetensors").write_bytes(content)
    with pytest.raises(TrainingFailure) as caught:
        check_model(model, FLUX)
    assert FailureReason.MODEL_INVALID == caught.value.reason


def test_fields_are_named_without_the_kinds_that_were_tried() -> None:
    """Where upstream takes one of several, pydantic names each."""
    assert "$.engineConfig.optimizer.beta3" == _field(("optimizer", "AdamOptimizerConfig", "beta3"))
    assert "$.engineConfig.data_loader.x.0" == _field(("data_loader", "IMAGE_CAPTION_SD_DATA_LOADER", "x", 0))


@pytest.mark.parametrize(
    ("loader", "field"),
    [(None, "data_loader"), ({}, "data_loader.resolution"), ({"resolution": "64"}, "data_loader.resolution")],
)
def test_what_is_read_of_a_config_before_upstream_reads_it_must_be_there(loader: Any, field: str) -> None:
    """The size that images are looked at for."""
    with pytest.raises(TrainingFailure) as caught:
        check_config({"data_loader": loader})

    assert [f"$.engineConfig.{field}"] == [fault.path for fault in caught.value.faults]


# The run.


@pytest.fixture
def training(tmp_path: Path) -> Any:
    """A run of 5 steps as upstream sees it, of which nothing is trained."""
    (tmp_path / "attempt").mkdir()
    spec = spec_of(tmp_path / "set", SDXL, max_train_steps=5, checkpoint_every=2, sample_every=3)
    records = ProgressWriter(tmp_path / PROGRESS_FILE)
    config = SimpleNamespace(validation_prompts=["a robot"])
    run = TrainingRun(spec, config, records, Control(tmp_path, records))
    return SimpleNamespace(run=run, config=config, spec=spec, control=run._control, records=records)


def test_each_step_decides_what_upstream_does_after_it(training: Any) -> None:
    """By the job's intervals, and both at the end; the config that is logged before is no step."""
    training.run.on_log({"configuration": "long"}, None)
    wanted = []
    for step in range(1, 6):
        training.run.on_log({"train_loss": 0.5, "lr/text_encoder": 0.1, "lr/unet": 0.2}, step)
        config = training.config
        wanted.append((step % config.save_every_n_steps == 0, step % config.validate_every_n_steps == 0))

    assert [(False, False), (True, False), (False, True), (True, False), (True, True)] == wanted
    steps = [record for record in read_records(training.spec.attempt.parent) if isinstance(record, StepRecord)]
    assert [0.2] * 5 == [record.learning_rate for record in steps]


def test_the_rate_of_prodigy_is_that_which_it_found(training: Any) -> None:
    """Not the factor of it that was asked for."""
    training.run.on_log({"train_loss": 0.5, "lr/unet": 1.0, "lr/d*lr/unet": 1e-6}, 1)

    step = read_records(training.spec.attempt.parent)[-1]
    assert isinstance(step, StepRecord)
    assert step.learning_rate == 1e-6


def test_a_loss_that_is_not_finite_ends_the_run(training: Any) -> None:
    """Before upstream saves anything."""
    with pytest.raises(TrainingFailure, match="the loss of step 3 is nan") as caught:
        training.run.on_log({"train_loss": math.nan, "lr": 0.1}, 3)
    assert FailureReason.LOSS_NOT_FINITE == caught.value.reason


def save_upstream(training: Any, step: int, value: float) -> Any:
    """Save a checkpoint as upstream does, and tell of it."""
    path = training.spec.upstream / f"checkpoint-{step}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({"weight": torch.tensor([value])}, path)
    return SimpleNamespace(models=[SimpleNamespace(file_path=str(path))], step=step)


def test_checkpoints_are_moved_told_and_dropped(training: Any) -> None:
    """The last ones are kept, readable for everybody."""
    training.spec.parameters["keepCheckpoints"] = 2
    for step in (2, 4, 5):
        training.control.step = step
        training.run.on_save_checkpoint(save_upstream(training, step, step))

    folder = training.spec.attempt / "checkpoints"
    assert ["step-00000004", "step-00000005"] == sorted(path.name for path in folder.iterdir())
    assert folder / "step-00000005/kohya_lora.safetensors" == training.run.checkpoint
    assert 0o644 == training.run.checkpoint.stat().st_mode & 0o777
    told = [record for record in read_records(folder.parents[1]) if isinstance(record, CheckpointRecord)]
    assert [(step, str(folder / f"step-{step:08}")) for step in (2, 4, 5)] == [(one.step, one.path) for one in told]
    assert [] == list(training.spec.upstream.iterdir())


def test_a_checkpoint_of_what_is_no_number_is_not_kept(training: Any) -> None:
    """A finite loss may have gradients that are not."""
    with pytest.raises(TrainingFailure, match="weight is not finite after step 2") as caught:
        training.run.on_save_checkpoint(save_upstream(training, 2, math.inf))

    assert FailureReason.LOSS_NOT_FINITE == caught.value.reason
    assert not (training.spec.attempt / "checkpoints").exists()


# The result.


@pytest.mark.parametrize("kind", [FLUX, SDXL, INVERSION])
def test_files_say_what_they_are_as_those_of_the_built_in_trainer(tmp_path: Path, kind: TrainingType) -> None:
    """In the same words, with the same hash."""
    settings = msgspec.structs.replace(PARAMETERS if kind is FLUX else SDXL_PARAMETERS, trigger_word="rbt")
    spec = dataclasses.replace(spec_of(tmp_path, kind), parameters=msgspec.to_builtins(settings))
    result = Result(
        training_type=kind,
        parameters=settings,
        title="job",
        date="now",
        base_model="model",
        dataset_hash="hash",
        step=settings.max_train_steps,
        worker_version=__version__,
    )
    tensors = {"a": torch.randn(3, 2), "b": torch.randn(2)}
    write_with_metadata(tensors, tmp_path / "ours", result_metadata(result, Implementation.DIFFUSERS))
    Export(spec, "hash")._write_file(tensors, tmp_path / "theirs", "diffusers")

    ours, theirs = metadata_of(tmp_path / "ours"), metadata_of(tmp_path / "theirs")
    assert datetime.fromisoformat(theirs.pop("modelspec.date")).tzinfo
    assert {name: value for name, value in ours.items() if name != "modelspec.date"} == theirs
    assert 0o644 == (tmp_path / "theirs").stat().st_mode & 0o777


def metadata_of(path: Path) -> dict[str, str]:
    """What a file says of itself."""
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
        return metadata


def test_peft_s_folder_becomes_diffusers_file_with_its_scale(tmp_path: Path) -> None:
    """Upstream's alpha is 1, and a file of ours has the rank for one."""
    folder = tmp_path / "transformer"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"lora_alpha": 1.0, "r": 4}')
    layers = [f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
    weights = {f"base_model.model.{layer}.lora_A.weight": torch.randn(4, 8) for layer in layers}
    weights |= {f"base_model.model.{layer}.lora_B.weight": torch.randn(8, 4).bfloat16() for layer in layers}
    save_file(weights, folder / "adapter_model.safetensors")

    ours = flux_weights(tmp_path)
    converted = kohya.flux_to_kohya(ours)

    first = layers[0]
    assert {f"transformer.{key.removeprefix('base_model.model.')}" for key in weights} == ours.keys()
    expected = weights[f"base_model.model.{first}.lora_B.weight"].float() / 4
    assert torch.equal(expected, ours[f"transformer.{first}.lora_B.weight"])
    assert torch.equal(expected, converted["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"][:8, :4])
    assert 12 == converted["lora_unet_double_blocks_0_img_attn_qkv.alpha"]


def test_upstream_s_file_of_sdxl_gets_the_names_of_the_model_s_layers(tiny_sdxl: Path, tmp_path: Path) -> None:
    """Whose dots upstream has made underscores, as they are in names, too."""
    modules = {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0": (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
        ),
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
        ),
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
    }
    tensors: dict[str, torch.Tensor] = {}
    for module in modules:
        tensors[f"{module}.lora_down.weight"] = torch.ones(2, 8)
        tensors[f"{module}.lora_up.weight"] = torch.ones(8, 2)
        tensors[f"{module}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "lora.safetensors")

    ours = sdxl_weights(tmp_path / "lora.safetensors", tiny_sdxl)

    assert {f"{layer}.lora_{half}.weight" for layer in modules.values() for half in "AB"} == ours.keys()
    assert {0.5} == {one.max().item() for name, one in ours.items() if name.endswith("lora_B.weight")}
    assert kohya.sdxl_to_kohya(ours)


def test_upstream_s_commit_is_known_however_it_was_installed(tmp_path: Path) -> None:
    """From its repository, or from a folder that is a clone of it, and from neither."""
    git = tmp_path / "a clone/.git"
    (git / "refs/heads").mkdir(parents=True)
    here = {"url": (tmp_path / "a clone").as_uri(), "dir_info": {"editable": True}}
    assert "abc" == upstream_commit({"url": "https://host/repository", "vcs_info": {"commit_id": "abc"}})
    assert upstream_commit({}) is None
    assert upstream_commit(here) is None
    (git / "HEAD").write_text("def\n")
    assert "def" == upstream_commit(here)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text("# pack-refs\nfee refs/heads/main\n")
    assert "fee" == upstream_commit(here)
    (git / "refs/heads/main").write_text("ace\n")
    assert "ace" == upstream_commit(here)

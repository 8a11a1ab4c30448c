"""The engine ``invoke`` against invoke-training itself, on tiny models: what is started, reported, stopped and left."""

import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, StableDiffusionXLPipeline
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from tests.engines.conftest import WriteRun, read_records
from tests.engines.invoke_runs import TOKEN, engine_config, start

from training_schemas.jobs import TrainingType
from training_schemas.progress import (
    AnyRecord,
    CheckpointRecord,
    DatasetRecord,
    DoneRecord,
    FailedRecord,
    FailureReason,
    Phase,
    PhaseRecord,
    SampleRecord,
    StepRecord,
    StoppedRecord,
    WarningRecord,
)
from training_schemas.spec import LEASE_FILE, REQUESTS_FILE, RunLease
from training_worker.engines.common.export.files import ADAPTER_FILE
from training_worker.engines.common.export.kohya import flux_to_kohya

pytestmark = [
    pytest.mark.trainer,
    pytest.mark.invoke,
]

Record = TypeVar("Record", bound=AnyRecord)
TIMEOUT = 240


def of_type(records: list[AnyRecord], kind: type[Record]) -> list[Record]:
    """Pick the records of one kind."""
    return [record for record in records if isinstance(record, kind)]


def phases(records: list[AnyRecord]) -> list[Phase]:
    """List the phases in their order."""
    return [record.phase for record in of_type(records, PhaseRecord)]


def run_to_end(folder: Path) -> tuple[int, list[AnyRecord]]:
    """Run a run folder; gives exit code and records."""
    with start(folder) as program:
        code = program.wait(TIMEOUT)
    return code, read_records(folder)


def wait_for(program: "subprocess.Popen[bytes]", folder: Path, seen: Callable[[list[AnyRecord]], object]) -> None:
    """Wait until the records are so, or the program has ended."""
    while program.poll() is None and not seen(read_records(folder)):
        time.sleep(0.02)


def stepped(records: list[AnyRecord]) -> bool:
    """Whether a step was taken."""
    return bool(of_type(records, StepRecord))


def result_of(code: int, records: list[AnyRecord], folder: Path) -> DoneRecord:
    """Give the last record of a run that went well, whose files are what it lists, and which left nothing else."""
    done = records[-1]
    assert isinstance(done, DoneRecord), (folder / "stderr.log").read_text()[-3000:]
    assert code == 0
    assert list(range(1, len(records) + 1)) == [record.sequence for record in records]
    attempt = folder / "attempt"
    for artifact in done.artifacts:
        path = attempt / artifact.path
        assert (artifact.size_bytes, 0o644) == (path.stat().st_size, path.stat().st_mode & 0o777)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == artifact.sha256
    assert {"upstream", "tmp"}.isdisjoint(path.name for path in [*attempt.iterdir(), *folder.iterdir()])
    assert {"python", "torch", "diffusers", "transformers", "peft", "accelerate"} < done.versions.keys()
    assert len(done.versions["invoke_training"]) > 40  # a version and a commit
    return done


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a file."""
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
        return metadata


def flux_prediction(transformer: torch.nn.Module) -> torch.Tensor:
    """Predict something, always the same."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    with torch.no_grad():
        predicted: torch.Tensor = transformer(
            hidden_states=noise(1, 16, 64),
            encoder_hidden_states=noise(1, 8, 32),
            pooled_projections=noise(1, 32),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([1.0]),
            img_ids=torch.zeros(16, 3),
            txt_ids=torch.zeros(8, 3),
            return_dict=False,
        )[0]
    return predicted


def sdxl_prediction(pipeline: Any) -> torch.Tensor:
    """The same for SDXL's UNet."""
    config, generator = pipeline.unet.config, torch.Generator().manual_seed(0)
    text, pooled = config.cross_attention_dim, pipeline.text_encoder_2.config.projection_dim
    with torch.no_grad():
        predicted: torch.Tensor = pipeline.unet(
            torch.randn(1, 4, 8, 8, generator=generator),
            torch.tensor([500]),
            torch.randn(1, 77, text, generator=generator),
            added_cond_kwargs={
                "text_embeds": torch.randn(1, pooled, generator=generator),
                "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
            },
            return_dict=False,
        )[0]
    return predicted


def test_a_flux_lora_from_the_data_set_to_the_adapter(write_run: WriteRun, tiny_model: Path) -> None:
    """With checkpoints on the way, of which few are kept, a request, and the scale that it learned with."""
    kind = TrainingType.FLUX_LORA
    folder = write_run(
        training_type=kind,
        resume_from="/elsewhere",
        max_train_steps=5,
        checkpoint_every=2,
        keep_checkpoints=2,
        validation_prompts=["a small red robot"],
        trigger_word="TOK",
        lora_rank=3,
        engine_config=engine_config(kind, validation_prompts=["a small red robot"]),
    )
    (folder / REQUESTS_FILE).write_text('{"request": "sample"}\n{"request": "dance"}\n{"request": "chec')
    attempt = folder / "attempt"
    code, records = run_to_end(folder)

    done = result_of(code, records, folder)
    assert [
        Phase.STARTING,
        Phase.CHECKING_DATASET,
        Phase.LOADING_MODEL,
        Phase.TRAINING,
        Phase.SAMPLING,
        Phase.TRAINING,
        Phase.CHECKPOINTING,
        Phase.TRAINING,
        Phase.CHECKPOINTING,
        Phase.TRAINING,
        Phase.CHECKPOINTING,
        Phase.SAMPLING,
        Phase.EXPORTING,
    ] == phases(records)
    steps = of_type(records, StepRecord)
    assert [(step, 5, 0.01) for step in range(1, 6)] == [
        (record.step, record.total_steps, record.learning_rate) for record in steps
    ]
    assert (steps[0].loss, steps[-1].loss) == (done.first_loss, done.last_loss)
    assert [2, 4, 5] == [record.step for record in of_type(records, CheckpointRecord)]
    assert ["step-00000004", "step-00000005"] == sorted(path.name for path in (attempt / "checkpoints").iterdir())
    assert [1, 5] == [record.step for record in of_type(records, SampleRecord)]
    assert [
        ("pytorch_lora_weights.safetensors", "adapter"),
        ("kohya_lora.safetensors", "kohyaAdapter"),
        ("samples/step-00000001-00.png", "sample"),
        ("samples/step-00000005-00.png", "sample"),
    ] == [(artifact.path, artifact.kind) for artifact in done.artifacts]
    assert (attempt / "samples/step-00000005-00.png").read_bytes().startswith(b"\x89PNG")
    messages = " ".join(record.message for record in of_type(records, WarningRecord))
    assert all(part in messages for part in ("shift of FLUX", "/elsewhere is passed over", "dance"))
    lines = [json.loads(line) for line in (folder / "dataset.jsonl").read_text().splitlines()]
    assert all(line["text"].startswith("TOK, a small") for line in lines)

    metadata = metadata_of(attempt / "kohya_lora.safetensors")
    assert ("flux1", "3") == (metadata["ss_base_model_version"], metadata["ss_network_dim"])
    assert "TOK" == metadata["modelspec.trigger_phrase"]
    assert_same_flux_adapter(tiny_model, attempt)


def assert_same_flux_adapter(model: Path, attempt: Path) -> None:
    """The result predicts as PEFT's own folder of the same step does, and not as the base.

    diffusers reads kohya's names at the true width of FLUX alone; that file is to be the same in other names.
    """
    original = FluxTransformer2DModel.from_pretrained(model / "transformer")
    base = flux_prediction(original)
    expected = flux_prediction(PeftModel.from_pretrained(original, attempt / "checkpoints/step-00000005/transformer"))
    assert (expected - base).abs().max() > 1e-3
    pipeline = FluxPipeline.from_pretrained(model)
    pipeline.load_lora_weights(attempt / ADAPTER_FILE)
    torch.testing.assert_close(flux_prediction(pipeline.transformer), expected, rtol=0, atol=1e-5)
    converted = flux_to_kohya(load_file(attempt / ADAPTER_FILE))
    kohya = load_file(attempt / "kohya_lora.safetensors")
    assert converted.keys() == kohya.keys()
    assert all(torch.equal(weight, kohya[name]) for name, weight in converted.items())


def test_an_sdxl_lora_of_lines_with_masks_and_repeats(
    write_run: WriteRun, tiny_sdxl: Path, robots: Path, tmp_path: Path
) -> None:
    """In buckets of upstream's shapes, both encoders' outputs cached; its files are labelled as SDXL's."""
    kind, buckets = TrainingType.SDXL_LORA, {"target_resolution": 64, "start_dim": 32, "end_dim": 128}
    loader = {"aspect_ratio_buckets": {**buckets, "divisible_by": 32}}
    dataset = write_masked(robots, tmp_path / "lines")
    folder = write_run(
        training_type=kind,
        dataset_path=str(dataset),
        max_train_steps=3,
        masked_loss=True,
        aspect_ratio_buckets=True,
        lora_rank=3,
        engine_config=engine_config(kind, loader=loader, use_masks=True),
    )
    attempt = folder / "attempt"
    code, records = run_to_end(folder)

    done = result_of(code, records, folder)
    assert {Phase.CACHING_TEXT, Phase.CACHING_LATENTS} < set(phases(records))
    summary = of_type(records, DatasetRecord)[0].summary
    assert (10, 20, 10, {"64x64": 10}) == (summary.images, summary.samples, summary.masks, summary.buckets)
    assert ["adapter", "kohyaAdapter"] == [artifact.kind for artifact in done.artifacts]
    assert "sdxl_base_v1-0" == metadata_of(attempt / "kohya_lora.safetensors")["ss_base_model_version"]
    base = sdxl_prediction(StableDiffusionXLPipeline.from_pretrained(tiny_sdxl))
    predictions = []
    for file in (
        attempt / "checkpoints/step-00000003/kohya_lora.safetensors",
        attempt / "pytorch_lora_weights.safetensors",
        attempt / "kohya_lora.safetensors",
    ):
        pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
        pipeline.load_lora_weights(file)
        predictions.append(sdxl_prediction(pipeline))
    assert (predictions[0] - base).abs().max() > 1e-3
    torch.testing.assert_close(predictions[1], predictions[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(predictions[2], predictions[0], rtol=0, atol=1e-5)


def write_masked(robots: Path, folder: Path) -> Path:
    """Make lines of a folder, each image twice, with the image itself as its mask."""
    folder.mkdir()
    lines = []
    for image in sorted(robots.glob("*.png")):
        (folder / image.name).write_bytes(image.read_bytes())
        caption = image.with_suffix(".txt").read_text().strip()
        lines.append({"file_name": image.name, "caption": caption, "mask": image.name, "repeats": 2})
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_textual_inversion_and_its_two_files_of_tokens(write_run: WriteRun) -> None:
    """The template names the concept, and so captions do not."""
    kind = TrainingType.SDXL_TEXTUAL_INVERSION
    folder = write_run(training_type=kind, max_train_steps=2, trigger_word=TOKEN, engine_config=engine_config(kind))
    code, records = run_to_end(folder)

    done = result_of(code, records, folder)
    assert [("learned_embeds.safetensors", "embeddings")] == [(one.path, one.kind) for one in done.artifacts]
    path = folder / "attempt/learned_embeds.safetensors"
    assert {"clip_l": (2, 32), "clip_g": (2, 48)} == {name: (*one.shape,) for name, one in load_file(path).items()}
    assert "stable-diffusion-xl-v1-base/textual-inversion" == metadata_of(path)["modelspec.architecture"]
    assert TOKEN not in (folder / "dataset.jsonl").read_text()


@pytest.mark.parametrize("layout", ["trained_only_diffusers", "full_diffusers"])
def test_a_finetune_is_a_pipeline_with_the_scheduler_of_its_base(
    write_run: WriteRun, tiny_sdxl: Path, layout: str
) -> None:
    """Of which only the UNet differs."""
    kind = TrainingType.SDXL_FINETUNE
    folder = write_run(
        training_type=kind, max_train_steps=2, engine_config=engine_config(kind, save_checkpoint_format=layout)
    )
    code, records = run_to_end(folder)

    done = result_of(code, records, folder)
    assert {"pipeline"} == {artifact.kind for artifact in done.artifacts}
    result = folder / "attempt/pipeline"
    trained, base = (StableDiffusionXLPipeline.from_pretrained(path) for path in (result, tiny_sdxl))
    assert type(base.scheduler) is type(trained.scheduler)
    assert not torch.equal(sdxl_prediction(base), sdxl_prediction(trained))
    for part in ("vae", "text_encoder", "text_encoder_2", "scheduler"):
        for file in (tiny_sdxl / part).iterdir():
            assert file.read_bytes() == (result / part / file.name).read_bytes()


def test_sigterm_leaves_a_checkpoint_of_the_last_step(write_run: WriteRun) -> None:
    """And no result; what upstream left is gone."""
    kind = TrainingType.SDXL_LORA
    folder = write_run(training_type=kind, max_train_steps=100_000, engine_config=engine_config(kind))
    with start(folder) as program:
        wait_for(program, folder, stepped)
        program.send_signal(signal.SIGTERM)
        code = program.wait(TIMEOUT)

    assert_stopped(folder, code, "signal")


def test_an_orphan_leaves_the_same(write_run: WriteRun) -> None:
    """Its daemon is gone, and somebody else may have the job by now."""
    kind = TrainingType.SDXL_LORA
    folder = write_run(training_type=kind, max_train_steps=100_000, engine_config=engine_config(kind))
    with start(folder) as program:
        wait_for(program, folder, stepped)
        partial = folder / ".lease"
        partial.write_bytes(msgspec.json.encode(RunLease(deadline=time.time() - 10, max_isolation=5)))
        partial.rename(folder / LEASE_FILE)
        code = program.wait(TIMEOUT)

    assert_stopped(folder, code, "orphan")


def assert_stopped(folder: Path, code: int, why: str) -> None:
    """The last two records are a checkpoint, which is there, and the stop; nothing else is left."""
    checkpoint, stopped = read_records(folder)[-2:]
    assert isinstance(checkpoint, CheckpointRecord), (folder / "stderr.log").read_text()[-3000:]
    assert isinstance(stopped, StoppedRecord)
    assert (3, checkpoint.step, why) == (code, stopped.step, stopped.why)
    assert load_file(Path(checkpoint.path) / "kohya_lora.safetensors")
    assert ["checkpoints"] == [path.name for path in (folder / "attempt").iterdir()]
    assert not (folder / "tmp").exists()


def test_a_kill_leaves_nothing_that_looks_finished(write_run: WriteRun) -> None:
    """Between two checkpoints; those that were reported are whole."""
    kind = TrainingType.SDXL_LORA
    folder = write_run(
        training_type=kind, max_train_steps=100_000, checkpoint_every=1, engine_config=engine_config(kind)
    )
    with start(folder) as program:
        wait_for(program, folder, lambda records: len(of_type(records, CheckpointRecord)) > 2)
        program.kill()
        program.wait(TIMEOUT)

    last = of_type(read_records(folder), CheckpointRecord)[-1]
    assert load_file(Path(last.path) / "kohya_lora.safetensors")
    assert {path.name for path in (folder / "attempt").iterdir()} <= {"checkpoints", "upstream"}


def test_a_stop_before_the_first_step_is_heeded_at_once(write_run: WriteRun) -> None:
    """While upstream is imported and loads, which takes longer than anybody waits."""
    kind = TrainingType.SDXL_LORA
    folder = write_run(training_type=kind, engine_config=engine_config(kind))
    with start(folder) as program:
        wait_for(program, folder, lambda records: Phase.LOADING_MODEL in phases(records))
        time.sleep(0.5)
        program.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        code = program.wait(TIMEOUT)

    stopped = read_records(folder)[-1]
    assert isinstance(stopped, StoppedRecord)
    assert (3, 0, "signal") == (code, stopped.step, stopped.why)
    assert time.monotonic() - asked < 5


def test_a_loss_that_is_no_number_ends_the_run(write_run: WriteRun) -> None:
    """FLUX in float16, upstream's default, where upstream goes on to the end."""
    kind = TrainingType.FLUX_LORA
    folder = write_run(
        training_type=kind, max_train_steps=20, engine_config=engine_config(kind, weight_dtype="float16")
    )
    code, records = run_to_end(folder)

    failed = records[-1]
    assert isinstance(failed, FailedRecord)
    assert (1, FailureReason.LOSS_NOT_FINITE) == (code, failed.reason)
    assert [] == list((folder / "attempt").iterdir())


def test_what_upstream_cannot_read_of_a_config_is_named(write_run: WriteRun) -> None:
    """Each word of it, by its path in the spec."""
    kind = TrainingType.SDXL_FINETUNE
    config = engine_config(kind, loader={"center_crop": "often"}, pace="fast")
    code, records = run_to_end(write_run(training_type=kind, engine_config=config))

    failed = records[-1]
    assert isinstance(failed, FailedRecord)
    assert (1, FailureReason.CONFIG_INVALID) == (code, failed.reason)
    assert ["$.engineConfig.data_loader.center_crop", "$.engineConfig.pace"] == sorted(
        fault.path for fault in failed.faults
    )


def test_what_upstream_raises_is_a_crash_with_its_message(write_run: WriteRun) -> None:
    """As of two settings that it does not take together."""
    kind = TrainingType.SDXL_FINETUNE
    folder = write_run(training_type=kind, engine_config=engine_config(kind, loader={"random_flip": True}))
    code, records = run_to_end(folder)

    failed = records[-1]
    assert isinstance(failed, FailedRecord)
    assert (1, FailureReason.TRAINER_CRASHED) == (code, failed.reason)
    assert "ValueError: 'cache_vae_outputs' cannot be True" in failed.message
    assert "Traceback" in (folder / "stderr.log").read_text()

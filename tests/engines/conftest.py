"""What the trainer's tests share: a tiny model, a small data set, and runs over them."""

import os
import signal
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from training_schemas.jobs import EngineName, ModelFamily, TrainingType
from training_schemas.progress import AnyRecord, decode_record
from training_schemas.spec import (
    PROGRESS_FILE,
    SPEC_FILE,
    FluxLoraParameters,
    LoraTargets,
    LrScheduler,
    OptimizerName,
    Quantization,
    RunSpec,
    SdxlParameters,
    TimestepSampler,
    WeightDtype,
)

if TYPE_CHECKING:
    from tests.engines.trainers import BuildTrainer

    from training_worker.engines.diffusers.training.trainer import Trainer

# A developer may do without the trainer extra; CI may not.
if find_spec("diffusers") is None and "CI" not in os.environ:
    collect_ignore_glob = ["test_*.py"]

# What both families have.
COMMON: dict[str, Any] = {
    "resolution": 64,
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_train_steps": 6,
    "aspect_ratio_buckets": False,
    "random_crop": False,
    "random_flip": False,
    "masked_loss": False,
    "trigger_word": "",
    "caption_prefix": "",
    "caption_dropout": 0.0,
    "shuffle_captions": False,
    "learning_rate": 0.01,
    "text_encoder_learning_rate": 0.01,
    "lr_scheduler": LrScheduler.CONSTANT,
    "lr_warmup_steps": 0,
    "seed": 7,
    "gradient_checkpointing": False,
    "weight_dtype": WeightDtype.FLOAT32,
    "quantization": Quantization.NONE,
    "cache_text_encoder_outputs": True,
    "cache_vae_outputs": True,
    "train_text_encoder": False,
    "optimizer": OptimizerName.ADAMW,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "ema_decay": 0.0,
    "checkpoint_every": 0,
    "keep_checkpoints": 3,
    "sample_every": 0,
    "validation_prompts": [],
    "validation_inference_steps": 2,
    "lora_rank": 4,
    "lora_targets": LoraTargets.ATTENTION,
}
PARAMETERS = FluxLoraParameters(
    **COMMON,
    timestep_sampler=TimestepSampler.SHIFT,
    discrete_flow_shift=3.0,
    guidance_scale=1.0,
    clip_tokenizer_max_length=77,
    t5_tokenizer_max_length=64,
)
SDXL_PARAMETERS = SdxlParameters(
    **COMMON,
    min_snr_gamma=5.0,
    noise_offset=0.0,
    embedding_vectors=2,
    initial_token="",
)

WriteRun = Callable[..., Path]
Train = Callable[..., tuple[int, list[AnyRecord]]]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums come out the same in this process and in those it starts."""
    import torch  # noqa: PLC0415 # not at collection, where it may be missing

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX pipeline of random weights; not to be changed."""
    from training_worker.engines.diffusers.models.tiny import write_pipeline  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("model")
    write_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of SDXL."""
    from training_worker.engines.diffusers.models.tiny import write_pipeline  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("sdxl")
    write_pipeline(folder, ModelFamily.SDXL)
    return folder


@pytest.fixture(scope="session")
def robots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of ten robots; not to be changed."""
    from training_worker.engines.demo_dataset import write_dataset  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("robots")
    write_dataset(folder)
    return folder


@pytest.fixture
def parameters() -> FluxLoraParameters:
    """Settings of a short run."""
    return PARAMETERS


@pytest.fixture
def sdxl_parameters() -> SdxlParameters:
    """The same of SDXL."""
    return SDXL_PARAMETERS


@pytest.fixture
def write_run(tmp_path: Path, tiny_model: Path, tiny_sdxl: Path, robots: Path) -> WriteRun:
    """Write a run folder of the given name; what else is given replaces fields of its spec or its parameters."""

    def write(name: str = "run", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        top = {field: changes.pop(field) for field in RunSpec.__struct_fields__ if field in changes}
        training_type = top.get("training_type", TrainingType.FLUX_LORA)
        flux = training_type.family is ModelFamily.FLUX
        parameters = msgspec.structs.replace(PARAMETERS if flux else SDXL_PARAMETERS, **changes)
        spec = RunSpec(
            job_id="job",
            attempt=1,
            training_type=training_type,
            engine=EngineName.DIFFUSERS,
            model_path=str(tiny_model if flux else tiny_sdxl),
            dataset_path=str(robots),
            attempt_path=str(folder / "attempt"),
            resume_from=None,
            device="cpu",
            parameters=msgspec.to_builtins(parameters),
        )
        (folder / SPEC_FILE).write_bytes(msgspec.json.encode(msgspec.structs.replace(spec, **top)))
        return folder

    return write


@pytest.fixture
def train() -> Train:
    """Run a run folder in this process, by the clock and the writer that are given; gives exit code and records."""
    from training_worker.engines.diffusers.__main__ import run  # noqa: PLC0415
    from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter  # noqa: PLC0415
    from training_worker.engines.diffusers.protocol.stop_signals import Control  # noqa: PLC0415

    def train_here(
        folder: Path,
        clock: Callable[[], float] = time.time,
        writer: Callable[[Path], ProgressWriter] = ProgressWriter,
    ) -> tuple[int, list[AnyRecord]]:
        control = Control(folder, clock)
        previous = signal.getsignal(signal.SIGTERM)
        control.listen()
        try:
            with writer(folder / PROGRESS_FILE) as progress:
                code = run(folder, progress, control)
        finally:
            signal.signal(signal.SIGTERM, previous)
        return code, read_records(folder)

    return train_here


@pytest.fixture
def build(tiny_model: Path, tiny_sdxl: Path) -> "BuildTrainer":
    """Build trainers over the tiny models, by settings and a type of training (a FLUX LoRA where none is given)."""
    from tests.engines.trainers import build_trainer  # noqa: PLC0415

    def build_here(
        parameters: FluxLoraParameters | SdxlParameters, training_type: TrainingType = TrainingType.FLUX_LORA
    ) -> "Trainer":
        model = tiny_model if training_type.family is ModelFamily.FLUX else tiny_sdxl
        return build_trainer(model, parameters, training_type)

    return build_here


def read_records(folder: Path) -> list[AnyRecord]:
    """Decode all whole records of a run folder, none if its program has not got so far."""
    path = folder / PROGRESS_FILE
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [decode_record(line) for line in lines if line.endswith(b"\n")]

"""From an owned job to a spec that leaves nothing open, and from a finished attempt to the job's output."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from training_presets.engines import planned_engine
from training_presets.planner import plan_job
from training_schemas.jobs import EngineName, ModelFamily, TrainingType
from training_schemas.ledger import CheckpointSaved
from training_schemas.progress import Artifact, DoneRecord
from training_schemas.spec import FluxLoraParameters, RunSpec
from training_schemas.usage import Usage
from training_schemas.validation import convert_strictly
from training_worker.attempts.engine_selection import PREFERENCES, choose_engine, model_families, served_types
from training_worker.attempts.plan_choice import KEPT, kept_settings
from training_worker.attempts.result import Account, promote, read_result
from training_worker.attempts.run_history import resume_point
from training_worker.attempts.run_spec import Resolved, changes, resolve_spec
from training_worker.client.job_builder import make_job
from training_worker.errors import AttemptError
from training_worker.gpu.devices import GpuDevice, Room
from training_worker.ledger.job_history import JobHistory
from training_worker.queue.job_message import QueuedJob
from training_worker.runs.state_layout import attempt_folder
from training_worker.settings import EngineSettings, Settings
from training_worker.storage.reservations import Reservations
from training_worker.version import __version__
from training_worker.worker.worker import served_families

GPU = GpuDevice(uuid="GPU-1", name="NVIDIA L4", memory_mib=23034, simulated=False, usd_per_hour=None)
H100 = GpuDevice(uuid="GPU-2", name="NVIDIA H100 80GB HBM3", memory_mib=81559, simulated=False, usd_per_hour=None)
STAND_IN = GpuDevice(uuid="SIMULATED-0", name="Stand-in", memory_mib=23034, simulated=True, usd_per_hour=None)
ARTIFACT = Artifact(path="pytorch_lora_weights.safetensors", kind="adapter", size_bytes=3, sha256="00")
LOSSES: dict[str, Any] = {"first_loss": 1.0, "last_loss": 0.5, "fixed_loss_before": 1.0, "fixed_loss_after": 0.5}
RESULT = DoneRecord(sequence=9, time=1.0, steps=10, artifacts=[ARTIFACT], **LOSSES)
ACCOUNT = Account(
    started_at=1.0,
    finished_at=61.0,
    usage=Usage(gpu_seconds=60.0, cost_usd=0.5),
    predicted=None,
    changes={"batchSize": 1},
)


class Host:
    """A host with a data set, a model and a folder for outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs = folder / "models"
        for name in ("datasets/set", "models", "base"):
            (folder / name).mkdir(parents=True)
        self.settings = Settings(
            dataset_roots=[folder / "datasets"],
            output_roots=[self.outputs],
            models={"black-forest-labs/FLUX.1-dev": folder / "base", "gone": folder / "gone"},
        )
        self.reservations = Reservations(self.settings)

    def queued(self, training_type: str = "FLUX_LORA", **fields: Any) -> QueuedJob:
        """A job of this host, as it comes from a queue."""
        paths = {"dataset_path": str(self.folder / "datasets/set"), "output_path": str(self.outputs / "portrait")}
        job = make_job(training_type, job_id="a", **(paths | fields))
        return QueuedJob(job=job, plan=plan_job(job), submitted_at=0.0)

    def spec(self, attempt: int = 1, **fields: Any) -> RunSpec:
        """The spec of an attempt at such a job."""
        return self.resolved(attempt, **fields).spec

    def resolved(
        self,
        attempt: int = 1,
        before: JobHistory | None = None,
        device: GpuDevice = GPU,
        free_mib: int | None = None,
        **fields: Any,
    ) -> Resolved:
        """The same, with the choice that it comes from."""
        room = Room(device=device, free_mib=free_mib or device.memory_mib)
        with self.reservations.make("a") as reservation:
            return resolve_spec(
                self.queued(**fields), attempt, before or JobHistory(), room, self.settings, reservation
            )

    def refusal(self, **fields: Any) -> tuple[str, str]:
        """The reason and the message with which an attempt at such a job fails."""
        with pytest.raises(AttemptError) as caught:
            self.spec(**fields)
        return caught.value.reason, caught.value.message

    def train(self, attempt: int = 1, **fields: Any) -> RunSpec:
        """A spec, and the result that its trainer leaves."""
        spec = self.spec(attempt, **fields)
        (Path(spec.attempt_path) / ARTIFACT.path).write_bytes(b"abc")
        return spec


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host of this test."""
    return Host(tmp_path)


def checkpoint(path: Path) -> JobHistory:
    """A job that saved one checkpoint."""
    saved = CheckpointSaved(job_id="a", time=1.0, attempt=1, worker="w1", step=5, path=str(path))
    return JobHistory(checkpoints=(saved,))


def test_a_spec_leaves_nothing_open(host: Host) -> None:
    """Model, paths, device and every parameter: nothing is left for the trainer to guess."""
    resolved = host.resolved(attempt=3, max_train_steps=7)
    spec = resolved.spec

    assert spec == RunSpec(
        job_id="a",
        attempt=3,
        training_type=TrainingType.FLUX_LORA,
        engine=EngineName.DIFFUSERS,
        model_path=str(host.folder / "base"),
        dataset_path=str(host.folder / "datasets/set"),
        attempt_path=str(host.outputs / ".portrait.a.3"),
        resume_from=None,
        device="cuda",
        parameters=spec.parameters,
        cache_path="/var/lib/training-worker/caches",
        cache_limit_mib=20 * 1024,
        execution=resolved.choice.execution,
    )
    assert convert_strictly(spec.parameters, FluxLoraParameters) == resolved.choice.parameters
    assert list(host.outputs.iterdir()) == [Path(spec.attempt_path)]


def test_on_a_stand_in_a_job_is_trained_by_the_cpu(host: Host) -> None:
    """There is no GPU that torch could find."""
    assert host.spec(device=STAND_IN).device == "cpu"


def test_an_attempt_resumes_from_the_last_checkpoint(host: Host) -> None:
    """Its folder is one of an earlier attempt."""
    folder = host.outputs / ".portrait.a.1" / "checkpoint-5"
    folder.mkdir(parents=True)

    assert host.spec(attempt=2, before=checkpoint(folder)).resume_from == str(folder)
    assert folder.is_dir()


def test_a_checkpoint_that_is_gone_is_no_checkpoint(host: Host) -> None:
    """Better to begin again than to fail; a file in its place is none either."""
    (host.outputs / "file").touch()

    assert host.spec(before=checkpoint(host.outputs / "gone")).resume_from is None
    assert host.spec(before=checkpoint(host.outputs / "file")).resume_from is None


def test_what_an_unconfirmed_attempt_of_the_same_number_left_is_dropped(host: Host) -> None:
    """Its claim was never written: nobody will look for it."""
    left = host.outputs / ".portrait.a.1" / "checkpoint-5"
    left.mkdir(parents=True)

    assert list(Path(host.spec().attempt_path).iterdir()) == []


def test_an_output_folder_of_several_levels_is_made(host: Host) -> None:
    """The user's folders need not exist."""
    spec = host.train(output_path=str(host.outputs / "user" / "studio" / "portrait"))
    job = host.queued(output_path=str(host.outputs / "user" / "studio" / "portrait")).job

    promote(job, spec, RESULT, ACCOUNT)

    assert (host.outputs / "user" / "studio" / "portrait" / ARTIFACT.path).read_bytes() == b"abc"


def test_an_empty_output_folder_is_no_obstacle(host: Host) -> None:
    """Backends make it beforehand."""
    (host.outputs / "portrait").mkdir()
    spec = host.train()

    promote(host.queued().job, spec, RESULT, ACCOUNT)

    assert (host.outputs / "portrait" / ARTIFACT.path).read_bytes() == b"abc"


def test_a_missing_data_set_fails_with_its_path(host: Host) -> None:
    """Where it was looked for."""
    path = str(host.folder / "datasets/gone")

    assert host.refusal(dataset_path=path) == ("datasetMissing", f"cannot train: no data set at {path}")


def test_a_data_set_whose_name_no_disk_can_hold_is_missing(host: Host) -> None:
    """The operating system refuses even to look for it."""
    reason, _ = host.refusal(dataset_path=str(host.folder / "datasets" / ("x" * 300)))

    assert reason == "datasetMissing"


def test_paths_that_this_host_does_not_allow_fail_with_a_fault_each(host: Host) -> None:
    """Hosts may differ from the one that let the job in."""
    with pytest.raises(AttemptError) as caught:
        host.spec(dataset_path="/elsewhere/set", output_path="/elsewhere/out")

    assert caught.value.reason == "configInvalid"
    assert [fault.path for fault in caught.value.faults] == ["datasetPath", "outputPath"]


def test_a_model_that_is_not_allowed_fails_with_those_that_are(host: Host) -> None:
    """A job names a model of the operator's list, never a path or a repository."""
    reason, message = host.refusal(model="/etc")

    assert reason == "modelMissing"
    assert message.endswith("model '/etc' is not allowed on this worker; allowed: black-forest-labs/FLUX.1-dev, gone")


def test_a_host_that_allows_no_model_reports_that(host: Host) -> None:
    """Instead of an empty list."""
    host.settings = msgspec.structs.replace(host.settings, models={})

    assert host.refusal()[1].endswith("; allowed: none")


def test_a_model_whose_folder_is_gone_fails_with_its_path(host: Host) -> None:
    """The operator's setting is wrong, or a disk is not mounted."""
    assert host.refusal(model="gone") == ("modelMissing", f"cannot train: no model folder at {host.folder / 'gone'}")


def test_each_family_has_its_default_model(host: Host) -> None:
    """An SDXL job that names none is not given FLUX."""
    engine = EngineSettings(command=["true"], training_types=list(TrainingType))
    host.settings = msgspec.structs.replace(host.settings, engines={EngineName.DIFFUSERS: engine})

    assert "stabilityai/stable-diffusion-xl-base-1.0" in host.refusal(training_type="SDXL_LORA")[1]


@pytest.mark.parametrize("kind", ["file", "folder", "link to a file"])
def test_an_output_that_is_there_is_never_overwritten(host: Host, kind: str) -> None:
    """It may be somebody's work of weeks; the job fails before it costs anything."""
    output = host.outputs / "portrait"
    if kind == "folder":
        (output / "adapter").mkdir(parents=True)
    elif kind == "file":
        output.touch()
    else:
        (host.outputs / "file").touch()
        output.symlink_to(host.outputs / "file")

    reason, message = host.refusal()

    assert reason == "outputInvalid"
    assert message.endswith("exists and is not empty")


def test_an_output_below_a_file_fails_before_training(host: Host) -> None:
    """No folder can be made there."""
    (host.outputs / "file").touch()

    assert host.refusal(output_path=str(host.outputs / "file" / "portrait"))[0] == "outputInvalid"


@pytest.mark.parametrize("spelling", ["portrait/..", "user/portrait/..", "link", "dangling"])
def test_an_output_that_could_not_be_promoted_fails_before_training(host: Host, spelling: str) -> None:
    """An output that no rename can reach is refused at once, or promoted in the end; never trained in vain."""
    (host.outputs / "empty").mkdir()
    (host.outputs / "link").symlink_to(host.outputs / "empty")
    (host.outputs / "dangling").symlink_to(host.outputs / "later")
    path = str(host.outputs / spelling)
    try:
        spec = host.train(output_path=path)
    except AttemptError:
        return

    promote(host.queued(output_path=path).job, spec, RESULT, ACCOUNT)

    assert (Path(path).resolve() / ARTIFACT.path).read_bytes() == b"abc"


def engines(**types: list[TrainingType]) -> Settings:
    """A worker with these engines."""
    return Settings(
        engines={
            EngineName(name): EngineSettings(command=[name], training_types=served) for name, served in types.items()
        }
    )


BOTH = engines(
    diffusers=[TrainingType.FLUX_LORA, TrainingType.SDXL_LORA],
    invoke=[TrainingType.SDXL_LORA, TrainingType.SDXL_FINETUNE],
)


def chosen(host: Host, training_type: str, wanted: str, **fields: Any) -> str:
    """The engine that a worker with both chooses for a job."""
    queued = host.queued(training_type, engine=wanted, **fields)
    return choose_engine(queued.job, queued.plan.parameters, BOTH)


@pytest.mark.parametrize(
    ("training_type", "wanted", "engine"),
    [
        ("FLUX_LORA", "auto", "diffusers"),
        ("SDXL_LORA", "auto", "invoke"),
        ("SDXL_LORA", "invoke", "invoke"),
        ("SDXL_LORA", "diffusers", "diffusers"),
        ("SDXL_FINETUNE", "invoke", "invoke"),
    ],
)
def test_the_engine_is_the_wanted_one_or_the_familys_first(
    host: Host, training_type: str, wanted: str, engine: str
) -> None:
    """FLUX is the built-in trainer's; SDXL is invoke-training's where it is there."""
    assert chosen(host, training_type, wanted) == engine


def test_what_invoke_training_has_not_is_trained_by_the_built_in_engine(host: Host) -> None:
    """Where the job leaves the choice, none of its settings is given up for it."""
    assert chosen(host, "SDXL_LORA", "auto", config_overrides={"noiseOffset": 0.05}) == "diffusers"
    assert chosen(host, "SDXL_LORA", "auto", gpu_count=2) == "diffusers"


@pytest.mark.parametrize(
    ("training_type", "wanted", "fields"),
    [
        ("FLUX_LORA", "invoke", {"preset": "flux_80gb_balanced"}),
        ("SDXL_TEXTUAL_INVERSION", "auto", {}),
        ("SDXL_FINETUNE", "diffusers", {}),
    ],
)
def test_a_job_that_no_engine_can_train_here_is_left_to_others(
    host: Host, training_type: str, wanted: str, fields: dict[str, str]
) -> None:
    """Another engine is never chosen instead of the requested one, and another worker may have it."""
    with pytest.raises(
        AttemptError, match=f"cannot train {training_type}: this worker has no engine {wanted}"
    ) as error:
        chosen(host, training_type, wanted, **fields)

    assert error.value.reason == "hostUnfit"


def test_a_worker_serves_what_its_built_in_engine_can_train() -> None:
    """What the other one can besides is for jobs that request it; it has not all that `auto` may need."""
    assert served_types(BOTH) == {TrainingType.FLUX_LORA, TrainingType.SDXL_LORA}
    assert served_types(Settings()) == set(TrainingType)
    assert served_types(engines(invoke=list(TrainingType))) == set()


def test_a_worker_consumes_no_job_that_it_would_have_to_leave_to_others(host: Host) -> None:
    """Its invoke-training could train FLUX, but a job that leaves the choice never gets there."""
    sdxl = [kind for kind in TrainingType if kind.family is ModelFamily.SDXL]
    settings = engines(diffusers=sdxl, invoke=list(TrainingType))
    settings = msgspec.structs.replace(settings, models={"of no known family": host.folder / "base"})
    queued = host.queued("FLUX_LORA")

    assert served_families(settings) == [ModelFamily.SDXL]
    with pytest.raises(AttemptError, match="this worker has no engine auto for it"):
        choose_engine(queued.job, queued.plan.parameters, settings)


def test_the_last_engine_of_a_family_is_the_one_that_the_planner_plans_for() -> None:
    """So that it can train whatever comes of a plan; that of several GPUs, too."""
    for kind in TrainingType:
        assert PREFERENCES[kind.family][-1] is planned_engine(kind, EngineName.AUTO, gpu_count=2)


@pytest.mark.parametrize(
    ("indices", "families"),
    [
        ([], []),
        (['{"_class_name": "FluxPipeline"}'], ["flux"]),
        (['{"_class_name": "FluxPipeline"}', '{"_class_name": "StableDiffusionXLPipeline"}'], ["flux", "sdxl"]),
        (['{"_class_name": "SomethingElse"}'], ["flux", "sdxl"]),
        (["torn"], ["flux", "sdxl"]),
    ],
)
def test_a_worker_serves_the_families_of_its_models(tmp_path: Path, indices: list[str], families: list[str]) -> None:
    """A job would only fail where no model of its family is; a folder that does not name its family may be of any."""
    for number, index in enumerate(indices):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "model_index.json").write_text(index)
    models = {str(number): tmp_path / str(number) for number in range(len(indices))}

    assert sorted(model_families(Settings(models=models))) == families


def test_promotion_moves_the_attempt_to_the_output_whole(host: Host) -> None:
    """One rename: nobody ever sees half a result, and nothing else is left beside it."""
    spec = host.train()

    promote(host.queued().job, spec, RESULT, ACCOUNT)

    assert [path.name for path in host.outputs.iterdir()] == ["portrait"]
    assert sorted(path.name for path in (host.outputs / "portrait").iterdir()) == ["manifest.json", ARTIFACT.path]


def test_the_manifest_records_how_the_result_came_about(host: Host) -> None:
    """The job as requested, the spec as trained, the result, the version that did it, and its time and cost."""
    spec = host.train(attempt=2, lora_rank=4)
    job = host.queued(lora_rank=4).job

    promote(job, spec, RESULT, ACCOUNT)

    manifest = json.loads((host.outputs / "portrait" / "manifest.json").read_bytes())
    assert manifest.keys() == {"job", "workerVersion", "spec", "result", "account"}
    assert manifest["account"]["usage"] == {"gpuSeconds": 60.0, "costUSD": 0.5}
    assert manifest["account"]["changes"] == {"batchSize": 1}
    assert manifest["workerVersion"] == __version__
    assert msgspec.convert(manifest["spec"], RunSpec) == spec
    assert manifest["job"] == msgspec.to_builtins(job)
    assert manifest["result"]["artifacts"] == [msgspec.to_builtins(ARTIFACT)]


def test_promotion_drops_what_earlier_attempts_left_and_nothing_else(host: Host) -> None:
    """Their checkpoints are not needed any more; other jobs' are."""
    for name in (".portrait.a.1", ".portrait.a.2", ".portrait.b.1", ".portrait.a.4", "other"):
        (host.outputs / name / "checkpoint-1").mkdir(parents=True)

    promote(host.queued().job, host.train(attempt=3), RESULT, ACCOUNT)

    assert sorted(path.name for path in host.outputs.iterdir()) == [
        ".portrait.a.4",
        ".portrait.b.1",
        "other",
        "portrait",
    ]


def test_an_output_that_appeared_meanwhile_is_not_overwritten(host: Host) -> None:
    """The job fails; both results are still there."""
    spec = host.train()
    (host.outputs / "portrait" / "other").mkdir(parents=True)

    with pytest.raises(AttemptError, match=r"^cannot write output: ") as caught:
        promote(host.queued().job, spec, RESULT, ACCOUNT)

    assert caught.value.reason == "outputInvalid"
    assert (host.outputs / "portrait" / "other").is_dir()
    assert (Path(spec.attempt_path) / ARTIFACT.path).read_bytes() == b"abc"


def test_a_result_that_was_deleted_meanwhile_is_no_success(host: Host) -> None:
    """There is nothing to promote."""
    spec = host.train()
    (Path(spec.attempt_path) / ARTIFACT.path).unlink()
    Path(spec.attempt_path).rmdir()

    with pytest.raises(AttemptError) as caught:
        promote(host.queued().job, spec, RESULT, ACCOUNT)

    assert caught.value.reason == "outputInvalid"


def test_attempts_of_several_jobs_with_one_output_are_kept_apart(host: Host) -> None:
    """The folder's name has the output's, the job's and the attempt's; it lies beside the output."""
    job = host.queued().job
    other = msgspec.structs.replace(job, job_id="b")
    folders = [attempt_folder(job, 1), attempt_folder(job, 2), attempt_folder(other, 1)]

    assert [folder.name for folder in folders] == [".portrait.a.1", ".portrait.a.2", ".portrait.b.1"]
    assert {folder.parent for folder in folders} == {host.outputs}


def test_a_result_that_is_there_is_read(host: Host) -> None:
    """A job whose end the ledger has forgotten is not trained again."""
    job = host.queued().job
    assert read_result(job) is None
    promote(job, host.train(), RESULT, ACCOUNT)

    assert read_result(job) == RESULT


@pytest.mark.parametrize("change", [{"job_id": "b"}, {"lora_rank": 2}])
def test_the_result_of_another_job_is_none(host: Host, change: dict[str, Any]) -> None:
    """Though it lies in the same place."""
    promote(host.queued().job, host.train(), RESULT, ACCOUNT)

    assert read_result(msgspec.structs.replace(host.queued().job, **change)) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"job": 7}'])
def test_a_manifest_that_cannot_be_read_is_no_result(host: Host, content: bytes) -> None:
    """Somebody else may have written it."""
    (host.outputs / "portrait").mkdir()
    (host.outputs / "portrait" / "manifest.json").write_bytes(content)

    assert read_result(host.queued().job) is None


def test_an_output_that_is_no_folder_has_no_result(host: Host) -> None:
    """Nor has one whose manifest is no file."""
    (host.outputs / "portrait").touch()
    assert read_result(host.queued().job) is None

    (host.outputs / "other" / "manifest.json").mkdir(parents=True)
    assert read_result(host.queued(output_path=str(host.outputs / "other")).job) is None


def test_a_result_that_was_promoted_is_not_promoted_again(host: Host) -> None:
    """The daemon died right after it; the next one finds it done."""
    job, spec = host.queued().job, host.train()
    promote(job, spec, RESULT, ACCOUNT)
    before = (host.outputs / "portrait" / "manifest.json").stat().st_mtime_ns

    promote(job, spec, RESULT, ACCOUNT)

    assert (host.outputs / "portrait" / "manifest.json").stat().st_mtime_ns == before
    assert (host.outputs / "portrait" / ARTIFACT.path).read_bytes() == b"abc"


def test_a_promotion_that_was_interrupted_is_finished(host: Host) -> None:
    """What earlier attempts left takes gigabytes: it is dropped, whoever comes to it."""
    job, spec = host.queued().job, host.train(attempt=3)
    promote(job, spec, RESULT, ACCOUNT)
    (host.outputs / ".portrait.a.1" / "checkpoint-1").mkdir(parents=True)

    promote(job, spec, RESULT, ACCOUNT)

    assert [path.name for path in host.outputs.iterdir()] == ["portrait"]


def test_the_result_of_an_owner_who_was_faster_stands(host: Host) -> None:
    """Cut off, somebody else put its result in place: it is as good, and what is reported is what is there."""
    job, spec = host.queued().job, host.train()
    promote(job, spec, RESULT, ACCOUNT)

    assert promote(job, spec, msgspec.structs.replace(RESULT, steps=11), ACCOUNT) == RESULT


def test_an_attempt_resumes_from_the_last_checkpoint_that_can_be_read(host: Host) -> None:
    """The very last one may lie on another host's disk."""
    saved: list[CheckpointSaved] = []
    for step in (5, 9):
        folder = host.outputs / f"checkpoint-{step}"
        folder.mkdir()
        saved += checkpoint(folder).checkpoints
    before = JobHistory(checkpoints=(*saved, *checkpoint(host.outputs / "gone").checkpoints))

    assert resume_point(before) == saved[1]
    assert host.spec(before=before).resume_from == saved[1].path
    assert resume_point(JobHistory()) is None


def test_each_time_out_of_memory_is_a_step_down_the_ladder(host: Host) -> None:
    """At its end it stays; an optimizer step sees the same number of images all the while."""
    plan = host.queued(batch_size=4).plan
    specs = [host.spec(before=JobHistory(out_of_memory=times), device=STAND_IN, batch_size=4) for times in range(6)]
    settings = [convert_strictly(spec.parameters, FluxLoraParameters) for spec in specs]
    ladder = plan.ladder

    assert settings == ([plan.parameters, *ladder] + [ladder[-1]] * 6)[:6]
    assert {one.batch_size * one.gradient_accumulation_steps for one in settings} == {
        plan.parameters.batch_size * plan.parameters.gradient_accumulation_steps
    }


def test_a_job_that_cannot_do_with_less_keeps_its_settings(host: Host) -> None:
    """There is no ladder."""
    plan = host.queued(batch_size=1).plan

    spec = host.spec(before=JobHistory(out_of_memory=2), device=STAND_IN, batch_size=1)

    assert convert_strictly(spec.parameters, FluxLoraParameters) == plan.parameters


def test_a_plan_for_a_small_gpu_rises_on_a_large_one(host: Host) -> None:
    """With the same images a step; each change says why, and the whole how much is gained."""
    queued = host.queued(preset="flux_24gb_balanced")

    resolved = host.resolved(device=H100, preset="flux_24gb_balanced")

    planned, chosen = queued.plan.parameters, convert_strictly(resolved.spec.parameters, FluxLoraParameters)
    assert chosen.batch_size > planned.batch_size
    assert (
        chosen.batch_size * chosen.gradient_accumulation_steps
        == planned.batch_size * planned.gradient_accumulation_steps
    )
    assert resolved.choice.gain > 2
    assert {"batchSize", "gradientAccumulationSteps"} <= {change.setting for change in resolved.choice.changes}
    assert all(change.why for change in resolved.choice.changes)


def test_a_later_attempt_keeps_what_it_resumes_with(host: Host) -> None:
    """The base and the images of a step are those of the checkpoint, though this GPU has room for more."""
    kept = {"quantization": "nf4", "batchSize": 1, "gradientAccumulationSteps": 8, "optimizer": "adamw8bit"}
    (saved,) = checkpoint(host.outputs).checkpoints
    before = JobHistory(checkpoints=(msgspec.structs.replace(saved, settings=kept),))

    first = host.spec(device=H100, preset="flux_24gb_balanced").parameters
    later = host.spec(2, before=before, device=H100, preset="flux_24gb_balanced").parameters

    assert (first["quantization"], later["quantization"]) == ("none", "nf4")
    assert later["batchSize"] * later["gradientAccumulationSteps"] == 8
    assert later["optimizer"] == "adamw8bit"


def test_what_a_resumed_attempt_has_to_keep_travels_with_its_checkpoints(host: Host) -> None:
    """By the wire's names, as the ledger has them."""
    spec = host.spec(device=H100, preset="flux_24gb_balanced")

    assert kept_settings(spec) == {name: spec.parameters[name] for name in KEPT}


def test_what_was_changed_is_reported_by_its_wire_names(host: Host) -> None:
    """And nothing else."""
    plan = host.queued(batch_size=4).plan
    lower = msgspec.structs.replace(plan.parameters, batch_size=2)

    assert changes(plan, msgspec.to_builtins(plan.parameters)) == {}
    assert changes(plan, msgspec.to_builtins(lower)) == {"batchSize": 2}


def test_the_spec_of_a_job_that_ran_out_of_memory_has_the_smaller_settings(host: Host) -> None:
    """The trainer is given the path, not left to find out."""
    plan = host.queued(batch_size=4).plan

    spec = host.spec(before=JobHistory(out_of_memory=1), device=STAND_IN, batch_size=4)

    assert convert_strictly(spec.parameters, FluxLoraParameters) == plan.ladder[0]


def test_a_gpu_with_little_free_memory_gets_smaller_settings(host: Host) -> None:
    """What somebody else holds of it is not there; an optimizer step sees the same number of images."""
    plan = host.queued(preset="flux_40gb_balanced").plan

    spec = host.spec(preset="flux_40gb_balanced", free_mib=26_300)

    assert changes(plan, spec.parameters) == {"batchSize": 1, "gradientAccumulationSteps": 8}


def test_a_gpu_without_enough_free_memory_is_no_place_for_the_job(host: Host) -> None:
    """Another one may be; the reason has both figures."""
    reason, message = host.refusal(free_mib=4096)

    assert reason == "hostUnfit"
    assert re.search(r"the job needs \d+\.\d GiB of GPU memory at least, and there are 4\.0", message)


def test_running_out_of_memory_on_a_full_gpu_leads_below_what_had_room_there(host: Host) -> None:
    """The same settings again would run out of memory again."""
    preset, free = "flux_80gb_balanced", 27_500
    first = host.spec(preset=preset, free_mib=free).parameters
    second = host.spec(before=JobHistory(out_of_memory=1), preset=preset, free_mib=free).parameters

    assert first["batchSize"] < host.queued(preset=preset).plan.parameters.batch_size
    assert second["batchSize"] * 2 == first["batchSize"]

"""A run: what a trainer is given of its daemon's environment, and what an earlier daemon left in its folders."""

import asyncio
import os
from pathlib import Path

import pytest
from tests.support.owning import TIMEOUT
from tests.support.runs import RECORD, SPEC, make_run

from training_worker.gpu.devices import GpuDevice
from training_worker.runs.child_process import Exit
from training_worker.runs.environment import trainer_environment
from training_worker.runs.run import find_runs
from training_worker.runs.run_directory import RunDirectory
from training_worker.runs.state_layout import runs_dir


def device(*, simulated: bool) -> GpuDevice:
    """The second of a host's GPUs."""
    return GpuDevice(uuid="GPU-2", name="NVIDIA L4", memory_mib=23034, simulated=simulated, usd_per_hour=None)


def test_a_trainer_sees_its_own_gpu_by_uuid_and_no_other() -> None:
    """An index would mean another GPU after a restart of the host."""
    assert trainer_environment(device(simulated=False))["CUDA_VISIBLE_DEVICES"] == "GPU-2"


def test_a_trainer_of_a_simulated_gpu_sees_no_gpu_at_all() -> None:
    """Else it would train on a GPU that somebody else was given."""
    assert trainer_environment(device(simulated=True))["CUDA_VISIBLE_DEVICES"] == ""


def test_a_trainer_inherits_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it needs is passed on by name; all else stays with the daemon."""
    monkeypatch.setenv("TRAINING_AMQP_URL", "amqp://user:secret@broker/")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    assert "secret" not in str(trainer_environment(device(simulated=False)))


def test_a_run_is_found_as_it_was_made(tmp_path: Path) -> None:
    """With all that a daemon must know to re-attach, to the last digit."""
    make_run(tmp_path)

    [run] = find_runs(tmp_path)

    assert (run.spec, run.record) == (SPEC, RECORD)
    assert run.folder.path == runs_dir(tmp_path) / "portrait.2"
    assert (run.queued.job, run.queued.submitted_at) == (RECORD.job, 1000.5)
    assert run.identity is None


def test_a_host_without_runs_has_none(tmp_path: Path) -> None:
    """Before the first job there is not even the folder."""
    assert find_runs(tmp_path) == []
    runs_dir(tmp_path).mkdir()
    assert find_runs(tmp_path) == []


def test_runs_are_found_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    """Whichever lease was renewed last."""
    for name, started_at in (("b", 2.0), ("c", 3.0), ("a", 1.0)):
        make_run(tmp_path, name, started_at)
    os.utime(runs_dir(tmp_path) / "a.2", (4e9, 4e9))

    assert [run.spec.job_id for run in find_runs(tmp_path)] == ["a", "b", "c"]


@pytest.mark.parametrize("missing", ["run.json", "spec.json"])
def test_a_folder_that_was_never_finished_being_made_is_removed(tmp_path: Path, missing: str) -> None:
    """No trainer was started in it."""
    run = make_run(tmp_path)
    (run.folder.path / missing).unlink()

    assert find_runs(tmp_path) == []
    assert list(runs_dir(tmp_path).iterdir()) == []


def test_a_folder_whose_removal_was_interrupted_is_removed(tmp_path: Path) -> None:
    """Though all may still be in it."""
    folder = make_run(tmp_path).folder.path
    folder.rename(folder.with_name(f".{folder.name}.gone"))

    assert find_runs(tmp_path) == []
    assert list(runs_dir(tmp_path).iterdir()) == []


def test_what_cannot_be_read_is_kept_and_passed_over(tmp_path: Path) -> None:
    """One folder that is broken does not keep a daemon from the others, nor from starting."""
    make_run(tmp_path, "a")
    for name, content in (("empty", b""), ("torn", b'{"jobId": "t'), ("bytes", b"\xff"), ("later", b"{}")):
        folder = make_run(tmp_path, name).folder.path
        (folder / "run.json").write_bytes(content)
    folder = make_run(tmp_path, "folder").folder.path
    (folder / "spec.json").unlink()
    (folder / "spec.json").mkdir()
    (runs_dir(tmp_path) / "file").touch()
    (runs_dir(tmp_path) / "link").symlink_to("nowhere")

    assert [run.spec.job_id for run in find_runs(tmp_path)] == ["a"]
    assert {path.name for path in runs_dir(tmp_path).iterdir()} == {
        *("a.2", "empty.2", "torn.2", "bytes.2", "later.2", "folder.2", "file", "link")
    }


async def test_a_trainer_is_given_its_run_folder_and_known_by_it(tmp_path: Path) -> None:
    """As its last argument; who it is stands there, and in the environment of all that it starts."""
    run = make_run(tmp_path)
    begun = [run.has_begun]

    child = run.start(["/bin/sh", "-c", 'echo "$0 $1"; env', "trainer"], {"PATH": "/usr/bin:/bin"})

    assert await asyncio.wait_for(child.wait(), TIMEOUT) == Exit(status=0)
    output = run.folder.stdout.read_text().splitlines()
    assert output[0] == f"trainer {run.folder.path}"
    assert [*begun, run.has_begun] == [False, True]
    assert run.identity is not None
    assert run.identity.pid == child.pid
    assert run.identity.mark in output


def touch(folder: RunDirectory, **times: float) -> None:
    """Files of the run folder, written at these times."""
    for name, at in times.items():
        path = folder.path / name.replace("_", ".")
        path.touch()
        os.utime(path, (at, at))


def test_the_last_sign_of_life_is_the_last_thing_that_the_trainer_wrote(tmp_path: Path) -> None:
    """A record, or output; what the daemon writes there is none."""
    run = make_run(tmp_path)
    touch(run.folder, progress_jsonl=100.0, requests_jsonl=900.0)
    assert run.last_sign() == 100.0

    touch(run.folder, stdout_log=200.0, stderr_log=150.0)
    assert run.last_sign() == 200.0

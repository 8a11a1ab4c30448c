"""The folder where daemon and trainer meet: complete before the trainer starts, and never half written."""

from pathlib import Path

import msgspec
import pytest

from training_schemas.jobs import EngineName, TrainingType
from training_schemas.spec import RunLease, RunSpec
from training_worker.run_folder import OUTPUT_LINES, RunFolder, fsync_folder

SPEC = RunSpec(
    job_id="portrait",
    attempt=2,
    training_type=TrainingType.FLUX_LORA,
    engine=EngineName.DIFFUSERS,
    model_path="/models/flux",
    dataset_path="/datasets/set",
    attempt_path="/models/.portrait.portrait.2",
    resume_from=None,
    device="cuda",
    parameters={"loraRank": 16, "validationPrompts": ["a cät"]},
)
LEASE = RunLease(deadline=1000.0, max_isolation=1800.0)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """The folder of one attempt."""
    return RunFolder.create(tmp_path / "state", SPEC, LEASE)


def test_a_new_folder_has_all_that_a_trainer_needs(folder: RunFolder, tmp_path: Path) -> None:
    """Its name says whose it is; the spec and the lease are there, and a file to append to."""
    assert folder.path == tmp_path / "state" / "runs" / "portrait.2"
    assert sorted(path.name for path in folder.path.iterdir()) == ["lease", "progress.jsonl", "spec.json"]
    assert msgspec.json.decode((folder.path / "spec.json").read_bytes(), type=RunSpec) == SPEC
    assert msgspec.json.decode((folder.path / "lease").read_bytes(), type=RunLease) == LEASE
    assert folder.progress.read_bytes() == b""


def test_a_spec_can_be_read_by_people(folder: RunFolder) -> None:
    """Indented, in the names of the wire."""
    text = (folder.path / "spec.json").read_text("utf-8")

    assert '\n  "jobId": "portrait",\n' in text
    assert "a cät" in text


def test_a_spec_says_that_there_is_nothing_to_resume_from(folder: RunFolder) -> None:
    """Nothing is left out for the trainer to guess."""
    assert msgspec.json.decode((folder.path / "spec.json").read_bytes()).keys() == {
        field.encode_name for field in msgspec.structs.fields(RunSpec)
    }


def test_the_folder_of_another_attempt_is_never_taken_over(folder: RunFolder, tmp_path: Path) -> None:
    """What is there may belong to a trainer that still runs."""
    folder.progress.write_text("record\n")

    with pytest.raises(FileExistsError):
        RunFolder.create(tmp_path / "state", SPEC, LEASE)

    assert folder.progress.read_text() == "record\n"


def test_a_renewed_lease_replaces_the_old_one_whole(folder: RunFolder) -> None:
    """A trainer that has the old file open goes on reading the old one; nothing else is left in the folder."""
    before = sorted(folder.path.iterdir())
    with (folder.path / "lease").open("rb") as old:
        folder.write_lease(msgspec.structs.replace(LEASE, deadline=2000.0))

        assert msgspec.json.decode(old.read(), type=RunLease) == LEASE
    assert msgspec.json.decode((folder.path / "lease").read_bytes(), type=RunLease).deadline == 2000.0
    assert sorted(folder.path.iterdir()) == before


def test_the_last_words_are_those_on_standard_error(folder: RunFolder) -> None:
    """The last fifty lines of it."""
    folder.stdout.write_text("progress bar\n")
    folder.stderr.write_text("".join(f"{number}\n" for number in range(80)))

    assert folder.output_tail() == [str(number) for number in range(80 - OUTPUT_LINES, 80)]


def test_a_trainer_that_was_silent_on_standard_error_is_quoted_from_its_output(folder: RunFolder) -> None:
    """Some print their errors there."""
    folder.stdout.write_text("out of luck\n")
    folder.stderr.touch()

    assert folder.output_tail() == ["out of luck"]


def test_a_trainer_that_never_started_has_no_last_words(folder: RunFolder) -> None:
    """There are no files of its output."""
    assert folder.output_tail() == []


def test_a_removed_folder_is_gone_and_can_be_removed_again(folder: RunFolder) -> None:
    """Cleaning up after a crash may find it cleaned up."""
    folder.remove()
    folder.remove()

    assert not folder.path.exists()
    assert folder.path.parent.is_dir()


def test_a_folder_can_be_synced_and_a_file_cannot(tmp_path: Path) -> None:
    """A rename is made to last by its folder."""
    (tmp_path / "file").touch()

    fsync_folder(tmp_path)
    with pytest.raises(NotADirectoryError):
        fsync_folder(tmp_path / "file")

"""The folder where daemon and trainer meet: complete before the trainer starts, and never half written."""

import subprocess
from pathlib import Path

import msgspec
import pytest
from tests.support.runs import LEASE, SPEC, make_folder

from training_schemas.spec import RequestLine, RunLease, RunRequest, RunSpec
from training_worker.runs import run_directory
from training_worker.runs.process_identity import RECORD_SELF, ProcessIdentity
from training_worker.runs.run_directory import (
    CURSOR_FILE,
    OUTPUT_LINES,
    Bookmark,
    Cursor,
    RunDirectory,
    StopOrder,
    fsync_folder,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunDirectory:
    """The folder of one attempt."""
    return make_folder(tmp_path / "state")


def test_a_new_folder_has_all_that_a_trainer_needs(folder: RunDirectory, tmp_path: Path) -> None:
    """Its name has job and attempt; the spec and the lease are there, and a file to append to."""
    assert folder.path == tmp_path / "state" / "runs" / "portrait.2"
    assert sorted(path.name for path in folder.path.iterdir()) == ["lease", "progress.jsonl", "run.json", "spec.json"]
    assert msgspec.json.decode((folder.path / "spec.json").read_bytes(), type=RunSpec) == SPEC
    assert msgspec.json.decode((folder.path / "lease").read_bytes(), type=RunLease) == LEASE
    assert folder.progress.read_bytes() == b""


def test_a_spec_can_be_read_by_people(folder: RunDirectory) -> None:
    """Indented, in the names of the wire."""
    text = (folder.path / "spec.json").read_text("utf-8")

    assert '\n  "jobId": "portrait",\n' in text
    assert "a cät" in text


def test_a_spec_records_that_there_is_nothing_to_resume_from(folder: RunDirectory) -> None:
    """Nothing is left out for the trainer to guess."""
    assert msgspec.json.decode((folder.path / "spec.json").read_bytes()).keys() == {
        field.encode_name for field in msgspec.structs.fields(RunSpec)
    }


def test_a_renewed_lease_replaces_the_old_one_whole(folder: RunDirectory) -> None:
    """A trainer that has the old file open keeps reading the old one; nothing else is left in the folder."""
    before = sorted(folder.path.iterdir())
    with (folder.path / "lease").open("rb") as old:
        folder.write_lease(msgspec.structs.replace(LEASE, deadline=2000.0))

        assert msgspec.json.decode(old.read(), type=RunLease) == LEASE
    assert msgspec.json.decode((folder.path / "lease").read_bytes(), type=RunLease).deadline == 2000.0
    assert sorted(folder.path.iterdir()) == before


def test_the_last_output_is_that_on_standard_error(folder: RunDirectory) -> None:
    """The last fifty lines of it."""
    folder.stdout.write_text("progress bar\n")
    folder.stderr.write_text("".join(f"{number}\n" for number in range(80)))

    assert folder.output_tail() == [str(number) for number in range(80 - OUTPUT_LINES, 80)]


def test_a_trainer_that_was_silent_on_standard_error_is_quoted_from_its_output(folder: RunDirectory) -> None:
    """Some print their errors there."""
    folder.stdout.write_text("out of luck\n")
    folder.stderr.touch()

    assert folder.output_tail() == ["out of luck"]


def test_a_trainer_that_never_started_has_no_last_output(folder: RunDirectory) -> None:
    """There are no files of its output."""
    assert folder.output_tail() == []


def test_a_removed_folder_is_gone_and_can_be_removed_again(folder: RunDirectory) -> None:
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


def test_a_folder_whose_trainer_still_runs_is_never_replaced(folder: RunDirectory, tmp_path: Path) -> None:
    """Two trainers must not write into one folder."""
    folder.progress.write_text("record\n")
    command = ["/bin/sh", "-c", RECORD_SELF, "sh", str(folder.identity), "/bin/sh", "-c", "echo; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout is not None
        trainer.stdout.readline()
        try:
            with pytest.raises(FileExistsError, match=f"belongs to process {trainer.pid}, which still runs"):
                make_folder(tmp_path / "state")
        finally:
            trainer.kill()

    assert folder.progress.read_text() == "record\n"


@pytest.mark.parametrize("identity", [None, "half", "boot\n1 (sh) S 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1\n"])
def test_a_folder_whose_trainer_has_ended_is_replaced(
    folder: RunDirectory, tmp_path: Path, identity: str | None
) -> None:
    """Nothing of the old attempt is left in it, the place up to which it was published least of all."""
    folder.progress.write_text("record\n")
    Bookmark(folder).move(Cursor(sequence=5, offset=7))
    if identity is not None:
        folder.identity.write_text(identity)

    again = make_folder(tmp_path / "state")

    assert again.path == folder.path
    assert again.progress.read_bytes() == b""
    assert not again.identity.exists()
    assert Bookmark(again).cursor == Cursor(sequence=0, offset=0)
    assert [path.name for path in folder.path.parent.iterdir()] == ["portrait.2"]
    assert ProcessIdentity.read(again.identity) is None


def test_a_bookmark_begins_at_the_start_and_is_found_where_it_was_left(folder: RunDirectory) -> None:
    """By the daemon that comes next."""
    bookmark = Bookmark(folder)
    assert bookmark.cursor == Cursor(sequence=0, offset=0)

    bookmark.move(Cursor(sequence=2, offset=300))
    bookmark.move(Cursor(sequence=3, offset=450))

    assert bookmark.cursor == Bookmark(folder).cursor == Cursor(sequence=3, offset=450)


def test_a_bookmark_without_a_folder_is_remembered_all_the_same() -> None:
    """An attempt that never came to a run has something to report as well."""
    bookmark = Bookmark(None)
    bookmark.move(Cursor(sequence=1))

    assert bookmark.cursor == Cursor(sequence=1, offset=0)


def test_requests_are_a_line_each_in_their_order(folder: RunDirectory) -> None:
    """The trainer reads on where it was."""
    for request in (RunRequest.CHECKPOINT, RunRequest.SAMPLE, RunRequest.CHECKPOINT):
        folder.request(request)

    lines = (folder.path / "requests.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=RequestLine).request for line in lines] == [
        RunRequest.CHECKPOINT,
        RunRequest.SAMPLE,
        RunRequest.CHECKPOINT,
    ]


def test_a_file_is_replaced_whole_or_not_at_all(folder: RunDirectory) -> None:
    """Who dies while writing leaves the old one; who reads meanwhile has the old one to its end."""
    folder.write(CURSOR_FILE, Cursor(sequence=1))
    (folder.path / f"{CURSOR_FILE}.new").write_text('{"sequence": 2, "off')

    assert folder.read(CURSOR_FILE, Cursor) == Cursor(sequence=1)
    with (folder.path / CURSOR_FILE).open("rb") as old:
        folder.write(CURSOR_FILE, Cursor(sequence=3))
        assert msgspec.json.decode(old.read(), type=Cursor) == Cursor(sequence=1)
    assert folder.read(CURSOR_FILE, Cursor) == Cursor(sequence=3)


def test_a_file_that_was_never_written_is_none_and_one_that_is_wrong_an_error(folder: RunDirectory) -> None:
    """Nobody resumes from what cannot be read."""
    assert folder.read("stop.json", StopOrder) is None
    (folder.path / "stop.json").write_text('{"why": 7}')

    with pytest.raises(msgspec.ValidationError):
        folder.read("stop.json", StopOrder)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_output_that_grows_too_large_is_cut_and_its_tail_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The trainer keeps writing to the file that it has open; its last output is that before and after the cut."""
    monkeypatch.setattr(run_directory, "LARGEST_OUTPUT", 1000)
    monkeypatch.setattr(run_directory, "KEPT_OUTPUT", 100)
    folder = make_folder(tmp_path)
    file: Path = getattr(folder, name)
    with file.open("ab", buffering=0) as output:
        output.write(b"".join(b"line %04d\n" % number for number in range(100)))
        folder.shorten_output()
        assert file.stat().st_size == 1000

        output.write(b"line 0100\n")
        folder.shorten_output()
        output.write(b"the last line\n")

    assert file.read_bytes() == b"the last line\n"
    assert folder.output_tail() == [f"line {number:04}" for number in range(91, 101)] + ["the last line"]
    assert sum(path.stat().st_size for path in folder.path.glob(f"{file.name}*")) < 1000

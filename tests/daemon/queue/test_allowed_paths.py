"""Which paths of a host a job may name: below the roots, after all links are followed."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training_schemas.jobs import TrainingJob
from training_worker.client.job_builder import flux_lora_job
from training_worker.queue.allowed_paths import path_faults
from training_worker.settings import Settings


class Host:
    """A host with two roots for data sets and one for outputs, and something outside of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("datasets/set", "more/set", "models", "elsewhere/set"):
            (folder / name).mkdir(parents=True)
        roots = [folder / "datasets", folder / "more"]
        self.settings = Settings(dataset_roots=roots, output_roots=[folder / "models"])

    def job(self, dataset: str = "datasets/set", output: str = "models/a") -> TrainingJob:
        """A job with paths below the host's folder, or absolute ones."""
        paths = {"dataset_path": str(self.folder / dataset), "output_path": str(self.folder / output)}
        return flux_lora_job(job_id="a", dataset_path=paths["dataset_path"], output_path=paths["output_path"])

    def faults(self, dataset: str = "datasets/set", output: str = "models/a") -> dict[str, str]:
        """What is wrong with such a job, by path."""
        return {fault.path: fault.reason for fault in path_faults(self.job(dataset, output), self.settings)}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host of this test."""
    return Host(tmp_path)


@pytest.mark.parametrize(
    ("dataset", "output"),
    [
        ("datasets/set", "models/a"),
        ("more/set", "models/a/b/c"),
        ("datasets/not/there/yet", "models/a"),
        ("datasets/../datasets/set", "models/./a"),
        ("elsewhere/../datasets/set", "models/a"),
    ],
)
def test_a_path_below_a_root_is_allowed(host: Host, dataset: str, output: str) -> None:
    """It is its place that counts: not its spelling, nor whether it exists."""
    assert host.faults(dataset, output) == {}


@pytest.mark.parametrize(
    "dataset",
    [
        "elsewhere/set",
        "datasets",
        "datasets/",
        "datasets/set/..",
        "datasets/../elsewhere/set",
        "datasets-of-others/set",
        "models/set",
        "/",
        "/etc/passwd",
    ],
)
def test_a_path_that_is_not_below_a_root_is_refused(host: Host, dataset: str) -> None:
    """Not a root itself, not a sibling whose name begins alike, not by way of `..`."""
    found = host.faults(dataset=dataset)

    assert found.keys() == {"datasetPath"}
    assert "is outside the allowed roots: " in found["datasetPath"]
    assert str(host.folder / "more") in found["datasetPath"]


def test_a_link_out_of_a_root_is_refused(host: Host) -> None:
    """Whoever may write into a root may not thereby read the whole host."""
    (host.folder / "datasets" / "link").symlink_to(host.folder / "elsewhere")

    assert host.faults(dataset="datasets/link/set").keys() == {"datasetPath"}


def test_a_link_into_a_root_is_allowed(host: Host) -> None:
    """Operators put links where their users look."""
    (host.folder / "elsewhere" / "link").symlink_to(host.folder / "datasets")

    assert host.faults(dataset="elsewhere/link/set") == {}


def test_a_root_may_be_a_link_itself(host: Host) -> None:
    """Both sides are resolved."""
    (host.folder / "root").symlink_to(host.folder / "elsewhere")
    host.settings = Settings(dataset_roots=[host.folder / "root"], output_roots=[host.folder / "models"])

    assert host.faults(dataset="root/set") == {}
    assert host.faults(dataset="elsewhere/set") == {}


def test_a_link_that_leads_to_itself_is_no_reason_to_fall_over(host: Host) -> None:
    """Python before 3.13 cannot resolve where it leads, and refuses; later it is below the root, and missing."""
    (host.folder / "datasets" / "loop").symlink_to(host.folder / "datasets" / "loop")

    assert host.faults(dataset="datasets/loop").keys() <= {"datasetPath"}


@pytest.mark.parametrize("path", ["set", "./set", "datasets/set", "~/set", "s3://bucket/set"])
def test_a_relative_path_is_refused_as_that(host: Host, path: str) -> None:
    """The daemon's own folder is nobody's business."""
    job = flux_lora_job(job_id="a", dataset_path=path, output_path=path)

    reasons = {fault.path: fault.reason for fault in path_faults(job, host.settings)}

    reason = f"must be absolute, got {path!r}"
    assert reasons == {"datasetPath": reason, "outputPath": reason}


def test_a_null_character_is_refused_as_that(host: Host) -> None:
    """No file can have such a name, and the operating system would raise."""
    assert host.faults(dataset="datasets/a\0b") == {"datasetPath": "contains a null character"}


def test_both_paths_are_judged_at_once_and_each_by_its_own_roots(host: Host) -> None:
    """A folder for outputs is none for data sets."""
    assert host.faults(dataset="models/a", output="datasets/set").keys() == {"datasetPath", "outputPath"}


def test_without_roots_nothing_is_allowed(host: Host) -> None:
    """An empty list is no permission."""
    host.settings = Settings(dataset_roots=[], output_roots=[])

    assert host.faults().keys() == {"datasetPath", "outputPath"}


names = st.sampled_from(["..", ".", "", "datasets", "set", "elsewhere", "link-in", "link-out", "x" * 300])


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host with links both ways."""
    host = Host(tmp_path_factory.mktemp("linked"))
    (host.folder / "datasets" / "link-out").symlink_to(host.folder / "elsewhere")
    (host.folder / "elsewhere" / "link-in").symlink_to(host.folder / "datasets")
    return host


@settings(deadline=None)
@given(parts=st.lists(names, max_size=6))
def test_no_spelling_leads_out_of_the_roots(linked: Host, parts: list[str]) -> None:
    """What is allowed lies below a root as the kernel sees it."""
    path = "/".join([str(linked.folder), *parts])

    if not linked.faults(dataset=path):
        assert any(Path(path).resolve().is_relative_to(root) for root in linked.settings.dataset_roots)
        assert Path(path).resolve() not in linked.settings.dataset_roots

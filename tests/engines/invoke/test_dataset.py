"""The data set of the engine ``invoke``: it is read and checked as the built-in trainer does."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.engines.conftest import PARAMETERS
from tests.engines.datasets import faults_of, read, write_example, write_image, write_lines, write_mask
from tests.engines.invoke_runs import spec_of

from training_schemas.jobs import TrainingType
from training_schemas.progress import (
    FailureReason,
)
from training_schemas.spec import PROGRESS_FILE, FluxLoraParameters
from training_worker.engines.common.data.captions import full_caption
from training_worker.engines.common.protocol.failures import TrainingFailure
from training_worker.engines.diffusers.data.captions import base_caption
from training_worker.engines.invoke.dataset import Dataset, read_dataset
from training_worker.engines.invoke.progress_writer import ProgressWriter
from training_worker.engines.invoke.spec import Spec
from training_worker.engines.invoke.stop_signals import Control

pytestmark = pytest.mark.trainer

INVERSION = TrainingType.SDXL_TEXTUAL_INVERSION


def read_by(spec: Spec, tmp_path: Path) -> Dataset:
    """Read a data set at 64 x 64 pixels."""
    folder = tmp_path / "records"
    folder.mkdir(exist_ok=True)
    records = ProgressWriter(folder / PROGRESS_FILE)
    return read_dataset(spec, lambda _: (64, 64), records, Control(folder, records))


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


def test_all_faults_are_reported_at_once_as_the_built_in_trainer_reports_them(tmp_path: Path) -> None:
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
    """Which is reported, and not that there are no images."""
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

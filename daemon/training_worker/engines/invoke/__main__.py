"""The trainer program of the engine ``invoke``: ``PYTHON engines/invoke RUN_FOLDER``.

PYTHON is an interpreter that has invoke-training, and nothing of ours. So this file stands alone: it needs the standard
library, and late what invoke-training needs itself. It reads ``spec.json`` and appends to ``progress.jsonl``, as the
built-in trainer does. What upstream gets wrong is put right here: the data set is checked before anything is loaded,
losses that are no numbers end the run, the last step leaves a checkpoint, stops are heeded, and results bear the names
and the scale that other programs read.
"""

import errno
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import platform
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

DONE, FAILED, STOPPED = 0, 1, 3

# Upstream's own folder in the attempt's, and that of its caches in the run's.
UPSTREAM, SCRATCH = "upstream", "tmp"
# No step is a multiple of it.
NEVER = sys.maxsize
LEASE_INTERVAL = 1.0  # seconds between two looks at the lease
MIB = 2**20
MAX_HEADER = 100 * MIB  # that of safetensors itself

CONFIGS = {
    "FLUX_LORA": ("invoke_training.pipelines.flux.lora.config", "FluxLoraConfig"),
    "SDXL_LORA": ("invoke_training.pipelines.stable_diffusion_xl.lora.config", "SdxlLoraConfig"),
    "SDXL_TEXTUAL_INVERSION": (
        "invoke_training.pipelines.stable_diffusion_xl.textual_inversion.config",
        "SdxlTextualInversionConfig",
    ),
    "SDXL_FINETUNE": ("invoke_training.pipelines.stable_diffusion_xl.finetune.config", "SdxlFinetuneConfig"),
}
FLUX, INVERSION, FINETUNE = "FLUX_LORA", "SDXL_TEXTUAL_INVERSION", "SDXL_FINETUNE"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")

Fault = dict[str, str]
Size = tuple[int, int]


class Failure(Exception):  # noqa: N818 # the word of the records
    """The run failed and knows why; ``faults`` are all the things that are wrong, not only the first."""

    def __init__(self, reason: str, message: str, faults: Iterable[Fault] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.faults = list(faults)


class Stopped(Exception):  # noqa: N818 # no error: somebody asked for it
    """The run stopped at a safe point, as ``why`` says, after ``step`` optimizer steps."""

    def __init__(self, why: str, step: int = 0) -> None:
        super().__init__(why)
        self.why = why
        self.step = step


def fault(path: object, reason: object) -> Fault:
    """One thing that is wrong, as records have it."""
    return {"path": str(path), "reason": str(reason)}


def all_of(reason: str, beginning: str, faults: list[Fault]) -> Failure:
    """Tell of the first fault in words, and of all in the record."""
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return Failure(reason, f"{beginning}: {faults[0]['path']}: {faults[0]['reason']}{more}", faults)


# What is told, and what is heard.


class Records:
    """Appends records to a progress file, each as one whole line in a single write, numbered from 1."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the file.

        Raises:
            FileExistsError: The file has records already; a run folder serves one run.
        """
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if os.fstat(self._file).st_size:
            os.close(self._file)
            raise FileExistsError(errno.EEXIST, "the run has been started before", str(path))
        self._clock = clock
        self._sequence = 0
        self._rest = b""
        self.busy = False
        """A record is being written, and a signal's handler may not write one of its own."""
        self.current_phase: str | None = None

    def write(self, record: str, **fields: Any) -> None:
        """Append a record of this kind; its sequence and time are filled in here.

        Raises:
            OSError: It cannot be written, or only its beginning, which the next record then completes first.
        """
        self.busy = True
        try:
            told = {"record": record, "sequence": self._sequence + 1, "time": self._clock(), **fields}
            data = self._rest + json.dumps(told, allow_nan=False).encode() + b"\n"
            written = os.write(self._file, data)
            begun = written > len(self._rest)
            self._sequence += begun
            self._rest = data[written:] if begun else self._rest[written:]
        finally:
            self.busy = False
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def phase(self, phase: str, total: int | None = None) -> None:
        """Say that a phase begins."""
        self.current_phase = phase
        self.write("phase", phase=phase, total=total)

    def warn(self, message: str) -> None:
        """Say what the user should know and that does not stop the run."""
        self.write("warning", message=message)


class Control:
    """What the daemon tells the run: to stop, by a signal or a lease that ran out, and what else it asks for.

    SIGTERM ends the program at once where no step would be lost. Upstream's code cannot be interrupted otherwise, and
    the next step's end may be far. ``step`` and ``saved_step`` are those taken, and those that a checkpoint holds.
    """

    def __init__(self, folder: Path, records: Records, clock: Callable[[], float] = time.time) -> None:
        self.step = 0
        self.saved_step = 0
        self.clean_up: Callable[[], None] = lambda: None
        self._records = records
        self._lease = folder / "lease"
        self._requests = folder / "requests.jsonl"
        self._clock = clock
        self._next_look = 0.0
        self._orphaned = False
        self._signalled = False
        self._offset = 0

    def listen(self) -> None:
        """From now on SIGTERM stops the run."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def stop_listening(self) -> None:
        """From now on SIGTERM is ignored: it is too late, for the result or the last record is being written."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def check(self) -> None:
        """Raise `Stopped` where stopping needs no checkpoint."""
        if why := self.why_stop():
            raise Stopped(why, self.step)

    def why_stop(self) -> str | None:
        """Say why the run should stop, or None; reads the lease at most once a second."""
        if self._signalled:
            return "signal"
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + LEASE_INTERVAL
            self._orphaned = self._is_orphan(now)
        return "orphan" if self._orphaned else None

    def take_requests(self) -> set[str]:
        """Give what was asked for since the last call, each thing once; warn of lines that cannot be read."""
        requests = set()
        for line in self._new_lines():
            try:
                requests.add(_request(json.loads(line)["request"]))
            except (ValueError, KeyError, TypeError) as error:
                self._records.warn(f"cannot read request {line[:200].decode(errors='replace')!r}: {error}")
        return requests

    def _new_lines(self) -> list[bytes]:
        """Read on; a line without an end is still being written, and is left for the next time."""
        try:
            with self._requests.open("rb") as file:
                file.seek(self._offset)
                whole, end, _ = file.read().rpartition(b"\n")
        except OSError:
            return []  # there is no file before the first request
        self._offset += len(whole + end)
        return whole.split(b"\n") if end else []

    def _is_orphan(self, now: float) -> bool:
        try:
            lease = json.loads(self._lease.read_bytes())
            return bool(now > lease["deadline"] + lease["maxIsolation"])
        except (OSError, ValueError, KeyError, TypeError):
            return False  # no lease, no rule; and one that is half written will be whole at the next look

    def _on_signal(self, *_: object) -> None:
        self._signalled = True
        if self.step == self.saved_step and not self._records.busy:
            self._records.write("stopped", step=self.step, why="signal")
            self.clean_up()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(STOPPED)


def _request(name: object) -> str:
    if name not in {"checkpoint", "sample"}:
        raise ValueError(f"no such request: {name!r}")
    return str(name)


# What is to be trained.


@dataclass(frozen=True)
class Spec:
    """The fields of ``spec.json`` that matter here; ``config`` is upstream's, but for its paths."""

    job_id: str
    training_type: str
    model: Path
    dataset: Path
    attempt: Path
    device: str
    parameters: dict[str, Any]
    config: dict[str, Any]
    resume_from: str | None

    @property
    def total(self) -> int:
        """How many optimizer steps are to be taken."""
        return int(self.parameters["maxTrainSteps"])

    @property
    def upstream(self) -> Path:
        """Where upstream writes."""
        return self.attempt / UPSTREAM


def read_spec(folder: Path) -> Spec:
    """Read the spec of a run folder.

    Raises:
        Failure: It is missing, or not one for this engine.
    """
    path = folder / "spec.json"
    try:
        fields = json.loads(path.read_bytes())
        return Spec(
            job_id=fields["jobId"],
            training_type=fields["trainingType"],
            model=Path(fields["modelPath"]),
            dataset=Path(fields["datasetPath"]),
            attempt=Path(fields["attemptPath"]),
            device=fields["device"],
            parameters=fields["parameters"],
            config=fields["engineConfig"],
            resume_from=fields.get("resumeFrom"),
        )
    except KeyError as error:
        raise all_of("configInvalid", f"cannot use {path}", [fault(f"$.{error.args[0]}", "missing")]) from error
    except (OSError, ValueError, TypeError) as error:
        raise all_of("configInvalid", f"cannot use {path}", [fault("$", error)]) from error


# The data set.

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
MOST_ENLARGED = 2


@dataclass
class Entry:
    """One image of a data set and what is said of it; a fault stands where something cannot be had."""

    image: Path
    caption: Any  # str or Fault
    caption_at: str
    mask: Any = None  # Path, Fault or None
    repeats: int = 1
    size: Size = (0, 0)
    bucket: Size = (0, 0)
    notes: set[str] = field(default_factory=set)


class Dataset:
    """The entries of a data set, all of them checked."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self._digests = [_digest(entry.image) for entry in entries]

    def summary(self) -> dict[str, Any]:
        """What it holds, in numbers. The digest is that of the built-in trainer."""
        entries = self.entries
        buckets = ["{}x{}".format(*entry.bucket) for entry in sorted(entries, key=lambda entry: entry.bucket)]
        parts = sorted(
            (digest, entry.caption, _digest(entry.mask) if entry.mask else "", entry.repeats)
            for digest, entry in zip(self._digests, entries, strict=True)
        )
        text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
        return {
            "images": len(entries),
            "samples": sum(entry.repeats for entry in entries),
            "buckets": {bucket: buckets.count(bucket) for bucket in dict.fromkeys(buckets)},
            "masks": sum(entry.mask is not None for entry in entries),
            "captions": len({entry.caption for entry in entries}),
            "enlarged": sum(_enlarged(entry.size, entry.bucket, 1) for entry in entries),
            "duplicates": len(entries) - len(set(self._digests)),
            "digest": hashlib.sha256(text.encode()).hexdigest(),
        }

    def warnings(self) -> list[str]:
        """Put into words what is no fault, but seldom meant."""
        count, summary = len(self.entries), self.summary()
        found = [f"{n} of {count} images {note}" for note in NOTES if (n := sum(note in e.notes for e in self.entries))]
        if summary["duplicates"]:
            found.append(f"{summary['duplicates']} of {count} images are in the data set more than once")
        if summary["enlarged"]:
            found.append(f"{summary['enlarged']} of {count} images are enlarged, which blurs them")
        if count > 1 and summary["captions"] == 1:
            found.append(f"all {count} captions are the same")
        return found

    def write(self, path: Path, spec: Spec) -> None:
        """Write it as upstream reads it: absolute paths, final captions, a line for each repeat."""
        # Upstream's template puts the new tokens before each caption itself.
        trigger = "" if spec.training_type == INVERSION else spec.parameters["triggerWord"]
        lines = []
        for entry in self.entries:
            line = {
                "image": str(entry.image.absolute()),
                "text": full_caption(entry.caption, trigger, spec.parameters["captionPrefix"]),
                **({} if entry.mask is None else {"mask": str(entry.mask.absolute())}),
            }
            lines += [json.dumps(line) + "\n"] * entry.repeats
        path.write_text("".join(lines), encoding="ascii")


NOTES = {
    "turned": "are turned by their EXIF data, which invoke-training does not read: they are trained as they lie",
    "transparent": "may have transparent parts, whose hidden colours are trained",
}


def full_caption(caption: str, trigger: str, prefix: str) -> str:
    """Put the trigger word before a caption that does not hold it, and then the prefix before all."""
    trigger = trigger.strip()
    if trigger and not re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption):
        caption = ", ".join(text for text in (trigger, caption.strip()) if text)
    return " ".join(text for text in (prefix.strip(), caption.strip()) if text)


def read_dataset(spec: Spec, bucket_of: Callable[[Size], Size], records: Records, control: Control) -> Dataset:
    """Find the images of a data set, decode each of them, and read all captions and masks.

    Raises:
        Failure: There is none, or something in it cannot be trained on; it names all of that.
    """
    importlib.import_module("PIL.Image")  # where it is missing, that is no image's fault
    path, beginning = spec.dataset, f"cannot use data set {spec.dataset}"
    if not path.exists():
        raise Failure("datasetMissing", f"cannot read data set {path}: no such file or folder")
    try:
        listed = list_entries(path)
    except PermissionError as error:
        raise all_of("datasetInvalid", beginning, [fault(error.filename, error.strerror)]) from error
    records.phase("checkingDataset", total=sum(isinstance(entry, Entry) for entry in listed))
    faults: list[Fault] = []
    for entry in listed:
        control.check()
        faults += [entry] if isinstance(entry, dict) else check_entry(entry, spec, bucket_of)
    if not listed:
        faults = [fault(path, f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}), nor a list of any")]
    if faults:
        raise all_of("datasetInvalid", beginning, faults)
    return Dataset([entry for entry in listed if isinstance(entry, Entry)])


def list_entries(path: Path) -> list[Any]:
    """List the images of a folder, or of a file of lines, as entries and faults, always in the same order."""
    if not path.is_dir():
        if path.suffix == ".jsonl" and path.is_file():
            return read_lines(path)
        return [fault(path, "neither a folder nor a .jsonl file")]
    for name in ("data.jsonl", "metadata.jsonl"):
        if (path / name).is_file():
            return read_lines(path / name)
    if (path / "state.json").is_file() or any(path.glob("*.parquet")) or any(path.glob("data/*.parquet")):
        return [fault(path, "a table; the engine invoke reads folders of images and .jsonl files, diffusers this")]
    files = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    return [Entry(image, _read_caption(image.with_suffix(".txt")), str(image.with_suffix(".txt"))) for image in images]


def _read_caption(path: Path) -> Any:
    try:
        # Reading a pipe would wait for somebody to write.
        return path.read_text(encoding="utf-8-sig").strip() if path.is_file() else fault(path, "missing caption")
    except (OSError, UnicodeDecodeError) as error:
        return fault(path, f"unreadable caption: {error}")


def read_lines(path: Path) -> list[Any]:
    """Read a file of lines; each becomes an entry or a fault, empty ones neither. Paths are relative to its folder."""
    lines = enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
    return [_read_line(line, path.parent, f"{path}:{number}") for number, line in lines if line.strip()]


def _read_line(data: bytes, folder: Path, where: str) -> Any:
    try:
        fields = json.loads(data)
        _check_line(fields)
        name, caption = _first(fields, "image", "file_name"), _first(fields, "text", "caption")
        if name is None:
            return fault(where, "no image: none of image, file_name")
        image = path_inside(folder, name)
    except (ValueError, RecursionError) as error:
        return fault(where, error)
    return Entry(
        image=image,
        caption=fault(where, "missing caption: none of text, caption") if caption is None else caption.strip(),
        caption_at=where,
        mask=None if fields.get("mask") is None else _line_mask(folder, fields["mask"], where),
        repeats=fields.get("repeats", 1),
    )


def _check_line(fields: Any) -> None:
    if not isinstance(fields, dict):
        raise ValueError("not an object")  # noqa: TRY004 # a fault of the data, as bad JSON is
    for name in ("image", "file_name", "text", "caption", "mask"):
        if not isinstance(fields.get(name), str | None):
            raise ValueError(f"{name} is not text")  # noqa: TRY004
    repeats = fields.get("repeats", 1)
    if type(repeats) is not int or repeats < 1:
        raise ValueError("repeats is not a number from 1")


def _first(fields: Mapping[str, Any], *names: str) -> Any:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _line_mask(folder: Path, name: str, where: str) -> Any:
    try:
        return path_inside(folder, name)
    except ValueError as error:
        return fault(where, f"unusable mask: {error}")


def path_inside(folder: Path, name: str) -> Path:
    """Find a file that the data set names, which must lie in its folder: it may come from anybody.

    Raises:
        ValueError: It lies outside, at least by its name, or cannot be a path at all.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name!r} is not a path below the data set")
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # too long a name, or links that go round in a circle
        raise ValueError(f"{name!r} cannot be followed: {error}") from error
    if not inside:
        raise ValueError(f"{name!r} leads out of the data set")
    return folder / name


def check_entry(entry: Entry, spec: Spec, bucket_of: Callable[[Size], Size]) -> list[Fault]:
    """Read what an entry names, fill in what is seen there, and tell all that is wrong."""
    return [*_check_image(entry, bucket_of), *_check_caption(entry, spec), *_check_mask(entry, spec)]


def _check_image(entry: Entry, bucket_of: Callable[[Size], Size]) -> list[Fault]:
    try:
        image = _decode(entry.image, "RGB")
    except Exception as error:  # noqa: BLE001 # Pillow's decoders raise what they like on broken files
        return [fault(entry.image, f"unreadable image: {error}")]
    entry.size, entry.bucket = image.size, bucket_of(image.size)
    entry.notes = image.info["notes"]
    if not _enlarged(entry.size, entry.bucket, MOST_ENLARGED):
        return []
    sizes = "{}x{} pixels do not cover {}x{}".format(*entry.size, *entry.bucket)
    return [fault(entry.image, f"too small: {sizes} even when enlarged {MOST_ENLARGED} times")]


def _check_caption(entry: Entry, spec: Spec) -> list[Fault]:
    """A caption may be empty where the settings put something before it."""
    if isinstance(entry.caption, dict):
        return [entry.caption]
    trigger, prefix = spec.parameters["triggerWord"], spec.parameters["captionPrefix"]
    return [] if full_caption(entry.caption, trigger, prefix) else [fault(entry.caption_at, "empty caption")]


def _check_mask(entry: Entry, spec: Spec) -> list[Fault]:
    if not spec.parameters["maskedLoss"]:
        entry.mask = None
        return []
    if isinstance(entry.mask, dict):
        return [entry.mask]
    folder = spec.dataset if spec.dataset.is_dir() else spec.dataset.parent
    entry.mask = entry.mask or folder / "masks" / f"{entry.image.stem}.png"
    try:
        reason = _mask_fault(_decode(entry.mask, "L"), entry.size)
    except Exception as error:  # noqa: BLE001 # as above
        reason = str(error)
    return [fault(entry.mask, f"unusable mask: {reason}")] if reason else []


def _mask_fault(mask: Any, size: Size) -> str | None:
    """Say why a mask does not fit an image of this size, or one that cannot be read."""
    if mask.getbbox() is None:
        return "all black"
    if size in {(0, 0), mask.size}:
        return None
    return "{}x{} pixels, but its image has {}x{}".format(*mask.size, *size)


def _decode(path: Path, mode: str) -> Any:
    """Decode an image as upstream will; what it passes over is noted. Raises what Pillow does."""
    from PIL import Image  # noqa: PLC0415 # a run without it has to tell so

    if not path.is_file():  # opening a pipe would wait for somebody to write
        raise FileNotFoundError("no such file")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as file:
            file.verify()  # checksums, which decoding passes over
        with Image.open(path) as file:
            seen = {"turned": file.getexif().get(0x0112, 1) != 1, "transparent": file.has_transparency_data}
            image = file.convert(mode)
    image.info = {"notes": {note for note, there in seen.items() if there}}
    return image


def _enlarged(size: Size, bucket: Size, times: int) -> bool:
    """Whether an image must be enlarged more than so many times to cover its bucket."""
    return any(wanted > times * there for there, wanted in zip(size, bucket, strict=True))


def bucket_finder(config: Mapping[str, Any]) -> Callable[[Size], Size]:
    """Give what tells the size, as (width, height), at which upstream trains an image of a size."""
    loader = config["data_loader"]
    if not loader.get("aspect_ratio_buckets"):
        side = loader["resolution"]
        return lambda _: (side, side)
    utilities = "invoke_training._shared.data.utils"
    manager = importlib.import_module(f"{utilities}.aspect_ratio_bucket_manager").AspectRatioBucketManager
    resolution = importlib.import_module(f"{utilities}.resolution").Resolution
    buckets = manager.from_constraints(**loader["aspect_ratio_buckets"])

    def find(size: Size) -> Size:
        bucket = buckets.get_aspect_ratio_bucket(resolution(height=size[1], width=size[0]))
        return bucket.width, bucket.height

    return find


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


# The model, and upstream's config.


def check_model(folder: Path, training_type: str) -> None:
    """Look at the base model without loading it.

    Raises:
        Failure: It is missing, of another family, incomplete, or as transformers 4 would read it wrongly.
    """
    if not folder.is_dir():
        raise Failure("modelMissing", f"cannot load model {folder}: no such folder")
    flux = training_type == FLUX
    try:
        name = json.loads((folder / "model_index.json").read_bytes())["_class_name"]
        faults = _part_faults(folder, flux)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise all_of(
            "modelInvalid", f"cannot load model {folder}", [fault(folder / "model_index.json", error)]
        ) from error
    if not name.startswith("Flux" if flux else "StableDiffusionXL"):
        faults = [fault(folder / "model_index.json", f"a {name}, which {training_type} cannot be trained on")]
    if faults:
        raise all_of("modelInvalid", f"cannot load model {folder}", faults)


def _part_faults(folder: Path, flux: bool) -> list[Fault]:
    parts = ("transformer" if flux else "unet", "vae", "text_encoder", "text_encoder_2")
    faults = [fault(folder / part, "no .safetensors here") for part in parts if not _weights_of(folder / part)]
    clip = folder / "text_encoder"
    if _weights_of(clip) and not any(name.startswith("text_model.") for name in _tensor_names(clip)):
        reason = "saved by transformers 5, from which version 4 would read random weights: no key has text_model."
        faults.append(fault(clip, reason))
    tokenizers = ("tokenizer",) if flux else ("tokenizer", "tokenizer_2")
    files = [folder / part / name for part in tokenizers for name in ("vocab.json", "merges.txt")]
    return faults + [fault(file, "missing; transformers 4 needs it") for file in files if not file.is_file()]


def _weights_of(part: Path) -> list[Path]:
    return sorted(part.glob("*.safetensors"))


def _tensor_names(part: Path) -> Iterator[str]:
    """List the tensors in a part's files, by their headers alone."""
    for path in _weights_of(part):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MAX_HEADER else None
        if not isinstance(header, dict):
            raise ValueError(f"{path} is no file of safetensors")  # noqa: TRY004 # as where it is no JSON
        yield from header.keys() - {"__metadata__"}


def upstream_config(spec: Spec, lines: Path) -> Any:
    """Make upstream's config of the spec's, and have upstream check it.

    Raises:
        Failure: A word is unknown there, or its value is none for it; it names them all.
    """
    module, name = CONFIGS[spec.training_type]
    images = {
        "type": "IMAGE_CAPTION_JSONL_DATASET",
        "jsonl_path": str(lines),
        "image_column": "image",
        "caption_column": "text",
    }
    words = {
        **spec.config,
        "model": str(spec.model),
        "base_output_dir": str(spec.upstream),
        "data_loader": {**spec.config["data_loader"], "dataset": images},
        "max_train_steps": spec.total,
        # When it saves and draws is decided at each step.
        "save_every_n_steps": NEVER,
        "validate_every_n_steps": NEVER,
    }
    kind = getattr(importlib.import_module(module), name)
    invalid = importlib.import_module("pydantic").ValidationError
    try:
        return kind.model_validate(words)
    except invalid as error:
        faults = [fault(_field(problem["loc"]), problem["msg"]) for problem in error.errors()]
        raise all_of("configInvalid", "cannot use the config", faults) from error


def check_words(config: Mapping[str, Any]) -> None:
    """See that what is read here is there; the rest is upstream's to check."""
    loader = config.get("data_loader")
    if not isinstance(loader, dict):
        raise all_of("configInvalid", "cannot use the config", [fault("$.engineConfig.data_loader", "missing")])
    if not loader.get("aspect_ratio_buckets") and type(loader.get("resolution")) is not int:
        raise all_of("configInvalid", "cannot use the config", [fault("$.engineConfig.data_loader.resolution", "none")])


def _field(location: Iterable[object]) -> str:
    """Name a field without the names of classes and types that pydantic puts between where it has several to try."""
    parts = [str(part) for part in location]
    return ".".join(["$.engineConfig", *(part for part in parts if not re.fullmatch(r"[A-Z]\w*(_|Config)\w*", part))])


# The run.


class Run:
    """Training itself: what upstream tells, and what it is told."""

    def __init__(self, spec: Spec, config: Any, records: Records, control: Control) -> None:
        self._spec = spec
        self._config = config
        self._records = records
        self._control = control
        self._drawing = False
        self.losses: list[float] = []
        self.samples: list[Path] = []
        self.checkpoint: Path | None = None

    def train(self) -> None:
        """Train up to the last checkpoint and the last pictures.

        Raises:
            Stopped: The run was stopped, and a checkpoint holds its steps.
            Failure: It failed for a known reason. Upstream raises whatever it likes.
        """
        self._records.phase("loadingModel")
        self._control.check()
        quiet_bars()
        upstream = importlib.import_module("invoke_training.pipelines.invoke_train")
        require_device(self._spec.device)
        self._control.check()
        importlib.import_module("accelerate").Accelerator.log = lambda _, values, step=None, **__: self.on_log(
            values, step
        )
        logging.basicConfig(format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", level=logging.INFO)
        logging.getLogger().addHandler(PhaseHandler(self._records, self._spec.total))
        upstream.train(self._config, [_callbacks(self)])
        if self._control.saved_step != self._spec.total:
            steps = f"after {self._control.step} of {self._spec.total} steps"
            raise Failure("trainerCrashed", f"cannot go on: invoke-training ended {steps}")

    def on_log(self, values: Mapping[str, Any], step: int | None) -> None:
        """Hear of a step, and decide what upstream does after it: it reads its config anew each time."""
        if step is None:  # the config, before the first step
            return
        if not math.isfinite(loss := values["train_loss"]):
            raise Failure("lossNotFinite", f"cannot go on: the loss of step {step} is {loss}")
        if self._records.current_phase != "training":
            self._records.phase("training", total=self._spec.total)
        self._control.step = step
        self.losses.append(loss)
        rate = next(values[name] for name in sorted(values, key=_rate_order) if name.startswith("lr"))
        self._records.write("step", step=step, totalSteps=self._spec.total, loss=loss, learningRate=rate)
        self._decide(step)

    def _decide(self, step: int) -> None:
        last, stop = step == self._spec.total, self._control.why_stop() is not None
        wanted = self._control.take_requests() | self._due(step)
        if "sample" in wanted and not self._config.validation_prompts:
            self._records.warn("cannot draw samples: the job has no validation prompts")
        saving = last or stop or "checkpoint" in wanted
        self._drawing = not stop and bool(self._config.validation_prompts) and (last or "sample" in wanted)
        self._config.save_every_n_steps = 1 if saving else NEVER
        self._config.validate_every_n_steps = 1 if self._drawing else NEVER
        if saving:
            self._records.phase("checkpointing")
        elif self._drawing:
            self._go_on()

    def _due(self, step: int) -> set[str]:
        every = {"checkpoint": self._spec.parameters["checkpointEvery"]}
        if self._config.validation_prompts:
            every["sample"] = self._spec.parameters["sampleEvery"]
        return {request for request, steps in every.items() if steps and step % steps == 0}

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        """Put a checkpoint where it belongs, and only then tell of it."""
        source = Path(checkpoint.models[0].file_path)
        require_finite(source, checkpoint.step)
        target = self._spec.attempt / "checkpoints" / f"step-{checkpoint.step:08}"
        self.checkpoint = keep_checkpoint(source, target, CHECKPOINT_FILES.get(self._spec.training_type, ""))
        self._records.write("checkpoint", step=checkpoint.step, path=str(target))
        self._control.saved_step = checkpoint.step
        # Only now that the daemon can know of the new one.
        for old in sorted(target.parent.glob("step-*"))[: -self._spec.parameters["keepCheckpoints"]]:
            shutil.rmtree(old, ignore_errors=True)
        self._control.check()
        self._go_on()

    def on_save_validation_images(self, images: Any) -> None:
        """Put pictures where they belong, as PNG, and tell of each."""
        from PIL import Image  # noqa: PLC0415 # see above

        folder = self._spec.attempt / "samples"
        folder.mkdir(exist_ok=True)
        for index, drawn in enumerate(images.images):
            path = folder / f"step-{images.step:08}-{index:02}.png"
            with Image.open(drawn.file_path) as image:
                image.save(path)
            self._records.write("sample", step=images.step, path=str(path), prompt=drawn.prompt)
            self.samples.append(path)
        self._drawing = False
        self._go_on()

    def _go_on(self) -> None:
        if self._drawing:
            self._records.phase("sampling", total=len(self._config.validation_prompts))
        elif self._control.step < self._spec.total:
            self._records.phase("training", total=self._spec.total)


def _rate_order(name: str) -> tuple[bool, bool]:
    """Of Prodigy the rate that it found first, and that of the denoiser before those of text encoders."""
    return not name.startswith("lr/d*lr"), "text_encoder" in name


def _callbacks(run: Run) -> Any:
    base: Any = importlib.import_module("invoke_training.pipelines.callbacks").PipelineCallbacks

    class Callbacks(base):  # type: ignore[misc] # a class of upstream's
        def on_save_checkpoint(self, checkpoint: Any) -> None:
            run.on_save_checkpoint(checkpoint)

        def on_save_validation_images(self, images: Any) -> None:
            run.on_save_validation_images(images)

    return Callbacks()


class PhaseHandler(logging.Handler):
    """Knows upstream's phases by its log, which is all that is told of them."""

    PHASES = {
        "Generating text encoder output cache": "cachingText",
        "Generating VAE output cache": "cachingLatents",
        "***** Running training": "training",
    }

    def __init__(self, records: Records, total: int) -> None:
        super().__init__(logging.INFO)
        self._records = records
        self._total = total

    def emit(self, record: logging.LogRecord) -> None:
        """Tell of a phase that begins."""
        message = record.getMessage()
        for beginning, phase in self.PHASES.items():
            if message.startswith(beginning):
                self._records.phase(phase, total=self._total if phase == "training" else None)


def quiet_bars() -> None:
    """Keep bars of progress out of the output, whose last lines are to tell of a failure."""
    module: Any = importlib.import_module("tqdm.auto")
    bar: Any = module.tqdm

    class NoBar(bar):  # type: ignore[misc] # a class of tqdm's
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    module.tqdm = NoBar


def require_device(device: str) -> None:
    """See that a run for a card has one: accelerate would go on without, a hundred times as slow."""
    if device != "cpu" and not importlib.import_module("torch").cuda.is_available():
        raise Failure("hostUnfit", f"cannot train on {device}: torch of {sys.executable} finds no card")


# Checkpoints and results.

# What upstream saves as a file, and not as a folder.
CHECKPOINT_FILES = {"SDXL_LORA": "kohya_lora.safetensors", INVERSION: "learned_embeds.safetensors"}


def require_finite(checkpoint: Path, step: int) -> None:
    """See that all that was trained is numbers: the gradients of a finite loss may not be.

    Raises:
        Failure: It is not.
    """
    safetensors = importlib.import_module("safetensors")
    for file in _trained_files(checkpoint):
        with safetensors.safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 # it is no mapping
                if not tensors.get_tensor(name).isfinite().all():
                    raise Failure("lossNotFinite", f"cannot go on: {name} is not finite after step {step}")


def _trained_files(checkpoint: Path) -> list[Path]:
    if checkpoint.is_file():
        return [checkpoint]
    unet = checkpoint / "unet"  # of a whole pipeline, the rest of which did not learn
    return sorted((unet if unet.is_dir() else checkpoint).rglob("*.safetensors"))


def keep_checkpoint(source: Path, target: Path, name: str) -> Path:
    """Move a checkpoint to its folder, which is there only when all of it is; gives the checkpoint's new path."""
    target.parent.mkdir(exist_ok=True)
    folder = source
    if source.is_file():
        folder = target.with_name(f".{target.name}.partial")
        folder.mkdir()
        source.rename(folder / name)
    make_safe([*folder.rglob("*"), folder])
    folder.rename(target)
    flush(target.parent)
    return target / name if name else target


def make_safe(paths: Iterable[Path]) -> None:
    """Make files readable for everybody, and see that they survive a loss of power."""
    for path in paths:
        if path.is_file():
            path.chmod(0o644)
        flush(path)


def flush(path: Path) -> None:
    """Make sure that a file or a folder survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Export:
    """Makes the result of the last checkpoint: files that other programs read, and that say what they are.

    What it needs of ours is read at once, and not only after hours of training.
    """

    def __init__(self, spec: Spec, dataset_hash: str) -> None:
        self._spec = spec
        self._dataset_hash = dataset_hash
        self._kohya = load_kohya()
        self._version = runpy.run_path(str(OURS / "version.py"))["__version__"]

    def write(self, checkpoint: Path) -> dict[Path, str]:
        """Write the result, and give its files with their kinds."""
        attempt = self._spec.attempt
        if self._spec.training_type == FINETUNE:
            return dict.fromkeys(write_pipeline(self._spec.model, checkpoint, attempt / "pipeline"), "pipeline")
        if self._spec.training_type == INVERSION:
            path = attempt / "learned_embeds.safetensors"
            self._write_file({name: weight.float() for name, weight in _load(checkpoint).items()}, path, SDXL_CODE)
            return {path: "embeddings"}
        flux, kohya = self._spec.training_type == FLUX, self._kohya
        weights = flux_weights(checkpoint) if flux else sdxl_weights(checkpoint, self._spec.model)
        convert, code = (kohya.flux_to_kohya, FLUX_CODE) if flux else (kohya.sdxl_to_kohya, SDXL_CODE)
        ours, theirs = attempt / "pytorch_lora_weights.safetensors", attempt / "kohya_lora.safetensors"
        self._write_file(weights, ours, "diffusers")
        self._write_file(convert(weights), theirs, code)
        return {ours: "adapter", theirs: "kohyaAdapter"}

    def _write_file(self, tensors: Mapping[str, Any], path: Path, implementation: str) -> None:
        """Write tensors with metadata and a hash of them all; the file is whole or not there."""
        torch_files = importlib.import_module("safetensors.torch")
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        content = memoryview(torch_files.save(whole))
        # As the standard says: what follows the header, whose length is the first eight bytes.
        digest = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
        metadata = {"format": "pt", **self._metadata(implementation), "modelspec.hash_sha256": f"0x{digest}"}
        partial = path.with_name(f".{path.name}.partial")
        try:
            torch_files.save_file(whole, partial, metadata)
            make_safe([partial])
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)

    def _metadata(self, implementation: str) -> dict[str, str]:
        """Describe the result as the built-in trainer does: modelspec 1.0.1, sd-scripts' ``ss_``, and our own."""
        parameters, kind = self._spec.parameters, self._spec.training_type
        metadata = {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": ARCHITECTURES[kind],
            "modelspec.implementation": implementation,
            "modelspec.title": self._spec.job_id,
            "modelspec.resolution": "{0}x{0}".format(parameters["resolution"]),
            "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
            "training_worker.version": self._version,
            "training_worker.base_model": self._spec.model.name,
            "training_worker.dataset_hash": self._dataset_hash,
            "training_worker.step": str(self._spec.total),
            "training_worker.settings": json.dumps(parameters, separators=(",", ":")),
        }
        if parameters["triggerWord"]:
            metadata["modelspec.trigger_phrase"] = parameters["triggerWord"]
        if kind in NETWORKS:
            metadata["ss_base_model_version"], metadata["ss_network_module"] = NETWORKS[kind]
            metadata["ss_network_dim"] = metadata["ss_network_alpha"] = str(parameters["loraRank"])
        return metadata


OURS = Path(__file__).resolve().parents[2]
FLUX_CODE = "https://github.com/black-forest-labs/flux"
SDXL_CODE = "https://github.com/Stability-AI/generative-models"
ARCHITECTURES = {
    FLUX: "flux-1-dev/lora",
    "SDXL_LORA": "stable-diffusion-xl-v1-base/lora",
    INVERSION: "stable-diffusion-xl-v1-base/textual-inversion",
}
NETWORKS = {FLUX: ("flux1", "networks.lora_flux"), "SDXL_LORA": ("sdxl_base_v1-0", "networks.lora")}


def load_kohya() -> Any:
    """Load the built-in trainer's names of kohya, which need torch alone, from their file."""
    found: Any = importlib.util.spec_from_file_location("kohya", OURS / "engines" / "common" / "export" / "kohya.py")
    module: Any = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def flux_weights(folder: Path) -> dict[str, Any]:
    """Read PEFT's folder of an adapter of FLUX, in diffusers' names, so that alpha equals the rank."""
    settings = json.loads((folder / "transformer" / "adapter_config.json").read_bytes())
    scale = settings["lora_alpha"] / settings["r"]
    weights = {}
    for key, weight in _load(folder / "transformer" / "adapter_model.safetensors").items():
        name = "transformer." + key.removeprefix("base_model.model.")
        weights[name] = weight.float() * (scale if name.endswith(".lora_B.weight") else 1)
    return weights


def sdxl_weights(file: Path, model: Path) -> dict[str, Any]:
    """Read a file of an adapter of SDXL in the same way. Its names are the layers' with underscores for dots."""
    layers = {
        f"{prefix}_{name.removesuffix('.weight').replace('.', '_')}": f"{part}.{name.removesuffix('.weight')}"
        for part, prefix in (("unet", "lora_unet"), ("text_encoder", "lora_te1"), ("text_encoder_2", "lora_te2"))
        for name in _tensor_names(model / part)
        if name.endswith(".weight")
    }
    found = _load(file)
    weights = {}
    for module in sorted({key.split(".")[0] for key in found}):
        down, up = found[f"{module}.lora_down.weight"].float(), found[f"{module}.lora_up.weight"].float()
        weights[f"{layers[module]}.lora_A.weight"] = down
        weights[f"{layers[module]}.lora_B.weight"] = up * (found[f"{module}.alpha"].item() / len(down))
    return weights


def write_pipeline(base: Path, checkpoint: Path, folder: Path) -> list[Path]:
    """Write a pipeline's folder: the UNet that learned, and the other parts of the base as they are.

    Upstream's own folder has the scheduler that it trained with, and all parts in the type of the UNet.
    """
    index = json.loads((base / "model_index.json").read_bytes())
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir()
    shutil.copyfile(base / "model_index.json", partial / "model_index.json")
    for part in index:
        source = checkpoint / part if part == "unet" else base / part
        if source.is_dir():
            _copy_part(source, partial / part)
    make_safe([*partial.rglob("*"), partial])
    partial.rename(folder)
    flush(folder.parent)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _copy_part(source: Path, target: Path) -> None:
    target.mkdir()
    for file in source.iterdir():
        # Of a variant, as in `model.fp16.safetensors`, there is another file that is read by itself.
        variant = file.suffix == ".safetensors" and "." in file.stem
        if file.is_file() and file.suffix in {".json", ".txt", ".model", ".safetensors"} and not variant:
            shutil.copyfile(file, target / file.name)


def _load(file: Path) -> dict[str, Any]:
    tensors: dict[str, Any] = importlib.import_module("safetensors.torch").load_file(file)
    return tensors


def describe(files: Mapping[Path, str], attempt: Path) -> list[dict[str, Any]]:
    """Describe the files of a result by their kinds, all of them safe on disk."""
    make_safe([*files, *{path.parent for path in files}, attempt])
    return [
        {
            "path": path.relative_to(attempt).as_posix(),
            "kind": kind,
            "sizeBytes": path.stat().st_size,
            "sha256": _digest(path),
        }
        for path, kind in files.items()
    ]


def versions() -> dict[str, str]:
    """The libraries that a result depends on; upstream has no releases, so its version is that of its commit."""
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, "invoke_training"):
        try:
            library = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # it was imported from a path
        source = json.loads(library.read_text("direct_url.json") or "{}")
        commit = upstream_commit(source) if name == "invoke_training" else None
        found[name] = f"{library.version}+{commit}" if commit else library.version
    return found


def upstream_commit(source: Mapping[str, Any]) -> str | None:
    """Tell the commit of what was installed from a repository, or from a folder that is one; None if neither is so."""
    if "vcs_info" in source:
        return str(source["vcs_info"]["commit_id"])
    if "url" not in source:
        return None
    git = Path(unquote(urlparse(source["url"]).path)) / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
    except OSError:
        return None


# From the first record to the last.


def main() -> int:
    """Train what the run folder says that is named on the command line."""
    if len(sys.argv) != 2:  # noqa: PLR2004
        print(f"usage: {sys.argv[0]} RUN_FOLDER", file=sys.stderr)  # noqa: T201
        return 2
    folder = Path(sys.argv[1])
    try:
        records = Records(folder / "progress.jsonl")
    except OSError as error:
        print(f"cannot start: {error}", file=sys.stderr)  # noqa: T201 # there is no record to say it in
        return FAILED
    control = Control(folder, records)
    control.listen()
    return run(folder, records, control)


def run(folder: Path, records: Records, control: Control) -> int:
    """Run to the last record, whatever happens."""
    try:
        train(folder, records, control)
    except Stopped as stop:
        _end(control)
        records.write("stopped", step=stop.step, why=stop.why)
        return STOPPED
    except Exception as error:  # noqa: BLE001 # reported, as whatever it is
        failure = failure_of(error, records.current_phase)
        if failure is not error:
            traceback.print_exc()
        _end(control)
        _report(failure, records)
        return FAILED
    return DONE


def _end(control: Control) -> None:
    """Before the last record, which may need the room on a full disk."""
    control.stop_listening()
    control.clean_up()


def _report(failure: Failure, records: Records) -> None:
    try:
        records.write("failed", reason=failure.reason, message=str(failure), faults=failure.faults)
    except OSError as error:  # the disk of the run folder is full, too
        print(f"cannot report the failure: {error}\n{failure}", file=sys.stderr)  # noqa: T201 # nor anywhere else


def train(folder: Path, records: Records, control: Control) -> None:
    """Check, train, export, and report all of it up to the last record."""
    records.phase("starting")
    control.check()
    spec = read_spec(folder)
    prepare(folder, spec, control)
    check_words(spec.config)
    dataset = read_dataset(spec, bucket_finder(spec.config), records, control)
    lines = folder / "dataset.jsonl"
    dataset.write(lines, spec)
    summary = dataset.summary()
    records.write("dataset", summary=summary)
    for message in [*dataset.warnings(), *standing_warnings(spec)]:
        records.warn(message)
    check_model(spec.model, spec.training_type)
    control.check()
    training = Run(spec, upstream_config(spec, lines), records, control)
    export = Export(spec, summary["digest"])
    training.train()
    control.check()
    control.stop_listening()
    records.phase("exporting")
    checkpoint: Any = training.checkpoint
    files = export.write(checkpoint)
    artifacts = describe({**files, **dict.fromkeys(training.samples, "sample")}, spec.attempt)
    control.clean_up()
    records.write(
        "done",
        steps=spec.total,
        firstLoss=training.losses[0],
        lastLoss=training.losses[-1],
        artifacts=artifacts,
        peakVramMib=peak_mib(),
        versions=versions(),
    )


def prepare(folder: Path, spec: Spec, control: Control) -> None:
    """Make the folders of a run; what upstream leaves behind goes when it ends.

    Raises:
        Failure: Results cannot be written.
    """
    try:
        spec.attempt.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        message = f"cannot write to attempt folder {spec.attempt}: {error.strerror}"
        raise Failure("outputInvalid", message) from error
    scratch = folder / SCRATCH
    scratch.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    if spec.device == "cpu":  # accelerate takes a card where it finds one
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def clean_up() -> None:
        for path in (spec.upstream, scratch, *spec.attempt.glob(".*.partial")):
            shutil.rmtree(path, ignore_errors=True)

    control.clean_up = clean_up


def standing_warnings(spec: Spec) -> list[str]:
    """What is wrong with upstream and cannot be put right from outside, where it matters for the run."""
    found = []
    if spec.training_type == FLUX:
        found.append(
            "invoke-training does not subtract the shift of FLUX's autoencoder: it trains on latents that lie beside "
            "those that FLUX draws"
        )
    if spec.resume_from is not None:
        found.append(f"invoke-training resumes nothing: {spec.resume_from} is passed over, training starts from step 0")
    return found


NO_SPACE = "No space left on device"  # what a library says when it does not hand on the error number


def failure_of(error: Exception, phase: str | None = None) -> Failure:
    """Tell what an exception means for the job, and in which phase memory ran out; what nobody foresaw is a crash."""
    if isinstance(error, Failure):
        return error
    text = f"{type(error).__name__}: {error}"
    if _is_out_of_memory(error):
        peak = peak_mib()
        held = "" if peak is None else f", of which it held {peak} MiB"
        return Failure("outOfMemory", f"cannot go on: out of memory in phase {phase}{held}: {error}")
    if getattr(error, "errno", None) == errno.ENOSPC or NO_SPACE in text:
        return Failure("diskFull", f"cannot write: {error}")
    if isinstance(error, PermissionError):
        reading = phase == "loadingModel"
        return Failure(
            "modelInvalid" if reading else "outputInvalid", f"cannot {'read' if reading else 'write'}: {error}"
        )
    if isinstance(error, ImportError):
        where = "in the environment whose interpreter the settings name as engines.invoke.python"
        message = f"cannot import what training needs: {error}; install invoke-training, and all that it needs, {where}"
        return Failure("hostUnfit", message)
    return Failure("trainerCrashed", f"cannot go on: {text}")


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # a run that never imported it has no such error
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.cuda.OutOfMemoryError))


def peak_mib() -> int | None:
    """The most that the program has held of its card, in MiB; None without a card, or without torch."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_reserved() // MIB if torch is not None and torch.cuda.is_available() else None


if __name__ == "__main__":
    sys.exit(main())

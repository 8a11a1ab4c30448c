"""What is told of a data set that can be trained on, and what its owner may want to look at again."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from training_schemas.progress import DatasetSummary
from training_worker.engines.diffusers.data.examples import Example
from training_worker.engines.diffusers.data.images import cover_scale

NAMED_AT_MOST = 5


class DatasetReport(msgspec.Struct, frozen=True, kw_only=True):
    """A data set in numbers; ``duplicates`` groups the paths of images whose files are the same byte for byte."""

    summary: DatasetSummary
    duplicates: list[list[str]]

    def warnings(self) -> list[str]:
        """Put into words what is no fault, but seldom meant."""
        found, images = [], self.summary.images
        if self.duplicates:
            groups = [" = ".join(Path(path).name for path in group) for group in self.duplicates[:NAMED_AT_MOST]]
            more = ", ..." if len(self.duplicates) > NAMED_AT_MOST else ""
            found.append(f"images that are in the data set more than once: {', '.join(groups)}{more}")
        if self.summary.enlarged:
            found.append(f"{self.summary.enlarged} of {images} images are enlarged, which blurs them")
        if images > 1 and self.summary.captions == 1:
            found.append(f"all {images} captions are the same")
        return found


def report_on(examples: Sequence[Example]) -> DatasetReport:
    """Count what a data set holds."""
    counts = Counter(example.bucket for example in examples)
    scales = [cover_scale(example.width, example.height, example.bucket) for example in examples]
    duplicates = _duplicates(examples)
    summary = DatasetSummary(
        images=len(examples),
        samples=sum(example.repeats for example in examples),
        buckets={f"{width}x{height}": counts[width, height] for width, height in sorted(counts)},
        masks=sum(example.mask is not None for example in examples),
        captions=len({example.caption for example in examples}),
        enlarged=sum(scale > 1 for scale in scales),
        duplicates=sum(len(group) - 1 for group in duplicates),
        digest=_digest(examples),
    )
    return DatasetReport(summary=summary, duplicates=duplicates)


def _duplicates(examples: Sequence[Example]) -> list[list[str]]:
    groups = defaultdict(list)
    for example in examples:
        groups[example.digest].append(str(example.image))
    return [group for group in groups.values() if len(group) > 1]


def _digest(examples: Sequence[Example]) -> str:
    """Hash what is trained on, whatever the files are called and in which order they come."""
    parts = sorted(
        (example.digest, example.caption, example.mask_digest or "", example.repeats) for example in examples
    )
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

"""The report on a data set that can be trained on: its numbers, and what its owner may want to look at again."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from .examples import Example
from .images import cover_scale


def summary_of(examples: Sequence[Example]) -> dict[str, Any]:
    """Count what a data set holds, by the names that its record has."""
    counts = Counter(example.bucket for example in examples)
    scales = [cover_scale(example.width, example.height, example.bucket) for example in examples]
    return {
        "images": len(examples),
        "samples": sum(example.repeats for example in examples),
        "buckets": {f"{width}x{height}": counts[width, height] for width, height in sorted(counts)},
        "masks": sum(example.mask is not None for example in examples),
        "captions": len({example.caption for example in examples}),
        "enlarged": sum(scale > 1 for scale in scales),
        "duplicates": sum(len(group) - 1 for group in duplicates(examples)),
        "digest": _digest(examples),
    }


def duplicates(examples: Sequence[Example]) -> list[list[str]]:
    """Group the paths of images whose files are the same byte for byte."""
    groups = defaultdict(list)
    for example in examples:
        groups[example.digest].append(str(example.image))
    return [group for group in groups.values() if len(group) > 1]


def warnings_of(summary: Mapping[str, Any]) -> list[str]:
    """Write warnings of what is no fault of so many images, but seldom meant."""
    found, images = [], summary["images"]
    if summary["enlarged"]:
        found.append(f"{summary['enlarged']} of {images} images are enlarged, which blurs them")
    if images > 1 and summary["captions"] == 1:
        found.append(f"all {images} captions are the same")
    return found


def _digest(examples: Sequence[Example]) -> str:
    """Hash what is trained on, whatever the files are called and in which order they come."""
    parts = sorted(
        (example.digest, example.caption, example.mask_digest or "", example.repeats) for example in examples
    )
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()

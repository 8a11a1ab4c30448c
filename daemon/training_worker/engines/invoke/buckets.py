"""Buckets: the sizes that upstream trains images at."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from ..common.data.images import Size


def bucket_finder(config: Mapping[str, Any]) -> Callable[[Size], Size]:
    """Return a function of an image's size: the size, as (width, height), at which upstream trains it."""
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

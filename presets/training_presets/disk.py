"""The model of disk: what a run writes beside its output, and what it keeps on its host meanwhile.

An upper bound that is meant to be near: weights and optimizer states by their sizes, images as if nothing could be
compressed.
"""

import msgspec

from training_presets.memory import BYTES, MIB, optimizer_bytes, trained_dtype
from training_presets.workload import Workload
from training_schemas.jobs import TrainingType

# A result's files aside from its weights: a manifest, a contact sheet, a curve.
SMALL_FILES = 16 * MIB
# An adapter is written in the formats of diffusers and of kohya.
FORMATS = 2
# A run folder: progress, output, spec.
RUN_FOLDER = 64 * MIB

PIXEL_BYTES = 3


class DiskNeed(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the result, of all checkpoints that exist at once, of sample images; and of caches and run folder."""

    result: int
    checkpoints: int
    samples: int
    state: int

    @property
    def output(self) -> int:
        """What is needed where outputs go."""
        return self.result + self.checkpoints + self.samples


def disk_need(work: Workload, *, keep_checkpoints: int, sample_every: int) -> DiskNeed:
    """What a run needs. The last ``keep_checkpoints`` are kept, and an image of each prompt every so many steps."""
    # One more is written before the oldest is dropped; one is always made when a run is stopped.
    held = min(work.checkpoints, keep_checkpoints) + 1
    rounds = 2 + (work.steps // sample_every if sample_every else 0)
    image = work.width * work.height * PIXEL_BYTES
    return DiskNeed(
        result=int(_result(work)) + SMALL_FILES,
        checkpoints=int(held * _checkpoint(work)),
        samples=work.validation_prompts * rounds * image,
        state=int(_caches(work)) + RUN_FOLDER,
    )


def _weights(work: Workload) -> float:
    return work.trained_parameters * BYTES[trained_dtype(work)]


def _checkpoint(work: Workload) -> float:
    return _weights(work) * (2 if work.averaged else 1) + optimizer_bytes(work)


def _result(work: Workload) -> float:
    match work.training_type:
        case TrainingType.SDXL_FINETUNE:
            model = work.model
            parts = model.denoiser.parameters + model.encoders.parameters + model.vae.parameters
            return parts * BYTES[work.weight_dtype]
        case TrainingType.SDXL_TEXTUAL_INVERSION:
            # A few vectors of the tables that learn.
            return 0.0
        case _:
            return FORMATS * _weights(work)


def _caches(work: Workload) -> float:
    return work.images * work.cached_bytes

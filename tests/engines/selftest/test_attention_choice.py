"""The choice of attention's kernels: one that was not chosen computes nothing."""

import os
import subprocess
import sys

import pytest
from tests.engines.conftest import WriteRun, read_records

from training_schemas.progress import DoneRecord
from training_schemas.spec import AttentionKernel, Execution

pytestmark = pytest.mark.trainer

FLASH = "_scaled_dot_product_flash_attention_for_cpu"

# A trainer that prints, beside what it does, which operations of attention torch has chosen.
WATCHED = """
import sys
from pathlib import Path
from torch.utils._python_dispatch import TorchDispatchMode
from training_worker.engines.diffusers.__main__ import train

class Watch(TorchDispatchMode):
    seen = set()
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func._schema.name.rpartition(":")[2])
        return func(*args, **(kwargs or {}))

with Watch():
    train(Path(sys.argv[1]))
print(*sorted(Watch.seen))
"""


@pytest.mark.parametrize(
    ("kernels", "uses_flash"),
    [((AttentionKernel.MATH,), False), ((AttentionKernel.FLASH, AttentionKernel.MATH), True)],
)
def test_a_trainer_for_which_only_math_is_right_never_uses_flash(
    write_run: WriteRun, kernels: tuple[AttentionKernel, ...], *, uses_flash: bool
) -> None:
    """Of a run's encoding, training and samples."""
    folder = write_run(max_train_steps=1, execution=Execution(attention_kernels=kernels))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(folder)], env=environment, capture_output=True, text=True, check=False
    )

    assert isinstance(read_records(folder)[-1], DoneRecord), done.stderr
    assert (FLASH in done.stdout.split()) is uses_flash

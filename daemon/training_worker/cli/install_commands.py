"""``install``: put the units in place, or take them back, and say what comes next."""

import sys
from pathlib import Path

from training_worker.installation import run_steps, steps_of_install, steps_of_undo

NEXT = """
What comes next, as root:
  1. write the broker's address, amqps://user:password@broker:5671/, to /etc/training-worker/amqp-url; chmod 600
  2. write /etc/training-worker/worker.toml, after worker.toml.example beside it
  3. systemctl enable --now {unit}"""
KEPT = """
The settings in /etc/training-worker, the state in /var/lib/training-worker and the user training-worker stay."""


def install_units(root: Path, *, per_gpu: bool, dry_run: bool, undo: bool) -> None:
    """Show each step, and take it unless ``dry_run``."""
    program = Path(sys.prefix, "bin", "training-worker")
    steps = steps_of_undo(root) if undo else steps_of_install(root, program, per_gpu=per_gpu)
    run_steps(steps, print, dry=dry_run)
    unit = "training-worker@0 training-worker@1 ..." if per_gpu else "training-worker"
    print(KEPT if undo else NEXT.format(unit=unit))

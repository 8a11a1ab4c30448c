"""Trains with invoke-training, in an interpreter that has it, and puts down the CPU time used at each step's end.

INTERPRETER benchmarks/invoke_runner.py CONFIG.json TIMES.json
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from invoke_training.config.pipeline_config import PipelineConfig
from invoke_training.pipelines.invoke_train import train
from pydantic import TypeAdapter


def main() -> None:
    """Train; every step of an optimizer is logged, and nothing else with a number."""
    config, times = map(Path, sys.argv[1:])
    ends: list[float] = []
    log = Accelerator.log

    def log_and_note(accelerator: Accelerator, values: dict[str, Any], step: int | None = None, **rest: Any) -> None:
        if step is not None:
            ends.append(time.process_time())
        log(accelerator, values, step=step, **rest)

    Accelerator.log = log_and_note
    train(TypeAdapter(PipelineConfig).validate_python(json.loads(config.read_bytes())))
    times.write_text(json.dumps(ends), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Trains with the built-in trainer, as its program does, and puts down the CPU time used at each step's end.

python -m benchmarks.own_runner RUN_FOLDER TIMES.json
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from training_schemas.progress import ProgressRecord, StepRecord
from training_worker.engines.diffusers.__main__ import train
from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter


def main() -> None:
    """Train; every step of an optimizer is recorded."""
    run, times = map(Path, sys.argv[1:])
    ends: list[float] = []
    write = ProgressWriter.write

    def write_and_note(writer: ProgressWriter, record: type[ProgressRecord], **fields: Any) -> None:
        write(writer, record, **fields)
        if record is StepRecord:
            ends.append(time.process_time())

    ProgressWriter.write = write_and_note  # type: ignore[method-assign, assignment]
    code = train(run)
    times.write_text(json.dumps(ends), encoding="utf-8")
    sys.exit(code)


if __name__ == "__main__":
    main()

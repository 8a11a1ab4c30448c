"""A trainer that trains nothing: it keeps the contract of the run folder, in the way that its mode says.

    python -S fake_trainer.py MODE RUN_FOLDER

ok        two steps, then done, at once
slow      a step every 0.1 s; on SIGTERM a checkpoint, then stopped
crash     one step, then a last word on standard error and exit status 9, without a record
refuse    a failed record that names two faults
deaf      a step, then ignores SIGTERM for ever
squat     done, but something appeared in the output's place meanwhile
grandchild  done, leaving behind a process that holds its output open
Standard library alone, and little of that: its start-up time is part of what the benchmarks measure.
"""

import json
import os
import signal
import sys
import time


class Trainer:
    def __init__(self, folder: str) -> None:
        with open(os.path.join(folder, "spec.json")) as file:
            self.spec = json.load(file)
        self.file = os.open(os.path.join(folder, "progress.jsonl"), os.O_WRONLY | os.O_APPEND)
        self.sequence = 0
        self.stopping = False
        signal.signal(signal.SIGTERM, self.on_term)

    def on_term(self, *_: object) -> None:
        self.stopping = True

    def record(self, kind: str, **fields: object) -> None:
        self.sequence += 1
        line = json.dumps({"record": kind, "sequence": self.sequence, "time": time.time(), **fields})
        os.write(self.file, line.encode() + b"\n")

    def step(self, number: int) -> None:
        total = self.spec["parameters"]["maxTrainSteps"]
        self.record("step", step=number, totalSteps=total, loss=1 / number, learningRate=1e-4)

    def checkpoint(self, number: int) -> None:
        path = os.path.join(self.spec["attemptPath"], f"checkpoint-{number}")
        os.makedirs(path)
        self.record("checkpoint", step=number, path=path)

    def done(self, steps: int) -> None:
        with open(os.path.join(self.spec["attemptPath"], "pytorch_lora_weights.safetensors"), "w") as file:
            file.write(self.spec["jobId"])
        artifact = {"path": "pytorch_lora_weights.safetensors", "kind": "adapter", "sizeBytes": 0, "sha256": ""}
        losses = {"firstLoss": 1.0, "lastLoss": 0.5, "fixedLossBefore": 1.0, "fixedLossAfter": 0.5}
        self.record("done", steps=steps, artifacts=[artifact], **losses)

    def ok(self) -> None:
        self.record("phase", phase="training")
        self.step(1)
        self.step(2)
        self.done(2)

    def slow(self) -> None:
        self.record("phase", phase="training")
        first = int(os.path.basename(self.spec["resumeFrom"]).rpartition("-")[2]) if self.spec["resumeFrom"] else 0
        total = self.spec["parameters"]["maxTrainSteps"]
        for number in range(first + 1, total + 1):
            self.step(number)
            if self.stopping:
                self.checkpoint(number)
                self.record("stopped", step=number, why="told to")
                sys.exit(3)
            time.sleep(0.1)
        self.done(total)

    def crash(self) -> None:
        self.record("phase", phase="training")
        self.step(1)
        sys.stderr.write("the last word\n")
        sys.exit(9)

    def refuse(self) -> None:
        faults = [{"path": "a.png", "reason": "corrupt"}, {"path": "b.txt", "reason": "empty"}]
        self.record("failed", reason="datasetInvalid", message="cannot train: 2 faults in the data set", faults=faults)
        sys.exit(1)

    def deaf(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.record("phase", phase="training")
        self.step(1)
        while True:
            time.sleep(60)

    def squat(self) -> None:
        self.ok()
        output = os.path.join(os.path.dirname(self.spec["attemptPath"]), self.spec["jobId"])
        os.makedirs(os.path.join(output, "somebody-elses"))

    def grandchild(self) -> None:
        self.ok()
        if os.fork() == 0:
            time.sleep(600)


if __name__ == "__main__":
    getattr(Trainer(sys.argv[2]), sys.argv[1])()

"""A trainer that trains nothing: it keeps the contract of the run folder, in the way of its mode.

    python -S fake_trainer.py MODE RUN_FOLDER|--standby

ok        two steps, then done, at once
slow      a step every 0.1 s; on SIGTERM a checkpoint, then stopped
crash     one step, then a last line on standard error and exit status 9, without a record
refuse    a failed record that names two faults
deaf      a step, then ignores SIGTERM for ever
squat     done, but something appeared in the output's place meanwhile
grandchild  done, leaving behind a process that holds its output open
steady    all phases, a step every 0.05 s, a checkpoint every five; honours SIGTERM, requests and its lease
brisk     steady, ten times as fast
dwell:PHASE  steady, but it stays in this phase until it is requested to stop
filler    writes checkpoints that grow until the disk is full
obliging  steady, with a checkpoint only on request
killer    kills itself at its third step, every time
hog       out of memory with a micro-batch of more than one image
diverge   a second step whose loss is not a number
stuck     a step, then nothing new for ever
silent    steady, but what it leaves on SIGTERM is no record
Where the data set has a folder ``traces`` beside it, every start, step and end is noted there, for those who count.
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
        self.progress = os.path.join(folder, "progress.jsonl")
        self.file = os.open(self.progress, os.O_WRONLY | os.O_APPEND)
        self.requested = 0
        self.sequence = 0
        self.stopping = False
        self.pace = 0.05
        signal.signal(signal.SIGTERM, self.on_term)

    def trace(self, what: str, step: int = 0) -> None:
        """Note something where no daemon and no other trainer can undo it."""
        folder = os.path.join(os.path.dirname(self.spec["datasetPath"]), "traces")
        if not os.path.isdir(folder):
            return
        line = json.dumps(
            {"what": what, "step": step, "attempt": self.spec["attempt"], "pid": os.getpid(), "time": time.time()}
        )
        file = os.open(os.path.join(folder, self.spec["jobId"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode() + b"\n")
        os.close(file)

    def on_term(self, *_: object) -> None:
        self.stopping = True

    def record(self, kind: str, **fields: object) -> None:
        self.sequence += 1
        line = json.dumps({"record": kind, "sequence": self.sequence, "time": time.time(), **fields})
        os.write(self.file, line.encode() + b"\n")

    def step(self, number: int) -> None:
        total = self.spec["parameters"]["maxTrainSteps"]
        self.trace("step", number)
        self.record("step", step=number, totalSteps=total, loss=1 / number, learningRate=1e-4)

    def checkpoint(self, number: int) -> None:
        path = os.path.join(self.spec["attemptPath"], f"checkpoint-{number}")
        os.makedirs(path, exist_ok=True)
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
                self.record("stopped", step=number, why="requested")
                sys.exit(3)
            time.sleep(0.1)
        self.done(total)

    def steady(self) -> None:
        self.trace("start")
        first = saved = self.first_step()
        total = self.spec["parameters"]["maxTrainSteps"]
        for phase in ("starting", "cachingText", "loadingModel"):
            self.pause(phase, saved)
        self.record("phase", phase="training")
        self.trace("training")
        for number in range(first + 1, total + 1):
            self.step(number)
            time.sleep(self.pace)
            requests = self.requests()
            if (number % 5 == 0 and sys.argv[1] != "obliging") or "checkpoint" in requests:
                self.checkpoint(number)
                saved = number
            if "sample" in requests:
                self.record("sample", step=number, path=f"{number}.png", prompt="a cat")
            self.stop_if_requested(number, saved)
        for phase in ("sampling", "exporting"):
            self.pause(phase, saved)
        self.trace("end")
        self.done(total)

    def first_step(self) -> int:
        resumed = self.spec["resumeFrom"]
        return int(os.path.basename(resumed).rpartition("-")[2]) if resumed else 0

    def pause(self, phase: str, saved: int) -> None:
        self.record("phase", phase=phase)
        self.trace(phase)
        for _ in range(10_000 if sys.argv[1] == f"dwell:{phase}" else 6):
            time.sleep(self.pace)
            self.stop_if_requested(saved, saved)

    def requests(self) -> str:
        path = os.path.join(os.path.dirname(self.progress), "requests.jsonl")
        with open(path) if os.path.exists(path) else open(os.devnull) as file:
            lines = file.readlines()
        new, self.requested = lines[self.requested :], len(lines)
        return "".join(new)

    def stop_if_requested(self, number: int, saved: int) -> None:
        with open(os.path.join(os.path.dirname(self.progress), "lease")) as file:
            lease = json.load(file)
        orphan = time.time() > lease["deadline"] + lease["maxIsolation"]
        if not self.stopping and not orphan:
            return
        if number > saved:
            self.checkpoint(number)
        self.trace("end")
        if sys.argv[1] != "silent":
            self.record("stopped", step=number, why="orphan" if orphan else "signal")
        sys.exit(3)

    def obliging(self) -> None:
        self.steady()

    def brisk(self) -> None:
        self.pace /= 10
        self.steady()

    def dwell(self) -> None:
        self.steady()

    def silent(self) -> None:
        self.steady()

    def killer(self) -> None:
        self.trace("start")
        self.record("phase", phase="training")
        for number in (1, 2, 3):
            self.step(number)
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    def filler(self) -> None:
        self.trace("start")
        self.record("phase", phase="checkpointing")
        path = os.path.join(self.spec["attemptPath"], "checkpoint-1")
        try:
            with open(path, "wb") as file:
                while True:
                    file.write(bytes(100_000))
                    file.flush()
        except OSError as error:
            os.unlink(path)
            self.record("failed", reason="diskFull", message=f"cannot write: {error}")
        sys.exit(1)

    def hog(self) -> None:
        if self.spec["parameters"]["batchSize"] > 1:
            self.record("failed", reason="outOfMemory", message="cannot go on: out of memory")
            sys.exit(1)
        self.steady()

    def diverge(self) -> None:
        self.record("phase", phase="training")
        self.step(1)
        total = self.spec["parameters"]["maxTrainSteps"]
        self.record("step", step=2, totalSteps=total, loss=None, learningRate=1e-4)
        while not self.stopping:
            time.sleep(0.05)
        self.record("stopped", step=2, why="signal")
        sys.exit(3)

    def stuck(self) -> None:
        self.record("phase", phase="training")
        self.step(1)
        while not self.stopping:
            time.sleep(0.05)
        sys.exit(3)

    def crash(self) -> None:
        self.record("phase", phase="training")
        self.step(1)
        sys.stderr.write("the last line\n")
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


def wait_for_run() -> str:
    """On standby: the run folder, once it is given one; the output goes there from then on."""
    os.write(0, b"ready\n")
    folder = sys.stdin.readline().rstrip("\n")
    if not folder:
        sys.exit(0)
    for number, name in ((2, "stderr.log"), (1, "stdout.log")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    return folder


if __name__ == "__main__":
    getattr(Trainer(wait_for_run() if sys.argv[2] == "--standby" else sys.argv[2]), sys.argv[1].partition(":")[0])()

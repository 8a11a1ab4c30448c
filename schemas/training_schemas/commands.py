"""The commands: what is asked of a job's owner or of a worker over ``training.control``."""

import msgspec

from training_schemas.base import StrictWire


class Command(StrictWire, frozen=True, kw_only=True, tag_field="command"):
    """Common to all commands."""


class CancelJob(Command, frozen=True, kw_only=True, tag="training.job.cancel.v1"):
    """Stop the job for good, with a checkpoint."""


class CheckpointJob(Command, frozen=True, kw_only=True, tag="training.job.checkpointNow.v1"):
    """Save a checkpoint at the next step."""


class SampleJob(Command, frozen=True, kw_only=True, tag="training.job.sampleNow.v1"):
    """Draw sample images of the validation prompts at the next step."""


class DrainWorker(Command, frozen=True, kw_only=True, tag="training.worker.drain.v1"):
    """Finish what is running, consume nothing new, exit."""


class PauseWorker(Command, frozen=True, kw_only=True, tag="training.worker.pause.v1"):
    """Consume nothing new until resumed."""


class ResumeWorker(Command, frozen=True, kw_only=True, tag="training.worker.resume.v1"):
    """Consume jobs again."""


JobCommand = CancelJob | CheckpointJob | SampleJob
WorkerCommand = DrainWorker | PauseWorker | ResumeWorker

_job_decoder: msgspec.json.Decoder[JobCommand] = msgspec.json.Decoder(JobCommand)
_worker_decoder: msgspec.json.Decoder[WorkerCommand] = msgspec.json.Decoder(WorkerCommand)


def decode_job_command(body: bytes) -> JobCommand:
    """Read a command to a job's owner. Raises `msgspec.ValidationError` or `msgspec.DecodeError`."""
    return _job_decoder.decode(body)


def decode_worker_command(body: bytes) -> WorkerCommand:
    """Read a command to a worker. Raises `msgspec.ValidationError` or `msgspec.DecodeError`."""
    return _worker_decoder.decode(body)

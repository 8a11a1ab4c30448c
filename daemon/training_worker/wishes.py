"""Wishes: what is asked of a job while it is being trained."""

import asyncio

import msgspec
import structlog

from training_schemas.commands import CancelJob, CheckpointJob, SampleJob, decode_job_command

log = structlog.get_logger()


class Wishes:
    """What has been asked of a job that is being trained. ``stop`` is set once its trainer is to end."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.cancelled = False
        self.why = "trainer stopped by itself"

    def receive(self, body: bytes) -> None:
        """Take a command from the job's inbox."""
        try:
            command = decode_job_command(body)
        except msgspec.MsgspecError as error:
            log.warning("command_unreadable", error=str(error))
            return
        match command:
            case CancelJob():
                self.cancel()
            case CheckpointJob() | SampleJob():
                log.warning("command_not_supported", command=type(command).__name__)

    def cancel(self) -> None:
        """The job is not wanted any more."""
        self.cancelled = True
        self.end("cancelled")

    def end(self, why: str) -> None:
        """The trainer is to save a checkpoint and end."""
        self.why = why
        self.stop.set()

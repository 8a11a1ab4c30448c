"""Control requests: what is asked of a job while it is being trained."""

import asyncio

import structlog

from training_schemas.commands import CancelJob, CheckpointJob, SampleJob, decode_job_command
from training_schemas.spec import RunRequest
from training_schemas.validation import UNREADABLE
from training_worker.runs.run_directory import STOP_FILE, RunDirectory, StopOrder

log = structlog.get_logger()


class ControlRequests:
    """The requests to a job that is being trained.

    ``stop`` is set once its trainer is to end, ``abort`` once it is to end without grace, and ``detach`` once it is to
    be left to another daemon. Requests wait until the job has a run folder, and with it a trainer that can be asked.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.detach = asyncio.Event()
        self.cancelled = False
        self.abort = asyncio.Event()
        self.why = "trainer stopped by itself"
        self._folder: RunDirectory | None = None
        self._requests: list[RunRequest] = []
        self._slot_order: str | None = None

    def for_next_job(self) -> "ControlRequests":
        """Return the requests to the next job: none yet, except those to the whole slot."""
        control = ControlRequests()
        control.detach, control.abort = self.detach, self.abort
        if self._slot_order is not None:
            control.release(self._slot_order)
        return control

    def release(self, why: str) -> None:
        """Return to its queue whatever the slot trains."""
        self._slot_order = why
        self.end(why)

    def receive(self, body: bytes) -> None:
        """Handle a command from the job's inbox."""
        try:
            command = decode_job_command(body)
        except UNREADABLE as error:
            log.warning("command_unreadable", error=str(error))
            return
        log.info("command", command=type(command).__name__)
        match command:
            case CancelJob():
                self.cancel()
            case CheckpointJob():
                self._request(RunRequest.CHECKPOINT)
            case SampleJob():
                self._request(RunRequest.SAMPLE)

    def attach(self, folder: RunDirectory) -> None:
        """Send waiting requests to the job's trainer, which now exists; stop it if an earlier daemon ordered that."""
        self._folder = folder
        order = folder.find(STOP_FILE, StopOrder)
        if order is not None:
            self.why, self.cancelled = order.why, self.cancelled or order.cancelled
            self.stop.set()
        elif self.stop.is_set():
            self._write_order()
        requests, self._requests = self._requests, []
        for request in requests:
            folder.request(request)

    def detached(self) -> None:
        """Note that the attempt is over; later requests are for the next one."""
        self._folder = None

    def cancel(self) -> None:
        """Cancel the job."""
        self.cancelled = True
        self.end("cancelled")

    def end(self, why: str) -> None:
        """Have the trainer save a checkpoint and end."""
        if not self.stop.is_set() or self.cancelled:
            self.why = why
        self._write_order()
        self.stop.set()

    def _request(self, request: RunRequest) -> None:
        if self._folder is None:
            self._requests.append(request)
        else:
            self._folder.request(request)

    def _write_order(self) -> None:
        # Before the trainer gets it: should this daemon die now, the next one must not take its end for a crash.
        if self._folder is not None:
            self._folder.write(STOP_FILE, StopOrder(why=self.why, cancelled=self.cancelled))

"""An operator's commands to a worker: drain, pause, resume."""

from typing import Protocol

import structlog
from aio_pika.abc import AbstractIncomingMessage

from training_schemas.commands import DrainWorker, PauseWorker, ResumeWorker, decode_worker_command
from training_schemas.validation import UNREADABLE
from training_worker.broker.names import ALL_WORKERS, worker_key
from training_worker.broker.session import Session, broker_errors

log = structlog.get_logger()


class Commanded(Protocol):
    """The interface that commands act on: a worker's."""

    def drain(self, why: str) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


async def open_inbox(session: Session, exchange: str, worker_id: str, worker: Commanded) -> None:
    """Obey the commands to this worker or to all of them, for as long as the session lasts."""

    async def on_message(message: AbstractIncomingMessage) -> None:
        obey(worker, message.body)

    channel = await session.channel(prefetch=0)
    await session.watch(channel)
    with broker_errors():
        queue = await channel.declare_queue(exclusive=True)
        for name in (worker_id, ALL_WORKERS):
            await queue.bind(exchange, worker_key(name))
        await queue.consume(on_message, no_ack=True)


def obey(worker: Commanded, body: bytes) -> None:
    """Execute a command; one that cannot be read is logged and ignored."""
    try:
        command = decode_worker_command(body)
    except UNREADABLE as error:
        log.warning("command_unreadable", error=str(error))
        return
    log.info("command", command=type(command).__name__)
    match command:
        case DrainWorker():
            worker.drain("command")
        case PauseWorker():
            worker.pause()
        case ResumeWorker():
            worker.resume()

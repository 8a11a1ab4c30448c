"""Events as messages: encoded once, and published in the name of one worker."""

from collections.abc import Callable
from typing import Any

import msgspec
from aio_pika import Message

from training_schemas.events import CONTENT_TYPE, Event, decode_event, encode_event, routing_key, wrap
from training_worker.broker.connection import Link
from training_worker.broker.session import persistent


class Statement(msgspec.Struct, frozen=True):
    """An event in words, and its routing key."""

    key: str
    event_id: str
    body: bytes

    @property
    def message(self) -> Message:
        """Ready to be published."""
        return event_message(self.event_id, self.body)


class Speaker:
    """Says things in the name of one worker."""

    def __init__(self, link: Link, worker: str, *, simulated: bool, clock: Callable[[], float]) -> None:
        self._link = link
        self._worker = worker
        self._simulated = simulated
        self._clock = clock

    def state(self, kind: type[Event], event_id: str, **fields: Any) -> Statement:
        """Put something into words; its time is now."""
        event = kind(worker=self._worker, simulated=self._simulated, **fields)
        body = encode_event(wrap(event, event_id=event_id, time=self._clock()))
        return Statement(routing_key(event), event_id, body)

    @property
    def exchange(self) -> str:
        """Where events go."""
        return self._link.names.events

    @property
    def ledger(self) -> str:
        """Where turning points go."""
        return self._link.names.ledger

    async def publish(self, statement: Statement) -> None:
        """Publish, for as long as it takes."""
        await self._link.publish(self._link.names.events, statement.key, statement.message)


def retell(body: bytes) -> Statement:
    """What was said before, ready to be published again."""
    envelope = decode_event(body)
    return Statement(routing_key(envelope.read()), envelope.id, body)


def event_message(event_id: str, body: bytes) -> Message:
    """An event as a message; its type is the one that its envelope names."""
    return persistent(body, content_type=CONTENT_TYPE, message_id=event_id, type=decode_event(body).type)

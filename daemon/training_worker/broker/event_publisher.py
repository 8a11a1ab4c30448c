"""Events as messages: encoded once, and published in the name of one worker."""

from collections.abc import Callable
from typing import Any

import msgspec
from aio_pika import Message

from training_schemas.events import CONTENT_TYPE, Event, decode_event, encode_event, routing_key, wrap
from training_worker.broker.connection import Connection
from training_worker.broker.session import persistent


class EncodedEvent(msgspec.Struct, frozen=True):
    """An encoded event, and its routing key."""

    key: str
    event_id: str
    body: bytes

    @property
    def message(self) -> Message:
        """Return the message to publish."""
        return event_message(self.event_id, self.body)


class EventPublisher:
    """Publishes events in the name of one worker."""

    def __init__(self, connection: Connection, worker: str, *, simulated: bool, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._worker = worker
        self._simulated = simulated
        self._clock = clock

    def state(self, kind: type[Event], event_id: str, **fields: Any) -> EncodedEvent:
        """Encode an event; its time is now."""
        event = kind(worker=self._worker, simulated=self._simulated, **fields)
        body = encode_event(wrap(event, event_id=event_id, time=self._clock()))
        return EncodedEvent(routing_key(event), event_id, body)

    @property
    def exchange(self) -> str:
        """The exchange of events."""
        return self._connection.names.events

    @property
    def ledger(self) -> str:
        """The stream of the ledger."""
        return self._connection.names.ledger

    async def publish(self, encoded: EncodedEvent) -> None:
        """Publish, for as long as it takes."""
        await self._connection.publish(self._connection.names.events, encoded.key, encoded.message)


def encoded_event(body: bytes) -> EncodedEvent:
    """Return an event that was encoded before, ready to be published again."""
    envelope = decode_event(body)
    return EncodedEvent(routing_key(envelope.read()), envelope.id, body)


def event_message(event_id: str, body: bytes) -> Message:
    """Return an event as a message; its type is the one that its envelope names."""
    return persistent(body, content_type=CONTENT_TYPE, message_id=event_id, type=decode_event(body).type)

"""AMQP 0-9-1 in whole frames, as they pass by."""

from collections.abc import Iterator

# Type, channel, size; then the payload and an end mark.
HEADER = 7
END = 1
HEARTBEAT = 8

PROTOCOL = b"AMQP"
PROTOCOL_HEADER = 8


class Frames:
    """Cuts one direction of a connection into frames, however its bytes arrive."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what is whole by now, in order; what is not waits for the next call."""
        self._rest += data
        while (size := self._size()) and size <= len(self._rest):
            yield bytes(self._rest[:size])
            del self._rest[:size]

    def _size(self) -> int:
        """How long what comes next is; 0 while that is unknown."""
        if len(self._rest) < HEADER:
            return 0
        if self._rest.startswith(PROTOCOL):
            return PROTOCOL_HEADER
        return HEADER + int.from_bytes(self._rest[3:HEADER]) + END


def is_counted(frame: bytes) -> bool:
    """Whether it has content: neither the greeting that comes before all frames nor a heartbeat."""
    return frame[0] != HEARTBEAT and not frame.startswith(PROTOCOL)

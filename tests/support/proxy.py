"""A TCP proxy in front of the broker, for all that can happen to a connection."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.support.frames import Frames, is_counted
from yarl import URL

# Whoever does not read what came before a cut loses it.
FLUSH_TIMEOUT = 5.0


class Connection:
    """One connection through the proxy; a deaf one passes nothing on, not even its end."""

    def __init__(self, writer: asyncio.StreamWriter, *, deaf: bool) -> None:
        self.deaf = deaf
        self.ended = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []
        self.add(writer)

    def add(self, writer: asyncio.StreamWriter) -> None:
        """Add the way to one of its ends."""
        # Waiting for such a writer is waiting until everything is out.
        writer.transport.set_write_buffer_limits(0)
        self._writers.append(writer)

    async def flush(self) -> None:
        """Wait until what was passed on is on its way, or cannot be any more."""
        await asyncio.gather(*(writer.drain() for writer in self._writers), return_exceptions=True)

    def abort(self) -> None:
        """End it at both ends at once."""
        for writer in self._writers:
            writer.transport.abort()


class Proxy:
    """Passes frames both ways on a loopback port of its own, for as long as it is up."""

    def __init__(self, broker_url: str) -> None:
        self._broker = URL(broker_url)
        self._links: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._port = 0
        self._passing = asyncio.Event()
        self._passing.set()
        self._dropping = False
        self._frames = 0
        self._frames_left = 0

    @property
    def url(self) -> str:
        """The broker's address by way of the proxy."""
        return str(self._broker.with_host("127.0.0.1").with_port(self._port))

    @property
    def frames(self) -> int:
        """How many frames passed since `cut_after` was called, up to the cut."""
        return self._frames

    def move(self, broker_url: str) -> None:
        """Lead new connections to another broker."""
        self._broker = URL(broker_url)

    async def up(self) -> None:
        """Let connections through."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """End all connections; new ones are let through at once."""
        for connection in self._links:
            connection.abort()

    def down(self) -> None:
        """End all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
        self.cut()

    def hold(self) -> None:
        """Keep back what is sent from now on, as a network that fails for a while does, where TCP sends it again."""
        self._passing.clear()

    def resume(self) -> None:
        """Deliver what was kept back, and what comes."""
        self._passing.set()

    def drop(self) -> None:
        """Lose what is sent from now on without notice, as a loss of power or a cut cable for good does.

        The connections of this time never recover; those that are opened meanwhile get no answer.
        """
        self._dropping = True
        for connection in self._links:
            connection.deaf = True

    def pass_on(self) -> None:
        """Let connections through that are opened from now on."""
        self._dropping = False

    def cut_after(self, frames: int) -> None:
        """End all connections once that many more frames have passed, both ways and on all connections together.

        Those frames arrive whole, and nothing of the others does. Heartbeats pass uncounted. It happens once.
        """
        self._frames = 0
        self._frames_left = frames

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(writer, deaf=self._dropping)
        self._links.add(connection)
        with suppress(OSError):
            if connection.deaf:
                await reader.read()
            else:
                await self._join(connection, reader, writer)
        connection.abort()
        connection.ended.set()
        self._links.discard(connection)

    async def _join(self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._broker.host, self._broker.port)
        connection.add(far_writer)
        await asyncio.gather(self._pump(connection, reader, far_writer), self._pump(connection, far_reader, writer))

    async def _pump(self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = Frames()
        with suppress(OSError):
            while data := await reader.read(65536):
                for frame in frames.feed(data):
                    await self._pass(connection, frame, writer)
        await self._passing.wait()
        if not connection.deaf:
            writer.close()

    async def _pass(self, connection: Connection, frame: bytes, writer: asyncio.StreamWriter) -> None:
        await self._passing.wait()
        if connection.deaf:
            return
        writer.write(frame)
        if self._is_last(frame):
            await self._cut_flushed()
        else:
            await writer.drain()

    def _is_last(self, frame: bytes) -> bool:
        """Count a frame that passes, and return whether all connections end with it."""
        if not self._frames_left or not is_counted(frame):
            return False
        self._frames += 1
        self._frames_left -= 1
        return self._frames_left == 0

    async def _cut_flushed(self) -> None:
        links = list(self._links)
        for connection in links:
            connection.deaf = True
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await asyncio.gather(*(connection.flush() for connection in links))
        for connection in links:
            connection.abort()

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.down()
        self.resume()
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await asyncio.gather(*(connection.ended.wait() for connection in self._links))

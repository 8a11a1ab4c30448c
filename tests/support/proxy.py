"""A TCP proxy in front of the broker, to cut what passes through it."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from yarl import URL


class Proxy:
    """Passes bytes both ways on a loopback port of its own, for as long as it is up."""

    def __init__(self, broker_url: str) -> None:
        self._broker = URL(broker_url)
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """The broker's address by way of the proxy."""
        return str(self._broker.with_host("127.0.0.1").with_port(self._port))

    async def up(self) -> None:
        """Let connections through."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """End all connections; new ones are let through at once."""
        for writer in self._writers:
            writer.transport.abort()

    def down(self) -> None:
        """End all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(self._broker.host, self._broker.port)
            self._writers.add(far_writer)
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
            self._writers.discard(far_writer)
        self._writers.discard(writer)

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.down()

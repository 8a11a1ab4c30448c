"""RabbitMQ's management API: what a broker reports of itself beyond AMQP. It is only read."""

import asyncio
import base64
import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from yarl import URL

LIMIT = 10.0
# A queue's entry has 300 bytes: enough for a virtual host of 50,000.
MOST_BYTES = 16 * 2**20
QUEUE_COLUMNS = "name,policy,operator_policy,members,online"
UNAUTHORIZED = 401
UNAVAILABLE = 503

T = TypeVar("T")


class ManagementError(Exception):
    """The API cannot be used. ``status`` is that of its answer, if there was one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Overview(msgspec.Struct, frozen=True):
    """The name of the broker."""

    cluster_name: str = ""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy, an operator policy or an ordinary one."""

    name: str
    definition: dict[str, Any] = {}


class Governed(msgspec.Struct, frozen=True, kw_only=True):
    """A queue or an exchange with the names of its policies; of a queue with replicas, the nodes that hold them.

    A queue that is a few seconds old has no policies yet: `msgspec.UNSET`.
    """

    name: str
    policy: str | msgspec.UnsetType | None = msgspec.UNSET
    operator_policy: str | None = None
    members: list[str] = []
    online: list[str] = []


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node of the cluster, and those that it has lost sight of while both ran."""

    name: str
    running: bool = True
    partitions: list[str] = []


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """The resource that a node has too little of: `memory` or `disk space`."""

    node: str
    resource: str


class Alarms(msgspec.Struct, frozen=True):
    """The alarms in effect."""

    alarms: list[Alarm] = []


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """The key by which an exchange routes to a queue."""

    source: str
    destination: str
    routing_key: str


class BrokerReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was read from the API."""

    overview: Overview
    policies: dict[str, Policy]
    operator_policies: dict[str, Policy]
    queues: dict[str, Governed]
    exchanges: dict[str, Governed]
    bindings: set[tuple[str, str, str]]
    nodes: list[Node]
    alarms: list[Alarm]


class Management:
    """The API at an address ``http(s)://USER:PASSWORD@HOST:PORT/``; ``ca_file`` is that of its authority."""

    def __init__(self, url: URL, ca_file: Path | None, limit: float = LIMIT) -> None:
        self._url = url
        self._ca_file = ca_file
        self._limit = limit

    async def report(self, vhost: str, exchanges: tuple[str, ...]) -> BrokerReport:
        """Read all about a virtual host, with the bindings of these exchanges. Raises `ManagementError`."""
        host = quote(vhost, safe="")
        there = await self._get(f"exchanges/{host}?columns=name,policy", list[Governed])
        bindings: set[tuple[str, str, str]] = set()
        for exchange in {one.name for one in there} & set(exchanges):
            path = f"exchanges/{host}/{quote(exchange, safe='')}/bindings/source"
            found = await self._get(path, list[Binding])
            bindings |= {(one.source, one.routing_key, one.destination) for one in found}
        return BrokerReport(
            overview=await self._get("overview", Overview),
            policies=await self._policies(f"policies/{host}"),
            operator_policies=await self._policies(f"operator-policies/{host}"),
            queues=await self.queues(vhost),
            exchanges={one.name: one for one in there},
            bindings=bindings,
            nodes=await self._get("nodes?columns=name,running,partitions", list[Node]),
            alarms=(await self._get("health/checks/alarms", Alarms, also=UNAVAILABLE)).alarms,
        )

    async def queues(self, vhost: str) -> dict[str, Governed]:
        """Return the queues of a virtual host. Raises `ManagementError`."""
        path = f"queues/{quote(vhost, safe='')}?columns={QUEUE_COLUMNS}"
        return {one.name: one for one in await self._get(path, list[Governed])}

    async def _policies(self, path: str) -> dict[str, Policy]:
        return {one.name: one for one in await self._get(path, list[Policy])}

    async def _get(self, path: str, kind: type[T], also: int = 200) -> T:
        """Send one request. An answer with the status ``also`` is as good as one with 200."""
        try:
            status, body = await asyncio.to_thread(self._exchange, path)
        except TimeoutError:
            raise ManagementError(f"no answer within {self._limit:g} s") from None
        except HTTPException as error:
            raise ManagementError(f"not HTTP: {type(error).__name__}") from None
        except (OSError, ValueError) as error:
            raise ManagementError(f"{type(error).__name__}: {error}") from None
        if status not in (200, also):
            raise ManagementError(f"{status}: {_reason(body)}", status)
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise ManagementError(f"the answer to /api/{path} cannot be read: {error}") from None

    def _exchange(self, path: str) -> tuple[int, bytes]:
        """Return status and body. Redirects are not followed: they would get the password."""
        url = self._url
        secret = base64.b64encode(f"{url.user or 'guest'}:{url.password or ''}".encode()).decode()
        connection = self._connection()
        try:
            target = f"{url.raw_path.rstrip('/')}/api/{path}"
            connection.request("GET", target, headers={"Authorization": f"Basic {secret}"})
            response = connection.getresponse()
            body = response.read(MOST_BYTES + 1)
        finally:
            connection.close()
        if len(body) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        return response.status, body

    def _connection(self) -> HTTPConnection:
        host, port = str(self._url.host), self._url.port
        if self._url.scheme == "https":
            context = ssl.create_default_context(cafile=self._ca_file)
            return HTTPSConnection(host, port, timeout=self._limit, context=context)
        return HTTPConnection(host, port, timeout=self._limit)


def _reason(body: bytes) -> str:
    try:
        report = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError:
        return "no reason"
    return str(report.get("reason") or report.get("error") or "no reason")

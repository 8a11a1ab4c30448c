"""A broker for the demo and the tests: the operator's, or one of our own that ends with us."""

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from training_worker.errors import BrokerError

# The script below Debian's wrapper of the same name: it asks for no user "rabbitmq" and no service.
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
IMAGE = "rabbitmq:3.13"

# Generous: an image may have to be pulled, and a small machine may be busy.
PULL_TIMEOUT = 600.0
START_TIMEOUT = 120.0
COMMAND_TIMEOUT = 30.0
# The server's own way to stop takes 1-2 s; after STOP_GRACE the keeper below kills it.
STOP_GRACE = 10
STOP_TIMEOUT = STOP_GRACE + 5.0
POLL = 0.05

# A node that gives up logs the reason first, and then fifty lines about its own end.
LOG_TAIL = 60

# The range of ports that outgoing connections are given.
EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
FIRST_PORT = 10_000

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = b"\x01"

THREE_WAYS = """\
cannot find a broker. Any one of these will do:
  - set TRAINING_AMQP_URL to a RabbitMQ of yours, as amqp://user:password@host:5672/
  - install rabbitmq-server (Debian: apt-get install rabbitmq-server); a private node is started from it
  - start Docker; a container of {image} is started in it"""

# The first process of the session and the only one that we start. Its standard input is a leash: that ends when we
# close it and when we die, however suddenly, and then so does everything in the session's group. What Erlang starts
# in sessions of its own (erl_child_setup, inet_gethost, the disk monitor) ends with the node, whose pipes it reads.
KEEPER = """
exec 3<&0 </dev/null
trap : TERM
test -z "$3" || epmd -address 127.0.0.1 -port "$3" 3<&- &
(trap '' TERM; read -r _ <&3; kill -TERM 0; sleep "$2"; kill -KILL 0) &
"$1" 3<&-
kill -KILL 0
"""


class NoBrokerError(BrokerError):
    """TRAINING_AMQP_URL names none, no server is installed, and Docker does not answer."""


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A broker that answers."""

    url: str
    description: str


@contextmanager
def find_broker(
    environ: Mapping[str, str] | None = None, *, server: Path = SERVER, docker: str = "docker"
) -> Iterator[Broker]:
    """Yield the broker that TRAINING_AMQP_URL names, else start one: from the installed server, else in Docker.

    What was started is stopped afterwards. A named broker is only used, and the machine's own broker is never used
    unasked.

    Raises:
        NoBrokerError: none of the three exists.
        BrokerError: the first of the three that exists does not start.
    """
    url = (os.environ if environ is None else environ).get("TRAINING_AMQP_URL")
    if url:
        yield Broker(url=url, description="the one that TRAINING_AMQP_URL names")
    elif _can_start(server):
        with _temporary_folder() as folder, PrivateBroker(folder, server=server) as node:
            yield Broker(url=node.url, description=f"a private RabbitMQ node on 127.0.0.1:{node.port}")
    elif _docker_answers(docker):
        with _container(docker) as port:
            yield Broker(url=_guest(port), description=f"a container of {IMAGE} on 127.0.0.1:{port}")
    else:
        raise NoBrokerError(THREE_WAYS.format(image=IMAGE))


class PrivateBroker:
    """A RabbitMQ node that shares nothing with the machine's: ports, folders, cookie, settings and port mapper.

    It listens on the loopback interface alone, needs no service, no user of its own and no root, and ends with its
    owner, even one that is killed. Nothing else may hold the write end of the keeper's pipe: not a process that was
    forked without `exec`.

    Args:
        folder: where its data, log and cookie go, and stay. A cookie and an advanced.config that are there are used.
        port: its AMQP port; without one, a free one.
        epmd_port: where a port mapper runs that nodes of a cluster share; without one, the node starts its own.
        config: more lines for rabbitmq.conf.
        server: the script ``rabbitmq-server`` below Debian's wrapper.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        epmd_port: int | None = None,
        config: str = "",
        server: Path = SERVER,
    ) -> None:
        self.folder = folder.resolve()
        self.port = port or free_port()
        self._config = config
        self._server = server
        self._dist_port = free_port(self.port, epmd_port or 0)
        self._epmd_port = epmd_port or free_port(self.port, self._dist_port)
        self._own_epmd = "" if epmd_port else str(self._epmd_port)
        self._ports = {self.port, self._dist_port, self._epmd_port} - {epmd_port}
        self._keeper: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address for clients."""
        return _guest(self.port)

    @property
    def name(self) -> str:
        """The node's name in a cluster."""
        return f"training-{self.port}@localhost"

    @property
    def can_start(self) -> bool:
        """Whether a server and its Erlang are installed."""
        return _can_start(self._server)

    @property
    def log(self) -> Path:
        """The log of the node and its port mapper."""
        return self.folder / "node.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the node and wait until it answers. Raises `BrokerError` with the end of its log."""
        if not self.can_start:
            raise BrokerError(f"cannot start a RabbitMQ node: there is no {self._server}, or no Erlang")
        for port in self._ports:
            if not _is_free(port):
                raise BrokerError(f"cannot start a RabbitMQ node: port {port} of 127.0.0.1 is in use")
        self._lay_out()
        with self.log.open("ab") as log:
            self._keeper = subprocess.Popen(  # noqa: S603 - the server that is installed
                ["/bin/sh", "-c", KEEPER, "keeper", self._server, str(STOP_GRACE), self._own_epmd],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment(),
                start_new_session=True,
            )
        try:
            self._wait_until_ready(self._keeper)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop the node and all that it started: by a signal, then by force. Repeated, it does nothing."""
        if self._keeper and self._keeper.stdin:
            self._keeper.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(STOP_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        """Kill the node as a crash would; its data and ports stay for another `start`.

        A quorum queue that is declared right before a crash may stay without a leader for good: its members write
        down their first term a moment later (RabbitMQ 3.10; lost when killed at once, never after 2 s). Any queue that
        is declared in that moment may even be gone, since the log of metadata is written behind.
        """
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        if keeper.poll() is None:
            os.killpg(keeper.pid, signal.SIGKILL)
            keeper.wait()
        if keeper.stdin:
            keeper.stdin.close()
        self._wait_until_gone()

    def restart(self) -> None:
        """Kill the node, and start it again on the same ports with the same data."""
        self.kill()
        self.start()

    def _lay_out(self) -> None:
        """Write the node's settings; everything that it would look for elsewhere has a file of its own here."""
        plugins = self.folder / "plugins"
        plugins.mkdir(parents=True, exist_ok=True)
        for plugin in self._libraries("rabbit"):
            (plugins / plugin.name).unlink(missing_ok=True)
            (plugins / plugin.name).symlink_to(plugin)
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "rabbitmq-env.conf").touch()
        (self.folder / "rabbitmq.conf").write_text(f"listeners.tcp.local = 127.0.0.1:{self.port}\n{self._config}\n")

    def _libraries(self, name: str) -> list[Path]:
        return list((self._server.resolve().parents[1] / "plugins").glob(f"{name}-[0-9]*"))

    def _code_path(self) -> str:
        """Return where to look for modules first; the last one named is the very first.

        A node loads a thousand modules, and looks for each in a hundred folders, most of them plugins that it does not
        use. With these in front and one "plugin" to discover, starting takes 5-9 s instead of 16-22 (3.10, 2 cores).
        """
        erlang = Path(shutil.which("erl") or "erl").resolve().parents[1] / "lib"
        rabbit = (self._libraries(name) for name in ("osiris", "ra", "rabbit_common", "rabbit"))
        return " ".join(["-pa", *(f"{path}/ebin" for path in (*erlang.glob("*"), *itertools.chain(*rabbit)))])

    def _environment(self) -> dict[str, str]:
        """Return the whole environment: settings of the machine's own node must not reach this one."""
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        plugins = self.folder / "plugins"
        return {
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            **({"RABBITMQ_PLUGINS_DIR": str(plugins)} if any(plugins.iterdir()) else {}),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": self._code_path(),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # For every Erlang that the node starts, too. Two schedulers that sleep when idle: it is not alone here.
            "ERL_AFLAGS": f"{loopback} -start_epmd false +S 2:2 +sbwt none",
        }

    def _wait_until_ready(self, keeper: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not _speaks_amqp(self.port):
            if keeper.poll() is not None:
                raise BrokerError(f"cannot start a RabbitMQ node: it ended. {self._log_tail()}")
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"cannot start a RabbitMQ node: no answer on 127.0.0.1:{self.port} within {START_TIMEOUT:.0f} s. "
                    f"{self._log_tail()}"
                )
            time.sleep(POLL)

    def _wait_until_gone(self) -> None:
        """Wait for the node's end: the keeper is reaped before it."""
        deadline = time.monotonic() + STOP_TIMEOUT
        while not all(map(_is_free, self._ports)):
            if time.monotonic() > deadline:
                raise BrokerError(f"cannot stop the RabbitMQ node in {self.folder}: its ports are still in use")
            time.sleep(POLL)

    def _log_tail(self) -> str:
        tail = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL:]
        return "\n  ".join(["Its log ends:", *tail])


@contextmanager
def _container(docker: str) -> Iterator[int]:
    """Run a broker in Docker and yield its port on the loopback interface."""
    command = [docker, "run", "--rm", "--detach", "--publish", "127.0.0.1::5672", IMAGE]
    container = _run(command, timeout=PULL_TIMEOUT)
    try:
        port = int(_run([docker, "port", container, "5672/tcp"]).splitlines()[0].rpartition(":")[2])
        deadline = time.monotonic() + START_TIMEOUT
        while not _speaks_amqp(port):
            if time.monotonic() > deadline:
                raise BrokerError(f"cannot use a container of {IMAGE}: no answer within {START_TIMEOUT:.0f} s")
            time.sleep(POLL)
        yield port
    finally:
        _run([docker, "rm", "--force", "--volumes", container])


def _run(command: list[str], timeout: float = COMMAND_TIMEOUT) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokerError(f"cannot run {' '.join(command)}: {error}") from None
    if done.returncode != 0:
        raise BrokerError(f"cannot run {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="training-broker-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _can_start(server: Path) -> bool:
    return os.access(server, os.X_OK) and shutil.which("erl") is not None and shutil.which("epmd") is not None


def _docker_answers(docker: str) -> bool:
    try:
        # Some versions exit with 0 although no daemon answers; there is no version then.
        return _run([docker, "info", "--format", "{{.ServerVersion}}"]) != ""
    except BrokerError:
        return False


def _guest(port: int) -> str:
    return f"amqp://guest:guest@127.0.0.1:{port}/"


def _speaks_amqp(port: int) -> bool:
    """Return whether a broker offers a connection: a port that is merely open is not ready."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(PROTOCOL_HEADER)
            return connection.recv(1) == METHOD_FRAME
    except OSError:
        return False


def free_port(*taken: int) -> int:
    """Return a free port, not one that an outgoing connection may get before the node binds it.

    Such a connection may even be our own: one to a port without a listener can be connected to itself.
    """
    first, last = map(int, EPHEMERAL_PORTS.read_text().split())
    ports = [port for port in range(FIRST_PORT, 2**16) if not first <= port <= last] or list(range(FIRST_PORT, 2**16))
    random.shuffle(ports)
    for port in ports:
        if port not in taken and _is_free(port):
            return port
    raise BrokerError(f"cannot find a free port above {FIRST_PORT}")


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        # As the node itself does: connections that are closing do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True

"""Three RabbitMQ nodes of our own that form a cluster, to be killed one by one."""

import os
import secrets
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from training_worker.testing.local_broker import PrivateBroker, free_port

SIZE = 3
TIMEOUT = 60.0
POLL = 0.1

# Like the keeper of a node: it ends when its standard input does, and so with its owner.
MAPPER = 'exec 3<&0 </dev/null; epmd -address 127.0.0.1 -port "$1" 3<&- & read -r _ <&3; kill $!; wait'

# For all nodes but the first, which founds the cluster. The others name each other, too, for the lock by which they
# join one by one. It does not matter to a node that has data.
JOIN = "[{{rabbit, [{{cluster_nodes, {{[{names}], disc}}}}]}}]."

# Evaluated by a short-lived Erlang beside the nodes: it is there in half a second, rabbitmqctl needs seconds.
QUERY = "try Ask = fun(M, F, A) -> rpc:call('{node}', M, F, A, 5000) end, {question} catch _:_ -> halt(1) end, halt()."

TOGETHER = f"""
    {SIZE} = length(Ask(rabbit_mnesia, cluster_nodes, [running])),
    io:format("yes~n")
"""

# A member passes the query on to the leader: the answer is neither stale nor a guess.
MEMBERS = """
    {{ok, Queue}} = Ask(rabbit_amqqueue, lookup, [{{resource, <<"/">>, queue, <<"{queue}">>}}]),
    {{Name, _}} = Ask(amqqueue, get_pid, [Queue]),
    {{ok, Members, {{_, Leader}}}} = Ask(ra, members, [{{Name, '{node}'}}, 2000]),
    io:format("~s~n", [lists:join(" ", [atom_to_list(Node) || Node <- [Leader | [N || {{_, N}} <- Members]]])])
"""


class Cluster:
    """Three nodes on the loopback interface, which share a cookie and a port mapper and nothing with the machine."""

    def __init__(self, folder: Path) -> None:
        self._epmd_port = free_port()
        self.nodes = [PrivateBroker(folder / f"node-{number}", epmd_port=self._epmd_port) for number in range(SIZE)]
        self._names = [node.name for node in self.nodes]
        self._up: set[int] = set()
        self._stack = ExitStack()
        cookie = secrets.token_hex()
        for node in self.nodes:
            _lay_out(node.folder, cookie, self._names if node is not self.nodes[0] else [])

    def start(self, *numbers: int) -> None:
        """Start these nodes side by side and wait until each of them answers."""
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda number: self.nodes[number].start(), numbers))
        self._up.update(numbers)

    def kill(self, *numbers: int) -> None:
        """Kill these nodes as a loss of power would; their data and ports stay for another `start`."""
        self._up.difference_update(numbers)
        for number in numbers:
            self.nodes[number].kill()

    def leader(self, queue: str) -> int:
        """Which node leads a quorum queue; waits until one does."""
        return self._members(queue)[0]

    def members(self, queue: str) -> set[int]:
        """Which nodes hold a quorum queue, dead ones included; waits until it has a leader."""
        return set(self._members(queue)[1:])

    def _members(self, queue: str) -> list[int]:
        answer = _until(lambda: self._query(MEMBERS, queue), f"{queue} has no leader")
        return [self._names.index(name) for name in answer.split()]

    def _query(self, question: str, queue: str = "") -> str:
        """What a node that is up answers, on its own or on behalf of the others; nothing if it does not know."""
        node = self.nodes[min(self._up)]
        code = QUERY.format(node=node.name, question=question.format(node=node.name, queue=queue))
        name = f"ask-{secrets.token_hex(4)}@localhost"
        flags = ["-noinput", "-hidden", "-start_epmd", "false", "-kernel", "inet_dist_use_interface", "{127,0,0,1}"]
        environ = {"PATH": os.environ["PATH"], "HOME": str(node.folder), "ERL_EPMD_PORT": str(self._epmd_port)}
        command = ["erl", *flags, "-sname", name, "-eval", code]
        done = subprocess.run(command, env=environ, capture_output=True, timeout=TIMEOUT, check=False, text=True)
        return done.stdout

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            command = ["/bin/sh", "-c", MAPPER, "mapper", str(self._epmd_port)]
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))
            for node in self.nodes:
                stack.callback(node.kill)
            # Not all at once: a founder that is joined while it still starts may stay without quorum queues for good.
            self.start(0)
            self.start(*range(1, SIZE))
            _until(lambda: self._query(TOGETHER), "the nodes do not form a cluster")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _lay_out(folder: Path, cookie: str, join: list[str]) -> None:
    folder.mkdir(parents=True)
    (folder / ".erlang.cookie").write_text(cookie)
    (folder / ".erlang.cookie").chmod(0o400)
    if join:
        names = ", ".join(f"'{name}'" for name in join)
        (folder / "advanced.config").write_text(JOIN.format(names=names))


def _until(answer: Callable[[], str], otherwise: str) -> str:
    """Query until there is an answer."""
    deadline = time.monotonic() + TIMEOUT
    while not (found := answer()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise} within {TIMEOUT:.0f} s")
        time.sleep(POLL)
    return found

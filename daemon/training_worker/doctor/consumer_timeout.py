"""The check of how long the broker lets a delivery be held, against how long a worker holds one: half the lease.

No client can read the limit. A node reports it on its own host, to root and to the broker's user; from RabbitMQ 3.12
on a policy may set another, which the management API reports.
"""

import re
import shutil
import socket
import subprocess

from training_worker.doctor.findings import Finding, State, of_broker
from training_worker.settings import Settings

# RabbitMQ's default, seconds.
USUAL = 1800.0
LIMIT = 30.0
ASK = "application:get_env(rabbit, consumer_timeout)."
# Queried together with the ports, to know which broker answers.
QUESTION = (
    "{application:get_env(rabbit, consumer_timeout), [element(6, L) || L <- rabbit_networking:active_listeners()]}."
)
ANSWER = re.compile(r"\{(?P<timeout>undefined|\{ok,(?:\d+|\w+)\}),\[(?P<ports>[\d,\s]*)\]\}")
FOREVER = float("inf")
SYSTEM_PATH = "/usr/sbin:/sbin"


def judge(settings: Settings, known: float | None, where: str) -> Finding:
    """Judge a timeout (seconds) of ``where``; None if it is not known."""
    held = settings.lease / 2
    holds = f"a delivery is held for {held:.0f} s at most, half the lease"
    more = f"rabbitmqctl eval 'application:set_env(rabbit, consumer_timeout, {int(held * 2000)}).'"
    fix = f"{more}  # and consumer_timeout = {int(held * 2000)} in rabbitmq.conf; or a shorter lease in the settings"
    if known is None:
        look = f"on the broker's host: rabbitmqctl eval '{ASK}'"
        found = f"{holds}; the broker's own limit, {USUAL:.0f} s by default, is not known: {look}"
        return _finding(State.WARNING, found, fix) if held >= USUAL else _finding(State.OK, found)
    if known == FOREVER:
        return _finding(State.OK, f"{holds}; {where} has no limit")
    if held < known:
        return _finding(State.OK, f"{holds}; {where} allows {known:.0f} s")
    found = f"{holds}, and {where} allows {known:.0f} s: owners lose their channel while they train"
    return _finding(State.ERROR, found, fix)


def of_node(host: str, port: int) -> float | None:
    """Return the limit of a node on this very host, seconds; None if it cannot be read, or another node answers."""
    program = shutil.which("rabbitmqctl") or shutil.which("rabbitmqctl", path=SYSTEM_PATH)
    if program is None or not _is_here(host):
        return None
    try:
        done = subprocess.run(  # noqa: S603 - the broker's own program
            [program, "--quiet", "eval", QUESTION], capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read_answer(done.stdout, port)


def read_answer(output: str, port: int) -> float | None:
    """Return the limit in a node's answer, seconds, if it is the node that listens to this port."""
    found = ANSWER.search(output)
    if found is None or str(port) not in re.findall(r"\d+", found["ports"]):
        return None
    milliseconds = re.search(r"\d+", found["timeout"])
    return int(milliseconds[0]) / 1000 if milliseconds else FOREVER


def _is_here(host: str) -> bool:
    """Return whether an address is one of this host's own: no other can be bound to."""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return any(_can_bind(str(address)) for address in addresses)


def _can_bind(address: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
        return True


def _finding(state: State, found: str, fix: str | None = None) -> Finding:
    return of_broker("consumer_timeout", state, found, fix)

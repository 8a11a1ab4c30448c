"""The task of all peers: it reports that it has begun, and does nothing. It runs in their environment, not in ours."""

import os
import subprocess
import sys
import time

URL = os.environ["PEERS_URL"]
QUEUE = os.environ["PEERS_QUEUE"]
QUEUE_TYPE = os.environ["PEERS_QUEUE_TYPE"]
CHILD = [sys.executable, "-S", "-c", "pass"]


def work(child: bool) -> None:
    """Report when the work began: at once, or when a child process has been started, as our daemon does."""
    if not child:
        _say(time.time())
        return
    with subprocess.Popen(CHILD, stdin=subprocess.DEVNULL, start_new_session=True):  # noqa: S603 - ourselves
        _say(time.time())


def _say(moment: float) -> None:
    with open(os.environ["PEERS_MARKS"], "ab", buffering=0) as marks:  # noqa: PTH123 - nothing to import
        marks.write(f"{moment}\n".encode())

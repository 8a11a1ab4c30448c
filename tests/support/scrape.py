"""What a daemon serves for those who watch it."""

import asyncio
import socket
from urllib.error import HTTPError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(port: int, path: str) -> tuple[int, str]:
    """The status and the text of a page."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def page(port: int, path: str) -> tuple[int, str]:
    """The same, without holding up the loop."""
    return await asyncio.to_thread(get, port, path)


async def samples(port: int) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """The values of a scrape by name, and by labels in the order of their names."""
    _, text = await page(port, "/metrics")
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found

"""The monitoring port: ``/metrics``, ``/healthz`` and ``/readyz``, served from a separate thread."""

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import make_wsgi_app

from training_worker.errors import SettingsError
from training_worker.instrumentation.health import Liveness
from training_worker.instrumentation.prometheus import Metrics
from training_worker.observations import Observation, Observer


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    # A client that connects and sends nothing holds a thread no longer than this (seconds).
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing: a scrape is no news."""


def application(metrics: Metrics, health: Liveness) -> WSGIApplication:
    """Return the application with the three pages; any other path is not found."""
    scrape = make_wsgi_app(metrics.registry)
    checks = {"/healthz": health.why_dead, "/readyz": health.why_not_ready}

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            pages: Iterable[bytes] = scrape(environ, start_response)
            return pages
        check = checks.get(path)
        status, text = ("404 Not Found", "there is /metrics, /healthz and /readyz") if check is None else _state(check)
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    return answer


def _state(check: Callable[[], list[str]]) -> tuple[str, str]:
    reasons = check()
    return ("503 Service Unavailable", "\n".join(reasons)) if reasons else ("200 OK", "ok")


@contextmanager
def served(host: str, port: int, state_dir: Path) -> Iterator[Observer]:
    """Serve what is observed. Raises `SettingsError` if the port cannot be used."""
    metrics, health = Metrics(state_dir), Liveness()

    def observe(record: Observation) -> None:
        metrics.observe(record)
        health.observe(record)

    kind = _Server6 if ":" in host else _Server
    try:
        server = make_server(host, port, application(metrics, health), kind, _Handler)
    except OSError as error:
        raise SettingsError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from None
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield observe
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

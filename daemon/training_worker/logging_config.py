"""The daemon's log: a stable event key and bound context; readable on a terminal, JSON otherwise."""

import logging
import re
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger

# User and password of an address, as in amqp://user:password@host.
CREDENTIALS = re.compile(r"(?<=://)[^/\s@]*:[^/\s]*@")


def without_credentials(_: WrappedLogger, __: str, entry: EventDict) -> EventDict:
    """Return the entry with user and password removed from every address: a library's message may quote one."""
    return {key: CREDENTIALS.sub("***@", value) if isinstance(value, str) else value for key, value in entry.items()}


def configure_logging(*, verbose: bool = False) -> None:
    """Send structlog to standard error."""
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            without_credentials,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )

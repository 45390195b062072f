"""Structured logs, configured by shells only: commands and services, never libraries."""

import logging
import sys

import structlog


def configure_logging(level: str = "INFO") -> None:
    """Send structlog events to stderr: readable lines on a terminal, JSON lines elsewhere.

    Parameters
    ----------
    level
        Least severe level that is written, such as ``INFO``.
    """
    # Tracebacks without the values of variables, which may be large or private.
    rendering: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if sys.stderr.isatty()
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )

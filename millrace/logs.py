"""Where log lines go: stderr, one line per change of state. Coloured on a terminal, JSON elsewhere."""

import logging
import sys
from typing import Any

import structlog


def configure(role: str) -> None:
    """Every line of this process names its role. Libraries speak through the same door, warnings and worse only."""

    def with_role(_logger: Any, _method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
        fields.setdefault("role", role)
        return fields

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        with_role,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _what_first,
    ]
    terminal = sys.stderr.isatty()
    finish: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish]
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _what_first(_logger: Any, _method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """When, who and what at the start of each line, for people who read JSON."""
    first = ("timestamp", "level", "role", "event")
    return {**{name: fields[name] for name in first if name in fields}, **fields}

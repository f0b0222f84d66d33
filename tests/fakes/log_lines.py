"""The log of a process, as it is written, line by line."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from protocol.runtime import logs


class LogLines(logging.Handler):
    """Collects lines as JSON objects."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logs.JsonFormatter("tested"))
        self.lines: list[dict[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))

    def about(self, trace_id: str, request_id: str = "r") -> list[tuple[str, str]]:
        """Level and message of the lines that carry both ids."""
        return [
            (line["level"], line["message"])
            for line in self.lines
            if line.get("trace_id") == trace_id and line["request_id"] == request_id
        ]


@contextmanager
def log_lines(name: str, level: str = "DEBUG") -> Iterator[LogLines]:
    """What a logger writes meanwhile, at this level."""
    handler = LogLines()
    logger = logging.getLogger(name)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)

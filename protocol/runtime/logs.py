"""Sets up logging: JSON lines on stderr, or plain lines on a terminal, with keys blacked out."""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

import msgspec

LogFormat = Literal["json", "human"]

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that the current task works for; it stands on each of its log lines."""

trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""The `X-Request-ID` that the client of that request gave it; beside it on each line."""


@contextmanager
def about(request: str, trace: str = "") -> Iterator[None]:
    """What is logged within is about this request; `trace` is its client's `X-Request-ID`."""
    request_token, trace_token = request_id.set(request), trace_id.set(trace)
    try:
        yield
    finally:
        request_id.reset(request_token)
        trace_id.reset(trace_token)


_encode = msgspec.json.Encoder().encode

# API keys and bearer tokens of any kind. Hints such as `psk-ab…wxyz` are short and stay.
_SECRETS = re.compile(r"(psk-)[A-Za-z0-9_\-]{6,}|((?i:bearer)\s+)[A-Za-z0-9._~+/\-]{6,}=*")


def redact(text: str) -> str:
    """The text with API keys and bearer tokens replaced by `***`."""
    # Nearly all texts have neither word, and the expression looks at each of their characters.
    if "psk-" not in text and "bearer" not in text.lower():
        return text
    return _SECRETS.sub(lambda match: f"{match[1] or match[2]}***", text)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What a record brings along beside its message, as `extra={"fields": {…}}`."""
    return {
        name: redact(value) if isinstance(value, str) else value
        for name, value in getattr(record, "fields", {}).items()
    }


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, process, pid, logger, message, ids, exception.

    A record may bring more fields along, as `extra={"fields": {…}}`.
    """

    def __init__(self, process_name: str) -> None:
        super().__init__()
        self._process_name = process_name

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "process": self._process_name,
            "pid": record.process,
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if current := request_id.get():
            line["request_id"] = current
        if trace := trace_id.get():
            line["trace_id"] = redact(trace)
        line.update(_fields(record))
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        try:
            return _encode(line).decode()
        except (TypeError, ValueError, OverflowError):  # half a surrogate pair in a file name
            return json.dumps(line, ensure_ascii=False)


class HumanFormatter(logging.Formatter):
    """One readable line: time, level, process, message, and the request's ids in brackets."""

    def __init__(self, process_name: str) -> None:
        super().__init__()
        self._process_name = process_name

    def format(self, record: logging.LogRecord) -> str:
        current = " ".join(filter(None, (request_id.get(), trace_id.get())))
        suffix = f" [{redact(current)}]" if current else ""
        if fields := _fields(record):
            suffix += " " + " ".join(f"{name}={value}" for name, value in fields.items())
        line = (
            f"{_timestamp(record)[11:23]} {record.levelname.lower():<7} {self._process_name}: "
            f"{redact(record.getMessage())}{suffix}"
        )
        if record.exc_info:
            line += "\n" + redact(self.formatException(record.exc_info))
        return line


def setup(
    process_name: str,
    level: str = "info",
    stream: TextIO | None = None,
    log_format: LogFormat | None = None,
) -> None:
    """Replace the root logger's handlers by one that writes lines of ours.

    Args:
        process_name: Stands on each line, `gateway`, `engine`.
        level: `debug`, `info`, `warning` or `error`.
        stream: Where lines go; stderr when None.
        log_format: `json` or `human`; when None the setting PENSTOCK_LOG_FORMAT decides, and
            without it a terminal gets `human` and anything else `json`.
    """
    target = sys.stderr if stream is None else stream
    chosen = log_format or os.environ.get("PENSTOCK_LOG_FORMAT", "").strip().lower()
    if chosen not in ("json", "human"):
        chosen = "human" if target.isatty() else "json"
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        HumanFormatter(process_name) if chosen == "human" else JsonFormatter(process_name)
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

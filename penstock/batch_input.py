"""The input of `penstock run-batch`: where its lines are, and parts of it as batches take them.

Whether a line is right is the server's to say (`gateway/batches/lines.py`); here a line is looked
at just as far as it takes to send it with others of its kind and to know its answer again.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from penstock.errors import UsageError
from protocol.wire.codec import MAX_MESSAGE_BYTES

MAX_LINES: Final = 50_000
"""Of one batch, as OpenAI's API has it."""
MAX_PART_BYTES: Final = 64 * 2**20
_MAX_LINE_BYTES: Final = MAX_MESSAGE_BYTES
"""No server takes a longer one; it bounds what is read at a time."""
_FIRST_URL: Final = "/v1/chat/completions"
_SPACE: Final = " \t\n\r"
_BOM: Final = "\ufeff".encode()
_decoder: Final = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class InputLine:
    """A line that isn't blank.

    Attributes:
        number: In the file, from 1.
        start: Its first byte.
        num_bytes: With its line feed.
        custom_id: None where the line has none.
        url: Of the batch that it goes into.
    """

    number: int
    start: int
    num_bytes: int
    custom_id: str | None
    url: str


@dataclass(frozen=True, slots=True)
class BatchInput:
    """A file of requests.

    Attributes:
        path: Of the file.
        lines: All that aren't blank, in order.
        digest: Of its bytes.
    """

    path: Path
    lines: tuple[InputLine, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Part:
    """Lines that make one batch: of one URL, and no more of them than a batch may have."""

    url: str
    lines: tuple[InputLine, ...]


def read_input(path: Path) -> BatchInput:
    """Find the lines of a file.

    Raises:
        UsageError: It can't be read, has no request, or two lines have one `custom_id`: of two
            batches no server would notice.
    """
    lines: list[InputLine] = []
    seen: dict[str, int] = {}
    digest = hashlib.sha256()
    start, url = 0, _FIRST_URL
    try:
        with path.open("rb") as file:
            number = 0
            while text := file.readline(_MAX_LINE_BYTES + 1):
                number += 1
                if len(text) > _MAX_LINE_BYTES:
                    raise UsageError(f"{path}:{number}: longer than {_MAX_LINE_BYTES} bytes.")
                digest.update(text)
                begin, next_start = start, start + len(text)
                if not start and text.startswith(_BOM):
                    begin, text = len(_BOM), text[len(_BOM) :]
                if text and not text.isspace():
                    request = _request_of(text)
                    url = request.url or url
                    lines.append(InputLine(number, begin, len(text), request.custom_id, url))
                    _note_id(seen, lines[-1], path)
                start = next_start
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror or error}.") from None
    if not lines:
        raise UsageError(f"{path} holds no request.")
    return BatchInput(path, tuple(lines), digest.hexdigest())


def _note_id(seen: dict[str, int], line: InputLine, path: Path) -> None:
    if line.custom_id is None:
        return
    first = seen.setdefault(line.custom_id, line.number)
    if first != line.number:
        raise UsageError(
            f"{path}:{line.number}: custom_id {line.custom_id!r} repeats line {first}."
        )


def parts_of(lines: Iterable[InputLine]) -> Iterator[Part]:
    """The lines as batches take them, in order but for their URLs."""
    open_parts: dict[str, tuple[list[InputLine], int]] = {}
    for line in lines:
        found, num_bytes = open_parts.get(line.url, ([], 0))
        if found and (len(found) >= MAX_LINES or num_bytes + line.num_bytes > MAX_PART_BYTES):
            yield Part(line.url, tuple(found))
            found, num_bytes = [], 0
        found.append(line)
        open_parts[line.url] = found, num_bytes + line.num_bytes
    for url, (found, _) in open_parts.items():
        yield Part(url, tuple(found))


def write_part(source: BatchInput, part: Part, file: BinaryIO, default_model: str | None) -> None:
    """Write the lines of a part, byte for byte but for a model where a body names none.

    Args:
        source: Where they are.
        part: Which they are.
        file: Takes them, and is at its beginning afterwards.
        default_model: For bodies that name none; None leaves them as they are.

    Raises:
        UsageError: The input can't be read any more.
        OSError: The file can't be written.
    """
    try:
        given = source.path.open("rb")
    except OSError as error:
        raise UsageError(f"{source.path} can't be read: {error.strerror or error}.") from None
    with given:
        for line in part.lines:
            given.seek(line.start)
            text = given.read(line.num_bytes)
            if default_model is not None:
                text = _with_model(text, default_model)
            file.write(text if text.endswith(b"\n") else text + b"\n")
    file.flush()
    file.seek(0)


@dataclass(slots=True)
class _Request:
    """What was found in a line.

    Attributes:
        body_start: The first character behind the opening brace of its body; -1 without a body.
        body: Empty where there is none.
    """

    custom_id: str | None = None
    url: str = ""
    body_start: int = -1
    body: Any = None


def _request_of(text: bytes) -> _Request:
    """What a line says of itself; nothing of one that is no JSON object."""
    found = _Request()
    try:
        for name, value, start in _members(text.decode("utf-8")):
            if name == "custom_id":
                found.custom_id = value if isinstance(value, str) else None
            elif name == "url":
                found.url = value if isinstance(value, str) else ""
            elif name == "body":
                is_object = isinstance(value, dict)
                found.body_start, found.body = (start + 1, value) if is_object else (-1, None)
    except (ValueError, IndexError, RecursionError):
        return _Request()
    return found


def _members(text: str) -> Iterator[tuple[str, Any, int]]:
    """Name, value and place of the value of each member of a JSON object.

    Raises:
        ValueError: It is no JSON object.
        IndexError: It ends too early.
    """
    at = _behind(text, 0, "{")
    if text[at] == "}":
        return
    while True:
        if text[at] != '"':
            raise ValueError("a member has a name")
        name, at = _decoder.raw_decode(text, at)
        start = _behind(text, at, ":")
        value, at = _decoder.raw_decode(text, start)
        yield name, value, start
        at = _skip(text, at)
        if text[at] == "}":
            return
        at = _behind(text, at, ",")


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def _behind(text: str, at: int, mark: str) -> int:
    """The place behind a mark and the space that follows it."""
    at = _skip(text, at)
    if text[at] != mark:
        raise ValueError(f"{mark} is missing")
    return _skip(text, at + 1)


def _with_model(text: bytes, model: str) -> bytes:
    """A line whose body names a model, with all else as it stands there, each digit of numbers."""
    found = _request_of(text)
    if found.body_start < 0 or "model" in found.body:
        return text
    line = text.decode("utf-8")
    named = f'"model": {json.dumps(model)}{", " if found.body else ""}'
    return f"{line[: found.body_start]}{named}{line[found.body_start :]}".encode()

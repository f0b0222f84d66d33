"""The lines of a batch's input: read one by one, whatever the file's size, and checked."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from gateway.batches.records import LineError
from gateway.errors import InvalidRequestError
from gateway.json_numbers import keep_digits

MAX_LINES: Final = 50_000
MAX_BLANK_LINES: Final = 50_000
"""No request of them is charged, but reading each takes this server's time."""
MAX_ERRORS: Final = 100
"""Wrong lines that are told of."""
MAX_CUSTOM_ID_CHARACTERS: Final = 512
BOM: Final = "\ufeff".encode()
"""Editors of Windows begin files with it; it is no part of the first line."""
_DIGEST_BYTES: Final = 8
_OF_TOKEN_IDS: Final = ("logit_bias", "stop_token_ids", "allowed_token_ids", "logprob_token_ids")


class Wanted(NamedTuple):
    """Which engines can answer a line.

    Attributes:
        model: As the body names it; None where that is no name.
        names_token_ids: Whether the body says something in token ids, as
            `GenerationJob.names_token_ids` does of the request that is made of it.
    """

    model: str | None
    names_token_ids: bool


class Place(NamedTuple):
    """Where a line of the input is.

    Attributes:
        number: Of the line in the file, from 1.
        start: Its first byte.
    """

    number: int
    start: int


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of the input.

    Attributes:
        place: In the file.
        body: For `orjson.dumps`, which writes the numbers in it with all their digits.
    """

    place: Place
    custom_id: str
    body: dict[str, Any]

    @property
    def number(self) -> int:
        """Of the line in the file, from 1."""
        return self.place.number

    @property
    def wanted(self) -> Wanted:
        """Which engines can answer it."""
        model, prompt = self.body.get("model"), self.body.get("prompt")
        # Ids of one prompt, or of several.
        has_ids = isinstance(prompt, list) and any(isinstance(one, int | list) for one in prompt)
        names_token_ids = has_ids or any(map(self.body.get, _OF_TOKEN_IDS))
        return Wanted(model if isinstance(model, str) else None, names_token_ids)


class ChangedInputError(Exception):
    """A line of an input that was checked is wrong now: somebody wrote to this server's disk."""

    def __init__(self, error: LineError) -> None:
        super().__init__(error.message)
        self.error = error


class LineTooLongError(Exception):
    """A line is longer than a request may be."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class TooManyBlankLinesError(Exception):
    """A file has more lines without a request than it may have."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def left(path: Path, endpoint: str, done: AbstractSet[int]) -> Iterator[BatchLine]:
    """The lines of an input that was checked, but for those of these numbers.

    They are as long as the check allowed: a bound that a gateway of today has refuses one request
    of them, not the batch.

    Raises:
        ChangedInputError: A line is wrong.
        OSError: The file can't be read.
    """
    for place, text in texts(path, path.stat().st_size):
        if place.number not in done:
            yield _checked(place, text, endpoint)


def at(path: Path, endpoint: str, place: Place) -> BatchLine:
    """One line of an input that was checked.

    Raises:
        ChangedInputError: The line is wrong.
        OSError: The file can't be read.
    """
    with path.open("rb") as file:
        file.seek(place.start)
        return _checked(place, file.readline(), endpoint)


def _checked(place: Place, text: bytes, endpoint: str) -> BatchLine:
    line = parse(place, text, endpoint)
    if isinstance(line, LineError):
        raise ChangedInputError(line)
    return line


def texts(
    path: Path, max_bytes: int, max_blank: float = float("inf")
) -> Iterator[tuple[Place, bytes]]:
    """The lines of a file that aren't blank, with their places; one is in memory at a time.

    Args:
        path: Of the file.
        max_bytes: Of a line.
        max_blank: Lines.

    Raises:
        LineTooLongError: A line has more than so many bytes.
        TooManyBlankLinesError: More lines than that are blank.
        OSError: The file can't be read.
    """
    with path.open("rb") as file:
        number = start = num_blank = 0
        while text := file.readline(max_bytes + 2):
            number += 1
            if len(text.rstrip(b"\r\n")) > max_bytes:
                raise LineTooLongError(number)
            begin, next_start = start, start + len(text)
            if not start and text.startswith(BOM):
                begin, text = len(BOM), text[len(BOM) :]
            if text and not text.isspace():
                yield Place(number, begin), text
            else:
                num_blank += 1
                if num_blank > max_blank:
                    raise TooManyBlankLinesError(number)
            start = next_start


def parse(place: Place, text: bytes, endpoint: str) -> BatchLine | LineError:
    """One line, or what is wrong with it."""
    number = place.number
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return LineError("invalid_json_line", "This line is not valid JSON.", number)
    if not isinstance(value, dict):
        return LineError("invalid_json_line", "This line is no JSON object.", number)
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARACTERS:
        message = f"`custom_id` must be a text of 1 to {MAX_CUSTOM_ID_CHARACTERS} characters."
        return LineError("missing_required_parameter", message, number, "custom_id")
    if value.get("method") != "POST":
        return LineError("invalid_method", "`method` must be POST.", number, "method")
    if value.get("url") != endpoint:
        message = f"`url` must be the batch's endpoint, {endpoint}."
        return LineError("mismatched_url", message, number, "url")
    body = value.get("body")
    if not isinstance(body, dict):
        return LineError("invalid_request", "`body` must be an object.", number, "body")
    for name in ("stream", "background"):
        if body.get(name):
            message = f"A batch can't use `{name}`; leave it out of `body`."
            return LineError("invalid_request", message, number, f"body.{name}")
    try:
        keep_digits(text, value, {"body"})
    except InvalidRequestError as error:
        return LineError("invalid_request", error.message, number, "body")
    return BatchLine(place, custom_id, value["body"])


def check(path: Path, endpoint: str, max_line_bytes: int) -> tuple[int, list[LineError]]:
    """How many requests a file holds, and what is wrong with it; nothing of it is kept."""
    num_lines, errors = 0, list[LineError]()
    seen: dict[bytes, int] = {}
    try:
        for place, text in texts(path, max_line_bytes, MAX_BLANK_LINES):
            number = place.number
            num_lines += 1
            if num_lines > MAX_LINES:
                message = f"The file has more than {MAX_LINES} requests, which is the limit."
                errors.append(LineError("too_many_requests", message, number))
                break
            line = parse(place, text, endpoint)
            if isinstance(line, BatchLine):
                digest = blake2b(line.custom_id.encode(), digest_size=_DIGEST_BYTES).digest()
                first = seen.setdefault(digest, number)
                if first == number:
                    continue
                message = f"`custom_id` repeats the one of line {first}."
                line = LineError("duplicate_custom_id", message, number, "custom_id")
            errors.append(line)
            if len(errors) >= MAX_ERRORS:
                break
    except LineTooLongError as error:
        message = f"The line has more than {max_line_bytes} bytes, which no request may have."
        errors.append(LineError("request_too_large", message, error.number))
    except TooManyBlankLinesError as error:
        message = f"The file has more than {MAX_BLANK_LINES} blank lines, which is the limit."
        errors.append(LineError("too_many_blank_lines", message, error.number))
    except OSError as error:
        message = f"The file can't be read: {error.strerror or 'unknown error'}."
        errors.append(LineError("unreadable_file", message))
    except UnicodeEncodeError:
        message = "A `custom_id` holds a lone surrogate, which is no character."
        errors.append(LineError("invalid_json_line", message))
    if not num_lines and not errors:
        errors.append(LineError("empty_file", "The file holds no request."))
    return num_lines, errors

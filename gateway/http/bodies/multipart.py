"""Reads multipart/form-data (RFC 7578) as it comes: fields into memory, one file to a sink."""

import re
from collections.abc import Callable
from typing import Final

from gateway.errors import InvalidRequestError
from gateway.http.bodies.header_parameters import header_parameters

MAX_FIELD_BYTES: Final = 64 * 1024
"""Of all fields together that are no file."""
MAX_FIELDS: Final = 32
_MAX_HEAD_BYTES: Final = 8192
_DISPOSITION: Final = "Content-Disposition"
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{1,70}")


class FormReader:
    """Takes a form apart, piece by piece; whatever the cuts, the result is the same.

    Args:
        content_type: The header of the request.
        file_field: Name of the field that is the file.
        sink: Takes the file's bytes, in order.

    Raises:
        InvalidRequestError: The header is malformed, or names no boundary.
    """

    def __init__(self, content_type: str, file_field: str, sink: Callable[[bytes], None]) -> None:
        kind, parameters = header_parameters(content_type, "Content-Type")
        boundary = parameters.get("boundary")
        if kind != "multipart/form-data" or boundary is None:
            raise InvalidRequestError(
                "The Content-Type must be multipart/form-data with a boundary."
            )
        if _BOUNDARY.fullmatch(boundary) is None:
            raise InvalidRequestError("The boundary of the multipart body is malformed.")
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._file_field = file_field
        self._sink = sink
        # The first delimiter may stand at the very beginning.
        self._buffer = bytearray(b"\r\n")
        self._state: Callable[[], bool] = self._skip_preamble
        self._name = ""
        self._num_field_bytes = 0
        self._num_parts = 0
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.has_ended = False
        self._value = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body.

        Raises:
            InvalidRequestError: It is no form, or has too many or too large fields.
        """
        self._buffer += data
        while not self.has_ended and self._state():
            pass
        if self.has_ended:
            self._buffer.clear()  # the epilogue means nothing

    def finish(self) -> None:
        """The body has ended.

        Raises:
            InvalidRequestError: Before the form did, or it has no file.
        """
        if not self.has_ended:
            raise InvalidRequestError("The multipart body ends before its last boundary.")
        if self.filename is None:
            raise InvalidRequestError(
                f"Missing required field: `{self._file_field}`.", param=self._file_field
            )

    def _skip_preamble(self) -> bool:
        place = self._buffer.find(self._delimiter)
        if place < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise InvalidRequestError("The multipart body doesn't begin with its boundary.")
            return False
        del self._buffer[: place + len(self._delimiter)]
        self._state = self._after_delimiter
        return True

    def _after_delimiter(self) -> bool:
        if len(self._buffer) < 2:
            return False
        if self._buffer.startswith(b"--"):
            self.has_ended = True
            return False
        end = self._buffer.find(b"\r\n")
        if end < 0 or end > _MAX_HEAD_BYTES:
            self._check_head()
            return False
        if self._buffer[:end].strip(b" \t"):
            raise InvalidRequestError("A boundary of the multipart body is followed by text.")
        del self._buffer[: end + 2]
        self._state = self._read_head
        return True

    def _read_head(self) -> bool:
        # An empty head is a blank line at once.
        end = 0 if self._buffer.startswith(b"\r\n") else self._buffer.find(b"\r\n\r\n")
        if end < 0:
            self._check_head()
            return False
        lines = self._buffer[:end].decode("utf-8", "replace").split("\r\n")
        del self._buffer[: end + (2 if end == 0 else 4)]
        self._begin_part(lines)
        self._state = self._read_content
        return True

    def _begin_part(self, lines: list[str]) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_FIELDS:
            raise InvalidRequestError(f"The form has more than {MAX_FIELDS} fields.")
        told = [
            value
            for name, _, value in (line.partition(":") for line in lines)
            if name.strip().lower() == _DISPOSITION.lower()
        ]
        if len(told) > 1:
            raise InvalidRequestError(f"A part of the multipart body has several {_DISPOSITION}.")
        _, parameters = header_parameters(told[0] if told else "", _DISPOSITION)
        found = parameters.get("name", "")
        if not found:
            raise InvalidRequestError("A part of the multipart body has no name.")
        self._name, self._value = found, bytearray()
        if found == self._file_field:
            if self.filename is not None:
                raise InvalidRequestError(f"`{found}` comes twice.", param=found)
            self.filename = parameters.get("filename") or "upload"
        elif found in self.fields:
            raise InvalidRequestError(f"`{found:.80}` comes twice.", param=found[:80])

    def _read_content(self) -> bool:
        place = self._buffer.find(self._delimiter)
        # The end of what is here may be the beginning of a delimiter.
        end = place if place >= 0 else len(self._buffer) - len(self._delimiter) + 1
        if end > 0:
            self._take(bytes(self._buffer[:end]))
            del self._buffer[:end]
        if place < 0:
            return False
        del self._buffer[: len(self._delimiter)]
        if self._name != self._file_field:
            self.fields[self._name] = self._value.decode("utf-8", "replace")
        self._state = self._after_delimiter
        return True

    def _take(self, data: bytes) -> None:
        if self._name == self._file_field:
            self._sink(data)
            return
        self._num_field_bytes += len(data)
        if self._num_field_bytes > MAX_FIELD_BYTES:
            raise InvalidRequestError(
                f"The form's fields have more than {MAX_FIELD_BYTES} bytes, beside its file.",
                param=self._name[:80],
            )
        self._value += data

    def _check_head(self) -> None:
        if len(self._buffer) > _MAX_HEAD_BYTES:
            raise InvalidRequestError("The head of a part of the multipart body is too long.")

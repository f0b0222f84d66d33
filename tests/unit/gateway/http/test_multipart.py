"""Forms are read as they come: the same whatever the cuts, and never beyond their bounds."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequestError
from gateway.http.multipart import MAX_FIELD_BYTES, MAX_FIELDS, FormReader

TYPE = 'multipart/form-data; boundary="b-1"'


def field(name: str, value: bytes, filename: str | None = None) -> bytes:
    disposition = f'form-data; name="{name}"'
    disposition += "" if filename is None else f'; filename="{filename}"'
    head = f"--b-1\r\nContent-Disposition: {disposition}\r\nContent-Type: text/plain\r\n\r\n"
    return head.encode() + value + b"\r\n"


def read(
    body: bytes, cuts: list[int] | None = None, content_type: str = TYPE
) -> tuple[FormReader, bytes]:
    taken = bytearray()
    reader = FormReader(content_type, "file", taken.extend)
    places = [0, *sorted({min(cut, len(body)) for cut in cuts or []}), len(body)]
    for start, end in pairwise(places):
        reader.feed(body[start:end])
    reader.finish()
    return reader, bytes(taken)


CONTENT = b"line 1\r\n--b-\r\n--b-2\r\n\r\n--\x00\xff--b-1"
BODY = (
    b"preamble\r\n"
    + field("purpose", b"batch")
    + field("file", CONTENT, "in.jsonl")
    + field("empty", b"")
    + b"--b-1--\r\nepilogue --b-1"
)


@given(st.lists(st.integers(0, len(BODY)), max_size=40))
def test_a_form_is_the_same_in_every_cut(cuts: list[int]) -> None:
    reader, taken = read(BODY, cuts)
    assert taken == CONTENT
    assert reader.fields == {"purpose": "batch", "empty": ""}
    assert reader.filename == "in.jsonl"


def test_byte_by_byte() -> None:
    _, taken = read(BODY, list(range(len(BODY))))
    assert taken == CONTENT


@given(st.binary(max_size=300))
def test_whatever_the_content_it_arrives(content: bytes) -> None:
    if b"\r\n--b-1" not in content:
        _, taken = read(field("file", content, "f") + b"--b-1--")
        assert taken == content


@pytest.mark.parametrize("end", range(len(BODY) - len(b"epilogue --b-1") - 2))
def test_a_form_that_ends_too_early_is_refused(end: int) -> None:
    with pytest.raises(InvalidRequestError):
        read(BODY[:end].removesuffix(b"--b-1--"))


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 71, ""],
)
def test_a_type_without_a_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidRequestError):
        read(BODY, content_type=content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"x" * 20_000,
        field("a", b"") * 2,
        field("file", b"", "a") + field("file", b"", "b"),
        b"".join(field(f"f{number}", b"") for number in range(MAX_FIELDS + 1)),
        field("a", b"x" * (MAX_FIELD_BYTES + 100)),
        b"--b-1\r\nX: " + b"y" * 10_000,
        b"--b-1\r\n\r\nno name\r\n--b-1--",
        b"--b-1 text\r\n",
        b"--b-1" + b" " * 10_000,
    ],
)
def test_a_form_beyond_its_bounds_is_refused_before_its_end(body: bytes) -> None:
    reader = FormReader(TYPE, "file", lambda _data: None)
    with pytest.raises(InvalidRequestError):
        for start in range(0, len(body), 1000):
            reader.feed(body[start : start + 1000])


def test_a_form_without_a_file_names_it() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        read(field("purpose", b"batch") + b"--b-1--")
    assert raised.value.param == "file"

"""Forms are read as they come: the same whatever the cuts, and never beyond their bounds."""

import json
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequestError
from gateway.http.bodies.multipart import MAX_FIELD_BYTES, MAX_FIELDS, FormReader

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


def test_a_form_that_ends_too_early_is_refused() -> None:
    for end in range(len(BODY) - len(b"epilogue --b-1") - 2):
        beginning = BODY[:end].removesuffix(b"--b-1--")
        try:
            read(beginning)
        except InvalidRequestError:
            continue
        pytest.fail(f"{beginning!r} is taken")


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


def named(disposition: str) -> FormReader:
    head = f"--b-1\r\nContent-Disposition: {disposition}\r\n\r\n"
    return read(head.encode() + b"x\r\n--b-1--")[0]


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        ('form-data; name="file"; filename="a.jsonl"', "a.jsonl"),
        ("form-data;name=file;filename=a.jsonl ", "a.jsonl"),
        ('form-data; name="file"; filename="a;\\"b\\\\.jsonl"', 'a;"b\\.jsonl'),  # curl
        ('form-data; name="file"; filename="C:\\new.jsonl"', "C:\\new.jsonl"),
        ('form-data; name="file"; filename="é.jsonl";', "é.jsonl"),
        ("Form-Data; Name=\"file\"; FileName*=UTF-8'en'%C3%A9.jsonl", "é.jsonl"),
        ("form-data; name=file; filename*=iso-8859-1''%E9; filename=e", "é"),
        ('form-data; name="file"; size=3; filename=""', "upload"),
        ('form-data; name="file"; filename*0=a', "upload"),
    ],
)
def test_a_file_is_called_what_its_client_says(disposition: str, filename: str) -> None:
    assert named(disposition).filename == filename


@pytest.mark.parametrize(
    "disposition",
    [
        "form-data; name=file; filename*=idna''a",
        "form-data; name=file; filename*=raw_unicode_escape''%5Cud800",
        "form-data; name=file; filename*=utf-8''%ED%A0%80",
        "form-data; name=file; filename*=utf-8''%FF",
        "form-data; name=file; filename*=a",
        "form-data; name=file; filename*=utf-8''a; filename*=utf-8''b",
        'form-data; name="file',
        'form-data; name="file" filename="a"',
        "form-data; name",
        "form-data; name=file; name=purpose",
        "form-data; name=file\r\nContent-Disposition: form-data; name=purpose",
    ],
)
def test_a_part_whose_head_is_malformed_is_refused(disposition: str) -> None:
    with pytest.raises(InvalidRequestError):
        named(disposition)


@pytest.mark.parametrize(
    "disposition",
    [
        "form-data; name=file; filename*=utf-8''a; filename*0*=b",
        f"form-data; name=file; filename*{'9' * 5000}=a",
    ],
)
def test_parts_of_a_name_are_no_name(disposition: str) -> None:
    with suppress(InvalidRequestError):
        assert named(disposition).filename in ("a", "upload")


@pytest.mark.parametrize("boundary", ["boundary*=x; boundary*0=y", "boundary=a; boundary=b", "x"])
def test_a_type_that_is_malformed_is_refused(boundary: str) -> None:
    with pytest.raises(InvalidRequestError):
        read(BODY, content_type=f"multipart/form-data; {boundary}")


WORDS = st.sampled_from(
    [
        *("form-data", "name", "file", "filename", "boundary", "b-1", "multipart/form-data"),
        *("utf-8''", "*", "*0", "*1*", "=", ";", '"', "\\", "%", "%ff", "%41", "'", " ", "\t", "é"),
        *("\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"), "\0", "\n", "idna"),
    ]
)
HEADS = st.lists(WORDS | st.text(max_size=2), max_size=14).map("".join)


@given(HEADS, HEADS)
def test_whatever_a_header_says_it_names_a_file_or_is_refused(kind: str, disposition: str) -> None:
    for name in (disposition, f"form-data; name=file; filename{disposition}"):
        head = f"--b-1\r\nContent-Disposition: {name}\r\n\r\n".encode("utf-8", "replace")
        with suppress(InvalidRequestError):
            reader, _ = read(head + b"x\r\n--b-1--")
            assert json.loads(json.dumps(reader.filename).encode()) == reader.filename
            (reader.filename or "").encode()  # no half of a pair
    for content_type in (kind, f"multipart/form-data; boundary{kind}"):
        with suppress(InvalidRequestError):
            FormReader(content_type, "file", lambda _data: None)


def test_a_form_without_a_file_names_it() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        read(field("purpose", b"batch") + b"--b-1--")
    assert raised.value.param == "file"

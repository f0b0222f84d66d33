"""The input of a batch is read line by line, and what is wrong is told with the line's number."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.batches.lines import (
    BOM,
    MAX_BLANK_LINES,
    MAX_ERRORS,
    MAX_LINES,
    BatchLine,
    Place,
    at,
    check,
    left,
    parse,
    texts,
)
from gateway.batches.records import LineError

CHAT = "/v1/chat/completions"


def line(number: int = 1, **changes: Any) -> bytes:
    value = {"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": {"model": "m"}}
    return json.dumps(value | changes).encode()


def checked(tmp_path: Path, *written: bytes, end: bytes = b"\n") -> tuple[int, list[Any]]:
    path = tmp_path / "in.jsonl"
    path.write_bytes(end.join(written))
    num_lines, errors = check(path, CHAT, 1000)
    return num_lines, [(error.code, error.line, error.param) for error in errors]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n  \n"])
def test_a_good_file_has_so_many_requests(tmp_path: Path, end: bytes) -> None:
    assert checked(tmp_path, line(1), line(2), b"", end=end) == (2, [])


def test_a_byte_order_mark_at_the_beginning_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    assert checked(tmp_path, BOM + line(1), line(2)) == (2, [])
    first, second = left(tmp_path / "in.jsonl", CHAT, set())
    assert (first.place, first.custom_id, second.custom_id) == (Place(1, len(BOM)), "c1", "c2")
    assert at(tmp_path / "in.jsonl", CHAT, first.place) == first
    assert checked(tmp_path, BOM, line(1)) == (1, [])
    assert checked(tmp_path, BOM) == (0, [("empty_file", None, None)])
    assert checked(tmp_path, line(1), BOM + line(2)) == (2, [("invalid_json_line", 2, None)])


@pytest.mark.parametrize(
    ("written", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b'{"custom_id": "\\ud800"}', "invalid_json_line", None),
        (line(custom_id=3), "missing_required_parameter", "custom_id"),
        (line(custom_id=""), "missing_required_parameter", "custom_id"),
        (line(custom_id="x" * 600), "missing_required_parameter", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/embeddings"), "mismatched_url", "url"),
        (line(body="x"), "invalid_request", "body"),
        (line(body={"stream": True}), "invalid_request", "body.stream"),
        (line(body={"background": True}), "invalid_request", "body.background"),
        (line(body={"x": "y" * 1000}), "request_too_large", None),
        (line(1), "duplicate_custom_id", "custom_id"),
    ],
)
def test_a_wrong_line_is_told_with_its_number(
    tmp_path: Path, written: bytes, code: str, param: str | None
) -> None:
    _, errors = checked(tmp_path, line(1), b"", written)
    assert errors == [(code, 3, param)]


def test_numbers_of_a_body_keep_every_digit() -> None:
    body = '{"guided_json":{"const":123456789012345678901234567890},"seed":7}'
    written = line().replace(b'{"model": "m"}', body.encode())
    read = parse(Place(1, 0), written, CHAT)
    assert isinstance(read, BatchLine)
    assert orjson.dumps(read.body).decode() == body


def test_a_body_with_long_numbers_that_nests_too_deep_is_a_wrong_line() -> None:
    written = line().replace(b'"m"', b"[" * 1000 + b"9" * 30 + b"]" * 1000)
    found = parse(Place(3, 0), written, CHAT)
    assert isinstance(found, LineError)
    assert (found.code, found.line, found.param) == ("invalid_request", 3, "body")


def test_an_empty_file_and_one_that_is_too_long(tmp_path: Path) -> None:
    assert checked(tmp_path, b"\n \n") == (0, [("empty_file", None, None)])
    many = [line(number) for number in range(MAX_LINES + 5)]
    _, errors = checked(tmp_path, *many)
    assert errors == [("too_many_requests", MAX_LINES + 1, None)]
    _, errors = checked(tmp_path, *[b"{"] * 1000)
    assert len(errors) == MAX_ERRORS


@pytest.mark.parametrize("blank", [b"", b" \r"])
def test_blank_lines_are_read_up_to_a_bound(tmp_path: Path, blank: bytes) -> None:
    most = [blank] * MAX_BLANK_LINES
    assert checked(tmp_path, line(1), *most, line(2)) == (2, [])
    too_many = ("too_many_blank_lines", MAX_BLANK_LINES + 2, None)
    assert checked(tmp_path, line(1), *most, *most, line(2)) == (1, [too_many])
    too_many = ("too_many_blank_lines", MAX_BLANK_LINES + 1, None)
    assert checked(tmp_path, *most, *most, b"") == (0, [too_many])


def test_one_line_is_in_memory_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    with path.open("wb") as file:
        for number in range(10_000):
            file.write(line(number, body={"model": "m", "input": "x" * 5000}) + b"\n")
        file.write(b"y" * 20_000_000)
    tracemalloc.start()
    try:
        num_lines, errors = check(path, CHAT, 16_000_000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_lines == 10_000
    assert [error.code for error in errors] == ["request_too_large"]
    assert peak_bytes < 40_000_000


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n" + line(1) + b"\n\n" + line(2))
    found = [parse(place, text, CHAT) for place, text in texts(path, 1000)]
    assert [(one.number, one.custom_id) for one in found if isinstance(one, BatchLine)] == [
        (2, "c1"),
        (4, "c2"),
    ]


def test_a_line_is_read_again_from_its_place(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n" + line(1) + b"\r\n\n" + line(2, body={"user": "é"}) + b"\n" + line(3))
    found = list(left(path, CHAT, {4}))
    assert [one.custom_id for one in found] == ["c1", "c3"]
    assert [at(path, CHAT, one.place) for one in left(path, CHAT, set())] == [
        *left(path, CHAT, set())
    ]


@pytest.mark.parametrize(
    ("body", "names_token_ids"),
    [
        ({}, False),
        ({"prompt": "text", "logit_bias": {}, "stop_token_ids": []}, False),
        ({"prompt": ["text", "another"]}, False),
        ({"prompt": [1, 2]}, True),
        ({"prompt": [[1], [2]]}, True),
        ({"prompt": ["text", [2]]}, True),
        ({"logit_bias": {"5": 1}}, True),
        ({"stop_token_ids": [5]}, True),
        ({"allowed_token_ids": [5]}, True),
        ({"logprob_token_ids": [5]}, True),
    ],
)
def test_a_line_tells_whether_it_holds_token_ids(
    body: dict[str, Any], *, names_token_ids: bool
) -> None:
    read = parse(Place(1, 0), line(body=body | {"model": "m"}), CHAT)
    assert isinstance(read, BatchLine)
    assert read.wanted == ("m", names_token_ids)


def test_what_is_no_name_of_a_model_is_none() -> None:
    read = parse(Place(1, 0), line(body={"model": 7}), CHAT)
    assert isinstance(read, BatchLine)
    assert read.wanted == (None, False)

"""The input of a batch: found line by line, sent byte for byte, in parts that a batch may have."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from penstock import batch_input
from penstock.batch_input import BatchInput, parts_of, read_input, write_part
from penstock.errors import UsageError

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


def request_line(custom_id: str, url: str = CHAT, **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def written(source: BatchInput, default_model: str | None = None) -> list[list[str]]:
    found = []
    for part in parts_of(source.lines):
        file = io.BytesIO()
        write_part(source, part, file, default_model)
        found.append(file.read().decode().splitlines())
    return found


def test_lines_have_their_numbers_and_blank_ones_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "in", "", request_line("a"), "  ", request_line("b"))
    path.write_bytes(path.read_bytes()[:-1])  # the last one without its line feed
    source = read_input(path)
    assert [(line.number, line.custom_id) for line in source.lines] == [(2, "a"), (4, "b")]
    assert written(source) == [[request_line("a"), request_line("b")]]


def test_a_byte_order_mark_at_the_beginning_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    source = read_input(write(tmp_path / "in", "\ufeff" + request_line("a"), request_line("b")))
    assert [line.custom_id for line in source.lines] == ["a", "b"]
    assert written(source) == [[request_line("a"), request_line("b")]]


def test_a_part_has_lines_of_one_url_and_as_many_as_a_batch_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [request_line(f"c{n}") for n in range(5)] + [request_line("e", EMBEDDINGS)]
    lines.insert(2, request_line("e2", EMBEDDINGS))
    source = read_input(write(tmp_path / "in", *lines))
    monkeypatch.setattr(batch_input, "MAX_LINES", 3)
    parts = [(part.url, [line.custom_id for line in part.lines]) for part in parts_of(source.lines)]
    assert parts == [
        (CHAT, ["c0", "c1", "c2"]),
        (CHAT, ["c3", "c4"]),
        (EMBEDDINGS, ["e2", "e"]),
    ]
    monkeypatch.setattr(batch_input, "MAX_PART_BYTES", 2 * len(lines[0]) + 2)
    assert [len(part.lines) for part in parts_of(source.lines)] == [2, 2, 1, 2]


def test_what_is_wrong_with_a_line_is_left_to_the_server(tmp_path: Path) -> None:
    wrong = ["{", "[]", '{"custom_id": 1}', '{"url": ["a"], "body": 3}', "\x00", '{"a" 1}', "{} x"]
    source = read_input(write(tmp_path / "in", request_line("a", EMBEDDINGS), *wrong))
    assert written(source, "demo")[0][1:] == wrong
    assert {line.custom_id for line in source.lines} == {"a", None}
    assert {line.url for line in source.lines} == {EMBEDDINGS}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ('{"body": {}}', '{"body": {"model": "d\\u00e9mo"}}'),
        ('{ "body" : { "a": 1 } }', '{ "body" : {"model": "d\\u00e9mo",  "a": 1 } }'),
        (
            '{"body":{"seed":123456789012345678901234567890,"x":1.10},"custom_id":"a"}',
            '{"body":{"model": "d\\u00e9mo", "seed":123456789012345678901234567890,"x":1.10},'
            '"custom_id":"a"}',
        ),
        (
            '{"body": {"model": 1}, "body": {"a": "}{"}}',
            '{"body": {"model": 1}, "body": {"model": "d\\u00e9mo", "a": "}{"}}',
        ),
        ('{"body": {"model": "own"}}', '{"body": {"model": "own"}}'),
        ('{"body": {"model": null}}', '{"body": {"model": null}}'),
        ('{"body": 7}', '{"body": 7}'),
    ],
)
def test_a_body_without_a_model_gets_one_and_keeps_all_else(
    tmp_path: Path, given: str, sent: str
) -> None:
    source = read_input(write(tmp_path / "in", given))
    assert written(source, "démo") == [[sent]]
    json.loads(sent)


def test_an_id_that_repeats_is_named_because_two_batches_would_not_notice(tmp_path: Path) -> None:
    path = write(tmp_path / "in", request_line("a"), "", request_line("a", EMBEDDINGS))
    with pytest.raises(UsageError, match=r"in:3: custom_id 'a' repeats line 1"):
        read_input(path)


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no request"):
        read_input(write(tmp_path / "in", ""))
    with pytest.raises(UsageError, match="can't be read"):
        read_input(tmp_path / "missing")


def test_a_line_that_no_server_takes_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_input, "_MAX_LINE_BYTES", 100)
    path = write(tmp_path / "in", request_line("a"), "x" * 101)
    with pytest.raises(UsageError, match="in:2: longer than 100 bytes"):
        read_input(path)

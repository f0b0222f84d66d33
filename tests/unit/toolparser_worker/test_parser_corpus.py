"""Replays the sample cases of the declared formats in every kind of cut."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.parsed_text import Parsed
from tests.formats.adapter import create

CORPUS = Path(__file__).parent / "corpus"
CASES = [
    json.loads(line)
    for path in sorted(CORPUS.glob("*.jsonl"))
    for line in path.read_text(encoding="utf-8").splitlines()
]
NOT_COPIED = {
    "tool.minicpm5/025-test_alias_get_line_details": "one benchmark's tool names, hard-coded",
}
"""Cases of tier 1 that are no part of any format."""
NAME_IS_OUT = "the name is out before the call breaks or the text ends, so it stays a call"
POLICY = {
    "tool.llama3_json/003-test_extract_tool_calls_invalid_json": NAME_IS_OUT,
    "tool.granite/006-test_malformed_input_False": NAME_IS_OUT,
    "tool.granite4/004-test_hermes_parser_non_streaming_tool_call_inval": NAME_IS_OUT,
    "tool.longcat/007-test_malformed_input_False": NAME_IS_OUT,
    "tool.minicpm5/012-test_incomplete_missing_function_end": NAME_IS_OUT,
    "tool.minicpm5/013-test_param_missing_name_invalid": "parameters without a name are left out",
    "tool.minicpm5/020-test_wrapped_arguments_still_validate_schema": (
        "arguments are not checked against the schema here"
    ),
    "tool.minimax/014-test_streaming_thinking_tag_buffering": (
        "what stands after <think> is looked at no more until </think> comes"
    ),
    "tool.qwen3_coder/057-test_qwen_xml_malformed_xml_nested_tool_calls": (
        "a call that begins inside another ends it"
    ),
}
"""Cases of tier 2 that another policy than ours is written for; `docs/formats.md` has ours."""


def cuts(case: dict[str, Any]) -> Iterator[list[str]]:
    text = case["text"]
    yield [text]
    yield list(text)
    for seed in range(6):
        generator = random.Random(f"{case['id']}/{seed}")
        sizes = (3, 4, 5, 6, 7) if seed == 5 else (1, 1, 2, 3, 5, 8, 13, 21, 40)
        pieces = []
        start = 0
        while start < len(text):
            size = generator.choice(sizes)
            pieces.append(text[start : start + size])
            start += size
        yield pieces


def replay(case: dict[str, Any], pieces: list[str]) -> Parsed:
    adapter = create(
        case["parser"],
        case["tools"],
        kind=case["kind"],
        reasoning=case["reasoning_parser"],
        options=case["options"],
    )
    parsed = Parsed()
    for piece in pieces:
        parsed.add(adapter.machine.feed(piece))
    parsed.add(adapter.machine.finish())
    parsed.num_malformed = adapter.machine.num_malformed
    return parsed


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_there_are_cases_of_every_kind() -> None:
    assert {case["kind"] for case in CASES} == {"tool", "reasoning", "combined"}
    assert len(CASES) > 1000


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case["tier"] == 1 and case["id"] not in NOT_COPIED],
    ids=lambda case: case["id"],
)
def test_a_sample_case_parses_as_expected_in_every_cut(case: dict[str, Any]) -> None:
    expected = case["expected"]
    for pieces in cuts(case):
        parsed = replay(case, pieces)
        content = [expected["content"], *expected.get("content_any", [])]
        reasoning = [expected["reasoning"], *expected.get("reasoning_any", [])]
        assert squeezed(parsed.content) in map(squeezed, content)
        assert squeezed(parsed.reasoning) in map(squeezed, reasoning)
        found = [
            {"name": call.name, "arguments": json.loads(call.arguments)} for call in parsed.calls
        ]
        assert found == expected["tool_calls"]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["tier"] == 2], ids=lambda case: case["id"]
)
def test_a_case_of_policy_keeps_its_calls_in_every_cut(case: dict[str, Any]) -> None:
    whole, *others = [replay(case, pieces) for pieces in cuts(case)]
    assert all(other == whole for other in others)
    if case["id"] not in POLICY:
        assert [call.name for call in whole.calls] == [
            call["name"] for call in case["expected"]["tool_calls"]
        ]

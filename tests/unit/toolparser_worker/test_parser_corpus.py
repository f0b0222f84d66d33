"""Replays the sample cases of the declared formats in every kind of cut."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.parsed_text import Parsed, parse
from toolparser_worker.formats import REASONING_FORMATS, TOOL_FORMATS

CORPUS = Path(__file__).parent / "corpus"
CASES = [
    json.loads(line)
    for path in sorted(CORPUS.glob("*.jsonl"))
    for line in path.read_text(encoding="utf-8").splitlines()
]
POLICY = {
    "tool.llama3_json/003-test_extract_tool_calls_invalid_json": (
        "the name is out before the arguments break, so they leave verbatim"
    ),
}
"""Cases of tier 2 that another policy than ours is written for."""


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
    tools = None if case["kind"] == "reasoning" else TOOL_FORMATS[case["parser"]]
    reasoning = {
        "tool": None,
        "reasoning": REASONING_FORMATS.get(case["parser"]),
        "combined": REASONING_FORMATS.get(case["reasoning_parser"]),
    }[case["kind"]]
    return parse(pieces, tools, reasoning)


def test_there_are_cases_of_every_kind() -> None:
    assert {case["kind"] for case in CASES} == {"tool", "reasoning", "combined"}
    assert len(CASES) > 100


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["tier"] == 1], ids=lambda case: case["id"]
)
def test_a_sample_case_parses_as_expected_in_every_cut(case: dict[str, Any]) -> None:
    expected = case["expected"]
    for pieces in cuts(case):
        parsed = replay(case, pieces)
        assert parsed.content in [expected["content"], *expected.get("content_any", [])]
        assert parsed.reasoning in [expected["reasoning"], *expected.get("reasoning_any", [])]
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
    if case["id"] in POLICY:
        assert whole.num_malformed == 1
    else:
        assert [call.name for call in whole.calls] == [
            call["name"] for call in case["expected"]["tool_calls"]
        ]

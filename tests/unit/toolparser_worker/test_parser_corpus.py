"""Replays the sample cases of the declared formats in every kind of cut."""

import json
from typing import Any

import pytest

from tests.fakes.loops import of_each
from tests.formats.table import CORPUS, NOT_COPIED, cuts, judge, main, replay

CASES = [
    json.loads(line)
    for path in sorted(CORPUS.glob("*.jsonl"))
    for line in path.read_text(encoding="utf-8").splitlines()
]
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


def test_there_are_cases_of_every_kind() -> None:
    assert {case["kind"] for case in CASES} == {"tool", "reasoning", "combined"}
    assert len(CASES) > 1000


def by_format(tier: int) -> dict[str, list[dict[str, Any]]]:
    """The cases of a tier by the format that their ids begin with."""
    found: dict[str, list[dict[str, Any]]] = {}
    for case in CASES:
        if case["tier"] == tier and case["id"] not in NOT_COPIED:
            found.setdefault(case["id"].partition("/")[0], []).append(case)
    return found


EXACT, OF_POLICY = by_format(1), by_format(2)


@of_each("name", EXACT)
def test_a_sample_case_parses_as_expected_in_every_cut(name: str) -> None:
    for case in EXACT[name]:
        for _, pieces in cuts(case):
            result, _ = replay(case, pieces)
            assert judge(case, result)[0] == [], (case["id"], pieces)


@of_each("name", OF_POLICY)
def test_a_case_of_policy_keeps_its_calls_in_every_cut(name: str) -> None:
    for case in OF_POLICY[name]:
        whole, *others = [replay(case, pieces)[0] for _, pieces in cuts(case)]
        assert all(other == whole for other in others), case["id"]
        if case["id"] not in POLICY:
            names = [call["name"] for call in case["expected"]["tool_calls"]]
            assert [call[0] for call in whole.calls] == names, case["id"]


def test_the_table_shows_each_format_and_fails_with_a_case(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["tool.hermes"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["tool.hermes", "8", "8", "0"]
    assert main(["no.such.format"]) == 1

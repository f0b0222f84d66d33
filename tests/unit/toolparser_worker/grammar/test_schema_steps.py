"""Short schemas whose grammar has no end are refused, and long ones that end are not."""

from typing import Any

import pytest

from toolparser_worker.errors import UnsupportedToolsError
from toolparser_worker.formats import find_tool_format
from toolparser_worker.grammar.request import Wish, request_grammar
from toolparser_worker.schema_check import check_parameters

TAKEN_APART = ("qwen3_coder", "glm45", "gemma4", "minimax_m3", "pythonic", "deepseek_v32")
"""Formats that spell values otherwise than JSON, so that schemas are taken apart."""


def doubled(depth: int, keyword: str) -> dict[str, Any]:
    """Parameters whose definitions each refer twice to the one before."""
    definitions: dict[str, Any] = {"d0": {"type": "integer", "minimum": 0}}
    for number in range(1, depth + 1):
        before = {"$ref": f"#/$defs/d{number - 1}"}
        definitions[f"d{number}"] = {keyword: [before, dict(before)]}
    top = {"$ref": f"#/$defs/d{depth}"}
    return {"type": "object", "properties": {"x": top}, "$defs": definitions}


def enforced(tool: str, *parameters: dict[str, Any]) -> str:
    for one in parameters:
        check_parameters(one)
    tools = [
        {"type": "function", "function": {"name": f"f{number}", "parameters": one}}
        for number, one in enumerate(parameters)
    ]
    grammar = request_grammar(
        find_tool_format(tool), None, Wish(tools=tools, tool_choice="required")
    )
    assert grammar is not None
    return grammar.source


@pytest.mark.parametrize("tool", TAKEN_APART)
def test_what_doubles_with_each_reference_is_refused(tool: str) -> None:
    with pytest.raises(UnsupportedToolsError, match="'f0'.*more than 20000 steps"):
        enforced(tool, doubled(14, "allOf"))
    assert enforced(tool, doubled(6, "allOf"))


def test_many_tools_together_take_no_more_steps_than_one() -> None:
    with pytest.raises(UnsupportedToolsError, match="more than 20000 steps"):
        enforced("qwen3_coder", *(doubled(10, "allOf") for _ in range(40)))


def test_alternatives_without_end_are_refused_before_they_are_compared() -> None:
    def one_of(num: int) -> dict[str, Any]:
        named = [{"const": f"v{number}", "title": str(number)} for number in range(num)]
        return {"type": "object", "properties": {"x": {"oneOf": named}}}

    assert '"v99"' in enforced("qwen3_coder", one_of(100), one_of(100), one_of(100))
    with pytest.raises(UnsupportedToolsError, match="more than 20000 steps"):
        enforced("qwen3_coder", one_of(1000))


def test_definitions_that_every_parameter_repeats_are_not_written_without_end() -> None:
    definitions = {f"d{number}": {"type": "integer"} for number in range(500)}
    members = {f"p{number}": {"$ref": f"#/$defs/d{number}"} for number in range(3)}
    parameters = {
        "type": "object",
        "properties": {
            f"x{number}": {"type": "object", "properties": members} for number in range(100)
        },
        "$defs": definitions,
    }
    with pytest.raises(UnsupportedToolsError, match="longer than"):
        enforced("qwen3_coder", parameters)

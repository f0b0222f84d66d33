"""What is asked of a tool's schema for each value of a call is found out once for each schema."""

import json
from typing import Any

import pytest

from tests.fakes.parsed_text import new_machine
from toolparser_worker.formats import find_tool_format
from toolparser_worker.machine import coercion, tool_schemas
from toolparser_worker.machine.coercion import coerced, schema_types
from toolparser_worker.machine.render import render_calls
from toolparser_worker.machine.tool_schemas import (
    MAX_ALTERNATIVES,
    SchemaNode,
    ToolSchemas,
    alternatives,
)

NUM_ITEMS = 50
VALUES = [1] * 1000
FORMATS = ("qwen3_coder", "gemma4", "minimax_m3", "glm45")


def schemas(parameters: dict[str, Any]) -> ToolSchemas:
    return ToolSchemas([{"function": {"name": "f", "parameters": parameters}}])


@pytest.fixture
def num_looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One for each value of an enum whose type was asked for, and each search of alternatives."""
    found: list[int] = []
    type_of, search = coercion._type_of, tool_schemas._alternatives

    def counted_type(value: object) -> str:
        found.append(1)
        return type_of(value)

    def counted_search(schema: Any) -> Any:
        found.append(1)
        return search(schema)

    monkeypatch.setattr(coercion, "_type_of", counted_type)
    monkeypatch.setattr(tool_schemas, "_alternatives", counted_search)
    return found


@pytest.mark.parametrize("tool", FORMATS)
def test_items_without_end_ask_a_long_enum_once(tool: str, num_looked_at: list[int]) -> None:
    tool_format = find_tool_format(tool)
    assert tool_format is not None
    item = {"anyOf": [{"enum": VALUES}, {"type": "object", "properties": {"y": {"enum": VALUES}}}]}
    known = schemas({"type": "object", "properties": {"x": {"type": "array", "items": item}}})
    arguments = json.dumps({"x": [1, {"y": 1}] * NUM_ITEMS})
    text = render_calls(tool_format, [("f", arguments)])
    machine = new_machine(tool_format, None, tools=known)
    machine.feed(text)
    machine.finish()
    assert len(num_looked_at) < 2 * len(VALUES) + 100


def test_parameters_without_end_ask_a_shared_enum_once(num_looked_at: list[int]) -> None:
    names = [f"p{number}" for number in range(NUM_ITEMS)]
    known = schemas(
        {
            "properties": {name: {"$ref": "#/$defs/one"} for name in names},
            "$defs": {"one": {"enum": VALUES}},
        }
    )
    for name in names:
        assert coerced("1", known.parameter("f", name)) == "1"
    assert len(num_looked_at) < len(VALUES) + 100


def test_alternatives_of_alternatives_are_bounded() -> None:
    many = [{"type": "integer", "minimum": number} for number in range(5000)]
    wide = {"anyOf": [*many[:10], {"anyOf": many[10:]}, *({"title": str(one)} for one in many)]}
    for schema in (wide, schemas({"properties": {"x": wide}}).parameter("f", "x")):
        assert schema is not None
        assert len(alternatives(schema)) == MAX_ALTERNATIVES
        assert schema_types(schema) == {"integer"}


def test_a_schema_of_any_depth_is_linked() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(5000):
        deep = {"items": [{"properties": {"x": deep}}]}
    found = schemas({"properties": {"x": deep}}).parameter("f", "x")
    assert isinstance(found, SchemaNode)

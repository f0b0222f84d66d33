"""Which tools are refused before any text is parsed, and with which words."""

import json
from typing import Any

import pytest

from toolparser_worker.errors import InvalidToolsError
from toolparser_worker.machine.tool_schemas import ToolSchemas
from toolparser_worker.schema_check import MAX_SCHEMA_DEPTH, SchemaError, check_parameters
from toolparser_worker.tools import ToolsTable

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": ["string", "null"], "minLength": 1, "pattern": "^[A-Z]"},
        "days": {"type": "integer", "minimum": 0, "exclusiveMaximum": 8, "multipleOf": 1},
        "unit": {"enum": ["C", "F"], "description": "Of the answer."},
        "places": {"type": "array", "items": {"$ref": "#/$defs/place"}, "uniqueItems": True},
        "any": True,
        "type": {"type": "string"},
        "required": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"place": {"prefixItems": [{}, {"$anchor": "x"}], "items": False}},
    "x-anything": [1],
}


def tools(*functions: dict[str, Any]) -> str:
    return json.dumps([{"type": "function", "function": function} for function in functions])


def test_schemas_of_every_keyword_pass() -> None:
    check_parameters(WEATHER)
    check_parameters({})
    ToolsTable().acquire(tools({"name": "f", "parameters": WEATHER}, {"name": "g"}))


@pytest.mark.parametrize(
    ("schema", "place", "reason"),
    [
        ({"type": "string"}, "type", "must be 'object'"),
        ({"properties": []}, "properties", "must be an object"),
        ({"properties": {"a": 1}}, "properties.a", "must be a schema"),
        ({"properties": {"a": {"type": "strin"}}}, "properties.a.type", "'strin'"),
        ({"properties": {"a": {"type": []}}}, "properties.a.type", "an empty list"),
        ({"properties": {"a": {"type": ["null", 5]}}}, "properties.a.type", "is 5"),
        ({"properties": {"a": {"anyOf": []}}}, "properties.a.anyOf", "at least one schema"),
        ({"properties": {"a": {"oneOf": [{}, 3]}}}, "properties.a.oneOf.1", "must be a schema"),
        ({"properties": {"a": {"items": "x"}}}, "properties.a.items", "must be a schema"),
        ({"properties": {"a": {"items": []}}}, "properties.a.items", "at least one schema"),
        ({"additionalProperties": None}, "additionalProperties", "must be a schema"),
        ({"required": True}, "required", "list of names"),
        ({"required": [1]}, "required", "list of names"),
        ({"properties": {"a": {"enum": []}}}, "properties.a.enum", "at least one value"),
        ({"properties": {"a": {"pattern": 1}}}, "properties.a.pattern", "must be a string"),
        ({"properties": {"a": {"minimum": "1"}}}, "properties.a.minimum", "must be a number"),
        ({"properties": {"a": {"minimum": True}}}, "properties.a.minimum", "must be a number"),
        ({"properties": {"a": {"multipleOf": 0}}}, "properties.a.multipleOf", "more than 0"),
        ({"properties": {"a": {"maxItems": -1}}}, "properties.a.maxItems", "not negative"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "properties.a.$ref", "points to nothing"),
        ({"properties": {"a": {"$ref": "http://x/y"}}}, "properties.a.$ref", "not fetched"),
        (
            {"properties": {"a": {"$ref": "#/x/foo"}}, "x": {"foo": {"anyOf": 7}}},
            "x.foo.anyOf",
            "list",
        ),
        ({"$ref": "#/x/0", "x": [{"minItems": "abc"}]}, "x.0.minItems", "must be an integer"),
        ({"$ref": "#/title", "title": "t"}, "title", "must be a schema"),
        ({"$ref": "#/x/a", "x": {"a": {"$ref": "#/y"}}, "y": 5}, "y", "must be a schema"),
        ({"$ref": "#/x/" + "9" * 5000, "x": [{}]}, "$ref", "points to nothing"),
    ],
)
def test_what_is_no_schema_is_named(schema: dict[str, Any], place: str, reason: str) -> None:
    with pytest.raises(SchemaError) as caught:
        check_parameters(schema)
    assert f"`{place}`" in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"description": None, "title": None, "$comment": ["a", "b"]},
        {"minimum": 0, "exclusiveMinimum": True, "maximum": 9, "exclusiveMaximum": False},
        {"minLength": 1.0, "maxItems": 2.0},
    ],
)
def test_what_other_clients_send_of_a_schema_is_fine(schema: dict[str, Any]) -> None:
    """Annotations that are null, limits as in draft 4 and OpenAPI 3.0, sizes written as floats."""
    check_parameters({"properties": {"a": schema}})


@pytest.mark.parametrize("size", [1.5, True, float("inf"), -1.0])
def test_a_size_is_a_whole_number(size: float) -> None:
    with pytest.raises(SchemaError, match="must be an integer"):
        check_parameters({"properties": {"a": {"maxLength": size}}})


def test_references_are_followed_as_json_pointers() -> None:
    check_parameters({"$ref": "#/x/a~1b%20~0", "x": {"a/b ~": {}}})
    schemas = ToolSchemas(
        [
            {
                "function": {
                    "name": "f",
                    "parameters": {
                        "properties": {"a": {"$ref": "#/$defs/a~1b"}, "c": {"$ref": "#anchor"}},
                        "$defs": {"a/b": {"type": "integer"}},
                    },
                }
            }
        ]
    )
    assert schemas.parameter("f", "a") == {"type": "integer"}
    assert schemas.parameter("f", "c") == {}


def test_the_error_names_the_tool_and_its_parameter() -> None:
    wrong = tools({"name": "fine"}, {"name": "get_weather", "parameters": {"required": "city"}})
    with pytest.raises(InvalidToolsError, match="'get_weather'") as caught:
        ToolsTable().acquire(wrong)
    assert caught.value.param == "tools[1].function.parameters"


@pytest.mark.parametrize(
    "parameters",
    [
        '{"properties": ' + '{"a": {"properties": ' * 10_000 + "{}" + "}}" * 10_000 + "}",
        "[" * 10_000,
        '"text"',
    ],
)
def test_tools_that_nest_too_deep_are_refused(parameters: str) -> None:
    text = f'[{{"function": {{"name": "f", "parameters": {parameters}}}}}]'
    with pytest.raises(InvalidToolsError) as caught:
        ToolsTable().acquire(text)
    assert len(caught.value.message) < 500


def test_the_deepest_schema_that_passes() -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {"not": nested(depth - 1)} if depth else {}

    check_parameters(nested(MAX_SCHEMA_DEPTH))
    with pytest.raises(SchemaError, match="nests more"):
        check_parameters(nested(MAX_SCHEMA_DEPTH + 1))


def test_the_same_tools_are_held_once() -> None:
    table = ToolsTable()
    text = tools({"name": "f", "parameters": WEATHER})
    one, other = table.acquire(text), table.acquire(text)
    assert one is other
    table.release(one)
    assert len(table) == 1
    table.release(other)
    assert len(table) == 0


def test_lone_surrogates_in_tools_are_no_obstacle() -> None:
    text = '[{"function": {"name": "f", "description": "\ud800"}}]'
    assert ToolsTable().acquire(text).names == ("f",)

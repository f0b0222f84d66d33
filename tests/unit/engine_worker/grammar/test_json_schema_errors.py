"""Schemas that are refused: nothing is valid under them, or they are none."""

import json
from typing import Any

import pytest

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.json_schema.compiler import schema_rules
from engine_worker.grammar.json_schema.keywords import TREATMENTS


@pytest.mark.parametrize(
    "schema",
    [
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {
                    "required": ["a"],
                    "type": "object",
                    "properties": {"a": {"$ref": "#/$defs/a"}},
                }
            },
        },
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "string", "enum": [1]},
        {"allOf": [{"type": "string"}, {"type": "null"}]},
        {"not": {}},
        {"type": "object", "minProperties": 1, "maxProperties": 0},
        {"type": "object", "not": {"const": {}}, "maxProperties": 0},
        {"type": "integer", "minimum": 1, "maximum": 1, "not": {"const": 1}},
        {"type": "string", "pattern": "^a", "format": "date"},
        {"type": "integer", "multipleOf": 3, "minimum": 1, "maximum": 2},
        {"type": "object", "properties": {"a": {}}, "minProperties": 3, "maxProperties": 2},
        {
            "type": "object",
            "required": ["abc"],
            "patternProperties": {"^\\p{Lu}+$": True},
            "additionalProperties": False,
        },
        False,
    ],
)
def test_a_schema_that_nothing_satisfies_is_refused(schema: Any) -> None:
    with pytest.raises(UnsupportedGrammarError, match="no value is valid"):
        schema_rules(json.dumps(schema))


NO_SCHEMAS: list[tuple[Any, str]] = [
    ({"not": 5}, "/not: a schema is an object"),
    ({"if": 5, "then": {}}, "/if: a schema is"),
    ({"if": {}, "then": [1]}, "/then: a schema is"),
    ({"not": {"type": {"a": 1}}}, "/not/type: there is no type"),
    ({"not": {"type": [{"a": 1}]}}, "/not/type: there is no type"),
    ({"not": {"required": [{}]}}, "/not/required: it is a list of names"),
    ({"not": {"enum": 3}}, "/not/enum: it is a list of values"),
    ({"not": {"properties": {"a": 5}}}, "/not/properties/a: a schema is"),
    ({"not": {"minimum": "1"}}, "/not/minimum: it is a number"),
    ({"anyOf": [{}, "x"]}, "/anyOf/1: a schema is"),
    ({"anyOf": {"a": {}}}, "/anyOf: it is a list of schemas"),
    ({"oneOf": [{"anyOf": 7}, {"type": "null"}]}, "/oneOf/0/anyOf: it is a list of schemas"),
    ({"allOf": [None]}, "/allOf/0: a schema is"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"items": 5}}}, "/$defs/a/items: a schema is"),
    ({"$ref": "#/$defs/a", "$defs": {"a": []}}, "refers to no schema"),
    ({"$ref": "#/allOf/²", "allOf": [{}]}, "goes nowhere"),
    ({"$ref": f"#/allOf/{'0' * 5000}", "allOf": [{}]}, "goes nowhere"),
    ({"$ref": 5}, "/$ref: it is a string"),
    ({"$dynamicRef": {}}, "/$dynamicRef: it is a string"),
    ({"$id": "http://[bad", "$ref": "x"}, "/$id: 'http://[bad' is no address"),
    ({"$ref": "http://[bad"}, "/$ref: 'http://[bad' is no address"),
    ({"properties": {"a": {"$id": 1}}}, "/properties/a/$id: it is a string"),
    ({"properties": [1]}, "/properties: it is an object"),
    ({"patternProperties": {"^a": 1}}, "/patternProperties/^a: a schema is"),
    ({"propertyNames": "a"}, "/propertyNames: a schema is"),
    ({"additionalProperties": "no"}, "/additionalProperties: a schema is"),
    ({"unevaluatedProperties": 1}, "/unevaluatedProperties: a schema is"),
    ({"unevaluatedItems": 1}, "/unevaluatedItems: a schema is"),
    ({"dependentRequired": {"a": "b"}}, "/dependentRequired/a: it is a list of names"),
    ({"dependentSchemas": {"a": ["b"]}}, "/dependentSchemas/a: a schema is"),
    ({"dependencies": {"a": [1]}}, "/dependencies/a: it is a list of names"),
    ({"dependencies": {"a": "b"}}, "/dependencies/a: a schema is"),
    ({"items": [{}, 1]}, "/items/1: a schema is"),
    ({"prefixItems": {}}, "/prefixItems: it is a list of schemas"),
    ({"prefixItems": [{}], "items": [{}], "additionalItems": 3}, "/additionalItems: a schema is"),
    ({"contains": 1}, "/contains: a schema is"),
    ({"minContains": -1}, "/minContains: it is an integer from 0 on"),
    ({"maxContains": "1"}, "/maxContains: it is an integer from 0 on"),
    ({"minItems": "abc"}, "/minItems: it is an integer from 0 on"),
    ({"maxItems": 1.5}, "/maxItems: it is an integer from 0 on"),
    ({"minLength": True}, "/minLength: it is an integer from 0 on"),
    ({"maxLength": None}, "/maxLength: it is an integer from 0 on"),
    ({"minProperties": []}, "/minProperties: it is an integer from 0 on"),
    ({"maxProperties": {}}, "/maxProperties: it is an integer from 0 on"),
    ({"uniqueItems": "yes"}, "/uniqueItems: it is true or false"),
    ({"pattern": 5}, "/pattern: it is a string"),
    ({"format": ["date"]}, "/format: it is a string"),
    ({"enum": "ab"}, "/enum: it is a list of values"),
    ({"required": "a"}, "/required: it is a list of names"),
    ({"exclusiveMinimum": "1"}, "/exclusiveMinimum: it is a number"),
    ({"exclusiveMaximum": []}, "/exclusiveMaximum: it is a number"),
    ({"maximum": True}, "/maximum: it is a number"),
    ({"multipleOf": 0}, "/multipleOf: it is above 0"),
    ({"multipleOf": "2"}, "/multipleOf: it is a number"),
    ({"properties": {"\ud800": {"type": 5}}}, "/properties/\\ud800/type: there is no type"),
]


@pytest.mark.parametrize(("schema", "reason"), NO_SCHEMAS)
def test_what_is_no_schema_is_refused_with_its_place_and_what_belongs_there(
    schema: Any, reason: str
) -> None:
    with pytest.raises(UnsupportedGrammarError) as caught:
        schema_rules(json.dumps(schema))
    assert reason in caught.value.message
    assert caught.value.message.encode()


def test_keywords_that_make_values_invalid_have_a_type_and_a_test_for_it() -> None:
    tried = json.dumps(NO_SCHEMAS)
    for keyword, treatment in TREATMENTS.items():
        if treatment != "annotation" and keyword not in ("const", "$recursiveRef", "else"):
            assert f'"{keyword}":' in tried, keyword

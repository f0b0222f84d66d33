"""Schemas held by their rules: each keyword as docs/structured-outputs.md tells it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.json_schema.compiler import schema_rules
from engine_worker.grammar.json_schema.keywords import TREATMENTS
from engine_worker.grammar.limits import parser_limits
from engine_worker.grammar.vocabulary import GrammarVocabulary
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

PAGE = Path(__file__).parents[4] / "docs" / "structured-outputs.md"
TOKENIZER = byte_level_tokenizer()
VOCABULARY = GrammarVocabulary(TOKENIZER, TOKENIZER.num_tokens)
_KNOWN: dict[str, tuple[LLMatcher, tuple[str, ...]]] = {}


def compiled(schema: Any) -> tuple[LLMatcher, tuple[str, ...]]:
    """A matcher at its beginning, and what is left to the model."""
    source = schema if isinstance(schema, str) else json.dumps(schema)
    if source not in _KNOWN:
        rules = schema_rules(source)
        matcher = LLMatcher(
            VOCABULARY.ll_tokenizer, rules.lark, log_level=0, limits=parser_limits()
        )
        assert not matcher.is_error(), matcher.get_error()
        _KNOWN[source] = matcher, rules.unenforced
    return _KNOWN[source]


def holds(schema: Any, text: str) -> bool:
    """Whether a text is a sentence of the schema, token by token."""
    matcher = compiled(schema)[0].deep_copy()
    token_ids = list(text.encode())
    return bool(matcher.try_consume_tokens(token_ids) == len(token_ids)) and matcher.is_accepting()


def unenforced(schema: Any) -> tuple[str, ...]:
    return compiled(schema)[1]


A, B = {"required": ["a"]}, {"required": ["b"]}
OPEN: dict[str, Any] = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
TREE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "n": {"$ref": "#"}},
    "required": ["v"],
    "additionalProperties": False,
}
ENFORCED: list[tuple[str, Any, list[str], list[str]]] = [
    ("$ref", TREE, ['{"v": 1, "n": {"v": 2}}'], ['{"v": 1, "n": {}}', '{"v": "x"}']),
    ("$ref", {"$ref": "#/$defs/größe", "$defs": {"größe": {"const": 1}}}, ["1"], ["2"]),
    ("$ref", {"$ref": "#x", "$defs": {"y": {"$anchor": "x", "const": 1}}}, ["1"], ["2"]),
    (
        "$ref",
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "$ref": "#/definitions/n",
            "maximum": 0,
            "definitions": {"n": {"type": "integer"}},
        },
        ["7"],
        ['"x"'],
    ),
    ("$ref", {"$ref": "#/$defs/n", "maximum": 0, "$defs": {"n": {}}}, ["0", '"x"'], ["7"]),
    ("type", {"type": ["integer", "null"]}, ["-5", "null"], ["1.5", "true", '"1"']),
    ("type", {"type": "number"}, ["1.5e3", "-0.1"], ["01", "null"]),
    ("enum", {"enum": ["a", 1, None, {"x": [1]}]}, ['"a"', "1", "null", '{"x": [1]}'], ["2"]),
    ("enum", {"type": "string", "enum": ["a", 1], "maxLength": 1}, ['"a"'], ["1"]),
    (
        "enum",
        {"enum": ["2020", "x"], "pattern": "^(?<year>[0-9]{4})$"},
        ['"2020"'],
        ['"x"'],
    ),
    (
        "enum",
        {"enum": ["A\u00a0", "a\u00a0"], "pattern": "^\\p{Lu}\\s$"},
        ['"A\u00a0"'],
        ['"a\u00a0"'],
    ),
    ("enum", {"enum": ["ab", "b", "aab"], "pattern": "^(?=a)(.)?b$"}, ['"ab"'], ['"b"', '"aab"']),
    ("enum", {"enum": ["abc", "2020-01-01"], "format": "date"}, ['"2020-01-01"'], ['"abc"']),
    ("enum", {"enum": ["a@b.org", "a"], "format": "email"}, ['"a@b.org"'], ['"a"']),
    (
        "enum",
        {"enum": [10**20, 10**20 + 1, 3], "multipleOf": 10},
        [f"{10**20}"],
        [f"{10**20 + 1}", "3"],
    ),
    ("const", {"const": 'a\n"ü'}, ['"a\\n\\"ü"'], ['"a"']),
    ("const", {"const": 1.0}, ["1.0", "1"], ["1.5", "10"]),
    (
        "allOf",
        {"properties": {"z": {}}, "allOf": [{"properties": {"a": {"const": 1}}}, A]},
        ['{"z": 0, "a": 1}'],
        ['{"z": 0}', '{"a": 2}'],
    ),
    ("anyOf", {**OPEN, "anyOf": [A, B]}, ['{"a": 1}', '{"b": 1}'], ["{}", '{"c": 1}']),
    (
        "properties",
        OPEN,
        ['{"a": 1, "b": 2}', "{}", '{"c": "x"}'],
        ['{"a": "x"}', '{"c": 1, "a": "x"}'],
    ),
    ("required", {"required": ["a", "b"]}, ['{"a": 1, "b": null}'], ['{"a": 1}']),
    (
        "additionalProperties",
        {"properties": {"a": {}}, "additionalProperties": {"type": "integer"}},
        ['{"a": "x", "q": 1}'],
        ['{"q": "x"}'],
    ),
    (
        "additionalProperties",
        {"type": "object", "additionalProperties": False},
        ["{}"],
        ['{"a": 1}'],
    ),
    (
        "dependentRequired",
        {**OPEN, "dependentRequired": {"a": ["b"]}},
        ['{"a": 1, "b": 2}', '{"b": 2}', "{}"],
        ['{"a": 1}'],
    ),
    (
        "items",
        {"type": "array", "items": {"type": "integer"}},
        ["[]", "[1, 2]"],
        ['["x"]', "[1,2]"],
    ),
    (
        "prefixItems",
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False},
        ["[]", "[1]", "[1, 2]"],
        ["[2]", "[1, 2, 3]"],
    ),
    (
        "additionalItems",
        {"type": "array", "items": [{"const": 1}], "additionalItems": {"const": 2}},
        ["[1]", "[1, 2, 2]"],
        ["[1, 1]"],
    ),
    ("minItems", {"type": "array", "minItems": 2.0}, ["[1, 2]"], ["[1]", "[]"]),
    ("maxItems", {"type": "array", "items": {}, "maxItems": 1}, ["[]", "[1]"], ["[1, 2]"]),
    ("minLength", {"type": "string", "minLength": 2}, ['"üü"'], ['"ü"']),
    ("maxLength", {"type": "string", "maxLength": 1}, ['"ü"', '""'], ['"üü"']),
    (
        "minimum",
        {"type": "integer", "minimum": -9223372036854775808},
        ["-9223372036854775808", "99999999999999999999"],
        ["-9223372036854775809"],
    ),
    ("minimum", {"type": "number", "minimum": 0.25}, ["0.25", "0.3", "1", "10.0"], ["0.249", "-1"]),
    ("minimum", {"type": "number", "minimum": 1, "exclusiveMinimum": True}, ["1.1"], ["1", "1.0"]),
    (
        "maximum",
        {"type": "integer", "maximum": 18446744073709551615},
        ["18446744073709551615", "-7"],
        ["18446744073709551616"],
    ),
    (
        "maximum",
        {"type": "number", "minimum": -1e38, "maximum": 1e38},
        ["1" + "0" * 38],
        ["2" + "0" * 38],
    ),
    ("exclusiveMinimum", {"type": "integer", "exclusiveMinimum": 9}, ["10", "100"], ["9", "0"]),
    (
        "exclusiveMinimum",
        {"type": "integer", "exclusiveMinimum": 10**40},
        [f"{10**40 + 1}"],
        [f"{10**40}"],
    ),
    (
        "minimum",
        {"type": "integer", "minimum": -(10**40) - 7},
        [f"{-(10**40) - 7}"],
        [f"{-(10**40) - 8}"],
    ),
    (
        "exclusiveMaximum",
        {"type": "number", "exclusiveMaximum": 0.5},
        ["0.49", "-3"],
        ["0.5", "0.50"],
    ),
    (
        "oneOf",
        {
            "oneOf": [
                {"type": "object", "properties": {"k": {"const": "x"}}, "required": ["k"]},
                {"type": "string"},
            ]
        },
        ['{"k": "x"}', '"s"'],
        ["1", '{"k": "y"}'],
    ),
    (
        "oneOf",
        {**OPEN, "type": "object", "oneOf": [A, B]},
        ['{"a": 1}', '{"b": 1}'],
        ['{"a": 1, "b": 2}', "{}"],
    ),
    (
        "oneOf",
        {"oneOf": [{"type": "integer", "minimum": 2}, {"type": "integer", "maximum": 4}]},
        ["1", "5"],
        ["3"],
    ),
    (
        "oneOf",
        {"oneOf": [{"type": "number", "minimum": 0}, {"enum": [1.5, "x"]}]},
        ['"x"', "1.6"],
        ["1.5", "1.50"],
    ),
    ("not", {"not": {"type": ["string", "null"]}}, ["1", "[]"], ['"x"', "null"]),
    ("not", {"type": "string", "not": {"const": "no"}}, ['"yes"', '"n"'], ['"no"']),
    ("not", {"type": "string", "not": {"const": ""}, "pattern": "^a*$"}, ['"a"'], ['""']),
    ("not", {"type": "integer", "not": {"enum": [1, 2]}}, ["3", "12"], ["1", "2"]),
    ("not", {"type": "number", "not": {"const": 5.5}}, ["5.51", "5"], ["5.5", "5.50", "5.500"]),
    ("not", {"type": "integer", "not": {"const": 0}}, ["10", "-1"], ["0", "-0"]),
    ("not", {"type": "number", "not": {"const": 0.0}}, ["0.1"], ["0", "-0", "0.0", "-0.00"]),
    (
        "not",
        {"type": "number", "not": {"enum": [1e-7, 1.0]}},
        ["0.0000002", "10"],
        ["0.0000001", "0.00000010", "1e-7", "1", "1.00"],
    ),
    (
        "not",
        {"type": "number", "minimum": 1, "not": {"enum": [25]}},
        ["25.1", "250"],
        ["25", "25.0", "25.00"],
    ),
    (
        "not",
        {**OPEN, "type": "object", "not": {"required": ["a", "b"]}},
        ['{"a": 1}', "{}"],
        ['{"a": 1, "b": 1}'],
    ),
    (
        "if",
        {
            "properties": {"k": {"enum": ["x", "y"]}, "v": {}},
            "required": ["k"],
            "if": {"properties": {"k": {"const": "x"}}},
            "then": {"required": ["v"]},
            "else": {"properties": {"v": False}},
        },
        ['{"k": "x", "v": 1}', '{"k": "y"}'],
        ['{"k": "x"}', '{"k": "y", "v": 1}'],
    ),
    ("then", {"if": {"type": "integer"}, "then": {"minimum": 5}}, ["5", '"x"'], ["4"]),
    ("else", {"if": {"type": "string"}, "else": {"const": 1}}, ['"x"', "1"], ["2"]),
    (
        "patternProperties",
        {"patternProperties": {"^x|y$": {"const": 1}}, "additionalProperties": {"const": 2}},
        ['{"xa": 1, "ay": 1, "b": 2}'],
        ['{"xa": 2}', '{"b": 1}'],
    ),
    (
        "patternProperties",
        {
            "properties": {"abc": {"type": "string"}, "ABC": {}},
            "patternProperties": {"^\\p{Lu}+$": {"type": "integer"}},
        },
        ['{"abc": "x", "ABC": 1}'],
        ['{"ABC": "x"}'],
    ),
    (
        "propertyNames",
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}},
        ['{"ab": 1}'],
        ['{"A": 1}'],
    ),
    (
        "propertyNames",
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}},
        ['{"a": 1, "b": 1}'],
        ['{"c": 1}'],
    ),
    (
        "propertyNames",
        {"type": "object", "propertyNames": {"maxLength": 2}},
        ['{"ab": 1}'],
        ['{"abc": 1}'],
    ),
    (
        "propertyNames",
        {
            "type": "object",
            "allOf": [
                {"propertyNames": {"enum": ["a", "B", "a"]}},
                {"propertyNames": {"pattern": "^[a-z]$"}},
                {"propertyNames": {"anyOf": [{"const": "a"}, {"const": "c"}]}},
            ],
            "patternProperties": {"^a(?!x)": {"type": "integer"}},
        },
        ['{"a": 1}', "{}"],
        ['{"B": 1}', '{"c": 1}', '{"a": "x"}', '{"a": 1, "a": 1}'],
    ),
    (
        "minProperties",
        {**OPEN, "type": "object", "minProperties": 1, "additionalProperties": False},
        ['{"b": 1}'],
        ["{}"],
    ),
    (
        "maxProperties",
        {**OPEN, "type": "object", "maxProperties": 1},
        ["{}", '{"a": 1}', '{"c": 1}'],
        ['{"a": 1, "b": 1}', '{"a": 1, "c": 1}'],
    ),
    (
        "dependentSchemas",
        {**OPEN, "type": "object", "dependentSchemas": {"a": {"required": ["b"]}}},
        ['{"a": 1, "b": 1}', '{"b": 1}'],
        ['{"a": 1}'],
    ),
    (
        "dependencies",
        {**OPEN, "type": "object", "dependencies": {"a": ["b"]}},
        ['{"b": 1}'],
        ['{"a": 1}'],
    ),
    (
        "uniqueItems",
        {"type": "array", "items": {"enum": ["a", "b", 1]}, "uniqueItems": True, "minItems": 1},
        ['["b", "a", 1]', '["a"]'],
        ['["a", "a"]', "[]"],
    ),
    ("contains", {"type": "array", "contains": {"const": 1}}, ["[1]", "[0, 1, 2]"], ["[]", "[0]"]),
    (
        "minContains",
        {"type": "array", "contains": {"const": 1}, "minContains": 2},
        ["[1, 0, 1]"],
        ["[1]"],
    ),
    ("pattern", {"type": "string", "pattern": "^a+b"}, ['"aab"', '"ab\\n"'], ['"b"', '"xab"']),
    (
        "format",
        {"type": "string", "format": "date"},
        ['"2024-02-29"'],
        ['"2023-02-29"', '"2024-13-01"'],
    ),
    (
        "format",
        {"type": "string", "format": "time"},
        ['"23:59:60Z"'],
        ['"12:00:60Z"', '"12:00:00"'],
    ),
    (
        "format",
        {"type": "string", "format": "ipv6"},
        ['"::ffff:1.2.3.4"', '"1::"'],
        ['"1::2::3"', '"::300.1.1.1"'],
    ),
    (
        "format",
        {"type": "string", "format": "hostname"},
        ['"a-b.example"'],
        ['"xn--x"', '"-a"', f'"{"a." * 127}aa"'],
    ),
    (
        "format",
        {"type": "string", "format": "uuid"},
        [f'"{"0" * 8}-0000-4000-8000-{"0" * 12}"'],
        ['"0"'],
    ),
    ("multipleOf", {"type": "integer", "multipleOf": 3, "minimum": 10}, ["12", "300"], ["9", "13"]),
    ("multipleOf", {"type": "number", "multipleOf": 0.01}, ["0.25", "3"], ["0.251"]),
    (
        "unevaluatedProperties",
        {"allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False, "type": "object"},
        ['{"a": 1}'],
        ['{"b": 1}'],
    ),
    (
        "unevaluatedItems",
        {"type": "array", "allOf": [{"prefixItems": [{}]}], "unevaluatedItems": False},
        ["[1]"],
        ["[1, 2]"],
    ),
    (
        "unevaluatedProperties",
        {
            "type": "object",
            "allOf": [
                {"$ref": "#/$defs/b"},
                {"$ref": "#/$defs/b", "unevaluatedProperties": False},
            ],
            "$defs": {"b": {"allOf": [{"properties": {"a": {"type": "integer"}}}]}},
        },
        ['{"a": 1}', "{}"],
        ['{"b": 1}', '{"a": "x"}'],
    ),
    (
        "unevaluatedProperties",  # what an inner one describes is described, read before or after
        {
            "type": "object",
            "allOf": [
                {"$ref": "#/$defs/inner"},
                {"allOf": [{"$ref": "#/$defs/inner"}], "unevaluatedProperties": False},
            ],
            "$defs": {"inner": {"unevaluatedProperties": {"type": "integer"}}},
        },
        ['{"a": 1}'],
        ['{"a": "x"}'],
    ),
    (
        "unevaluatedItems",
        {"type": "array", "allOf": [{"unevaluatedItems": True}], "unevaluatedItems": False},
        ["[1]", "[]"],
        ["1"],
    ),
    (
        "unevaluatedItems",
        {
            "type": "array",
            "allOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/b", "unevaluatedItems": False}],
            "$defs": {"b": {"prefixItems": [{"type": "integer"}]}},
        },
        ["[1]"],
        ["[1, 2]"],
    ),
    (
        "$dynamicRef",
        {"$defs": {"n": {"$dynamicAnchor": "n", "const": 1}}, "$dynamicRef": "#n"},
        ["1"],
        ["2"],
    ),
    (
        "$recursiveRef",
        {**TREE, "properties": {"v": {}, "n": {"$recursiveRef": "#"}}},
        ['{"v": 1, "n": {"v": 1}}'],
        ['{"v": 1, "n": 1}'],
    ),
]
MANY = [{"properties": {f"p{n}": {"const": n}}} for n in range(70)]
LEFT: list[tuple[str, Any]] = [
    ("$ref", {"$ref": "http://example.com/other"}),
    ("anyOf", {"anyOf": MANY}),
    ("dependentRequired", {"dependentRequired": {f"p{n}": ["q"] for n in range(9)}}),
    ("minimum", {"type": "integer", "minimum": 10**70}),
    ("maximum", {"type": "integer", "maximum": 10**70}),
    ("oneOf", {"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}),
    ("not", {"not": {"pattern": "a"}}),
    ("if", {"if": {"pattern": "a"}, "then": {"minLength": 3}}),
    ("patternProperties", {"patternProperties": {"(?=a)": {"const": 1}}}),
    ("propertyNames", {"propertyNames": {"format": "uuid"}}),
    ("minProperties", {"properties": {f"p{n}": {} for n in range(100)}, "minProperties": 60}),
    ("maxProperties", {"properties": {f"p{n}": {} for n in range(100)}, "maxProperties": 60}),
    ("dependentSchemas", {"dependentSchemas": {f"p{n}": A for n in range(9)}}),
    ("dependencies", {"dependencies": {f"p{n}": ["q"] for n in range(9)}}),
    ("uniqueItems", {"items": {"type": "string"}, "uniqueItems": True}),
    ("contains", {"contains": {"const": 1}, "maxItems": 3}),
    ("maxContains", {"contains": {"const": 1}, "maxContains": 3}),
    ("pattern", {"pattern": "(?=a)b"}),
    ("format", {"format": "regex"}),
    ("multipleOf", {"type": "integer", "multipleOf": 1234567}),
    ("unevaluatedItems", {"contains": {"const": 1}, "unevaluatedItems": False}),
    ("unevaluatedItems", {"contains": True, "minContains": 0, "unevaluatedItems": False}),
    (
        "$dynamicRef",
        {
            "$defs": {"n": {"$dynamicAnchor": "n"}, "m": {"$dynamicAnchor": "n"}},
            "$dynamicRef": "#n",
        },
    ),
]
# Said of what they stand beside: nothing of their own can be left to the model.
LEFT_WITH_ANOTHER = {
    *("exclusiveMinimum", "exclusiveMaximum", "then", "else", "minContains", "$recursiveRef"),
    "unevaluatedProperties",
}


def table() -> Iterator[tuple[str, str]]:
    """Keyword and treatment of each row of the page."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"\| `([^`]+)` \| (\w+) \|.*\|", line)
        if match:
            yield match[1], match[2]


@pytest.mark.parametrize(("keyword", "schema", "good", "bad"), ENFORCED)
def test_what_is_enforced_lets_through_what_is_valid_and_nothing_else(
    keyword: str, schema: Any, good: list[str], bad: list[str]
) -> None:
    assert not unenforced(schema)
    assert [text for text in good if not holds(schema, text)] == []
    assert [text for text in bad if holds(schema, text)] == []


@pytest.mark.parametrize(("keyword", "schema"), LEFT)
def test_what_can_not_be_enforced_is_named_and_refused_under_strict(
    keyword: str, schema: Any
) -> None:
    assert {place.rsplit("/", 1)[-1] for place in unenforced(schema)} == {keyword}
    with pytest.raises(UnsupportedGrammarError, match="can't be enforced") as caught:
        schema_rules(json.dumps(schema), is_strict=True)
    assert f"`{keyword}`" in caught.value.message
    assert "%json" not in caught.value.message


UNTOLD = "(?=a)\\p{L}b"
"""No grammar follows look-ahead, and Python has no classes of Unicode."""


@pytest.mark.parametrize(
    ("schema", "place", "texts"),
    [
        ({"enum": ["ab", "b", 1], "pattern": UNTOLD, "maxLength": 2}, "/pattern", ['"ab"', '"b"']),
        (
            {"const": {"x": ["é"]}, "properties": {"x": {"items": {"pattern": UNTOLD}}}},
            "/properties/x/items/pattern",
            ['{"x": ["é"]}'],
        ),
        ({"const": ["a"], "contains": {"pattern": UNTOLD}}, "/contains/pattern", ['["a"]']),
        ({"enum": ["a", 1], "format": "regex"}, "/format", ['"a"', "1"]),
        ({"enum": ["12:00:60+01:00"], "format": "time"}, "/format", ['"12:00:60+01:00"']),
        ({"enum": ["xn--nxasmq6b"], "format": "hostname"}, "/format", ['"xn--nxasmq6b"']),
        (
            {"const": {"a": 1}, "patternProperties": {UNTOLD: False}},
            "/patternProperties",
            ['{"a": 1}'],
        ),
        (
            {"propertyNames": {"enum": ["a"], "pattern": UNTOLD}, "type": "object"},
            "/propertyNames/pattern",
            ['{"a": 1}', "{}"],
        ),
        (
            {"properties": {"a": {"type": "integer", "exclusiveMinimum": 10**70}}},
            "/properties/a/exclusiveMinimum",
            ['{"a": 1}'],
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_told_of_a_listed_value_is_named_and_refused_under_strict(
    schema: Any, place: str, texts: list[str]
) -> None:
    assert unenforced(schema) == (place,)
    assert [text for text in texts if not holds(schema, text)] == []
    with pytest.raises(UnsupportedGrammarError, match=f"at {re.escape(place)} can't be enforced"):
        schema_rules(json.dumps(schema), is_strict=True)


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": ["abc", 1], "pattern": UNTOLD, "maxLength": 2},
        {"const": ["ab", "b"], "contains": {"anyOf": [{"pattern": UNTOLD}, {"const": "b"}]}},
    ],
)
def test_what_can_not_be_told_matters_only_where_nothing_else_decides(schema: Any) -> None:
    assert unenforced(schema) == ()


@pytest.mark.parametrize(
    ("schema", "places"),
    [
        ({"not": {"const": [1]}, "type": "array"}, ["/not/const"]),
        ({"not": {"enum": [1, {"a": 1}]}, "type": "object"}, ["/not/enum"]),
        ({"not": {"type": "integer"}, "type": "number", "multipleOf": 0.5}, ["/not/type"]),
        (
            {"allOf": [{"uniqueItems": True}, {"uniqueItems": True}], "type": "array"},
            ["/allOf/0/uniqueItems", "/allOf/1/uniqueItems"],
        ),
        (
            {"pattern": "(?=a)", "allOf": [{"pattern": "(?=a)"}], "type": "string"},
            ["/pattern", "/allOf/0/pattern"],
        ),
        (
            {"multipleOf": 1234567, "allOf": [{"multipleOf": 3}], "type": "integer"},
            ["/multipleOf", "/allOf/0/multipleOf"],
        ),
        (
            {
                "properties": {f"p{n}": {} for n in range(100)},
                "minProperties": 60,
                "allOf": [{"maxProperties": 70}],
                "type": "object",
            },
            ["/minProperties", "/allOf/0/maxProperties"],
        ),
        (
            {"patternProperties": {"(?=a)": {}}, "allOf": [{"patternProperties": {"(?=a)": {}}}]},
            ["/patternProperties", "/allOf/0/patternProperties"],
        ),
    ],
)
def test_all_that_is_left_to_the_model_is_named_where_it_stands(
    schema: Any, places: list[str]
) -> None:
    assert unenforced(schema) == tuple(places)


def test_every_row_of_the_page_is_what_the_code_does_and_is_tried() -> None:
    rows = dict(table())
    assert rows == {keyword: treatment.value for keyword, treatment in TREATMENTS.items()}
    tried = {keyword for keyword, *_ in ENFORCED}
    left = {keyword for keyword, _ in LEFT}
    for keyword, treatment in rows.items():
        assert (keyword in tried) == (treatment in ("enforced", "partly")), keyword
        is_left = treatment in ("partly", "unenforced") and keyword not in LEFT_WITH_ANOTHER
        assert (keyword in left) == is_left, keyword


@pytest.mark.parametrize(
    "keyword", [name for name, treatment in TREATMENTS.items() if treatment == "annotation"]
)
def test_annotations_and_unknown_keywords_change_nothing_even_under_strict(keyword: str) -> None:
    values: dict[str, Any] = {"$vocabulary": {}, "$defs": {}, "definitions": {}, "examples": [1]}
    for name, value in ((keyword, values.get(keyword, "x")), ("x-unknown", 1), ("format", "path")):
        schema = {"type": "string", "maxLength": 3, name: value}
        rules = schema_rules(json.dumps(schema), is_strict=True)
        assert rules == schema_rules('{"type": "string", "maxLength": 3}')


def test_keywords_of_our_own_are_none_of_a_clients() -> None:
    for name in ("x-penstock-not", "x-penstock-fraction"):
        schema = {"type": "integer", name: [5]}
        assert schema_rules(json.dumps(schema)) == schema_rules('{"type": "integer"}')
        assert schema_rules(json.dumps({"not": schema})).unenforced == ()


@pytest.mark.parametrize(
    "keyword",
    [*("type", "enum", "items", "prefixItems", "additionalProperties"), "uniqueItems", "$id"],
)
def test_null_leaves_a_keyword_out_as_generators_write_it(keyword: str) -> None:
    schema = {"type": "object", "properties": {"a": {keyword: None}}}
    assert unenforced(schema) == ()
    assert holds(schema, '{"a": [1]}')

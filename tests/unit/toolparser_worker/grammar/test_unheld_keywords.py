"""What a tool's schema says and a format of text doesn't hold is refused or named, never passed."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.compiler import GrammarCompiler
from protocol.wire.messages import Grammar
from tests.fakes.grammar_texts import compiler_for, random_walk
from tests.fakes.parsed_text import TOOLS, Parsed
from tests.fakes.tiny_tokenizers import byte_level_tokenizer
from tests.fakes.tool_schemas import INTEGER, TEXT, a_tool, an_object
from toolparser_worker.errors import UnsupportedToolsError
from toolparser_worker.grammar.request import Wish, request_grammar
from toolparser_worker.machine.declarations import ToolFormat
from toolparser_worker.machine.machine import Machine
from toolparser_worker.machine.tool_schemas import ToolSchemas

TOKENIZER = byte_level_tokenizer()
TEXT_FORMATS = ("pythonic", "gemma4", "qwen3_coder", "minimax_m3")

SMALL = an_object(a=INTEGER, b=INTEGER) | {"required": []}
MANY = {"type": "array", "items": INTEGER, "maxItems": 3}
IN_TEXT = {
    "pattern": {"type": "string", "pattern": "^(?!x)[a-z]{2}$", "maxLength": 4},
    "format": {"type": "string", "format": "uri-template", "maxLength": 4},
    "not": {"type": "string", "maxLength": 4, "not": {"pattern": "b"}},
    "if": {"type": "string", "maxLength": 4, "if": {"minLength": 2}, "then": {"pattern": "^ab"}},
    "allOf": {"type": "string", "allOf": [{"pattern": "^[ab]{1,4}$"}, {"pattern": "a"}]},
    "enum": {"enum": ["ab", "cd"], "pattern": "b"},
    "oneOf": {"oneOf": [TEXT, {"type": "string", "minLength": 2, "maxLength": 8}]},
    "$dynamicRef": {"type": "string", "maxLength": 4, "$dynamicRef": "#x"},
}
"""By keyword: a schema of a string that no format of text holds to it."""
IN_OBJECT = {
    "minProperties": SMALL | {"minProperties": 1},
    "maxProperties": SMALL | {"maxProperties": 1},
    "dependentRequired": SMALL | {"dependentRequired": {"a": ["b"]}},
    "dependentSchemas": SMALL | {"dependentSchemas": {"a": {"required": ["b"]}}},
    "dependencies": SMALL | {"dependencies": {"a": ["b"]}},
    "propertyNames": SMALL | {"propertyNames": {"maxLength": 1}},
    "patternProperties": SMALL | {"patternProperties": {"^a": {"minimum": 3}}},
    "not": SMALL | {"not": {"required": ["a", "b"]}},
    "if": SMALL | {"if": {"required": ["a"]}, "then": {"required": ["b"]}},
}
"""By keyword: a schema of a tool's arguments that no format of text holds to it."""
IN_ARRAY = {
    "uniqueItems": MANY | {"uniqueItems": True},
    "contains": MANY | {"contains": {"minimum": 5}},
    "prefixItems": MANY | {"prefixItems": [TEXT]},
    "unevaluatedItems": {
        "type": "array",
        "maxItems": 2,
        "prefixItems": [TEXT],
        "unevaluatedItems": INTEGER,
    },
    "maxContains": MANY | {"contains": {"minimum": 5}, "maxContains": 1},
}
"""By keyword: a schema of an array that no format holds to it where it writes no JSON."""
HELD = {
    "uniqueItems": an_object(
        a={"type": "array", "items": {"enum": ["x", "y", 3]}, "uniqueItems": True, "minItems": 2}
    ),
    "allOf": an_object(a={"allOf": [TEXT, {"minLength": 2}]}),
    "$ref": {
        **an_object(a={"$ref": "#/$defs/text", "minLength": 4}),
        "$defs": {"text": {"type": "string", "maxLength": 4, "description": "short"}},
    },
    "oneOf": an_object(a={"oneOf": [INTEGER, {"type": "null"}]}),
    "enum": an_object(a={"enum": ["a", "abc", 7, 12], "minLength": 2, "maximum": 9}),
    "multipleOf": an_object(a={"type": "integer", "minimum": 0, "maximum": 99, "multipleOf": 7}),
    "anyOf": {
        "type": "object",
        "properties": {"a": INTEGER, "b": TEXT},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "maxItems": an_object(a={"type": "array", "items": False}),
    "minProperties": an_object(a=INTEGER) | {"minProperties": 1, "maxProperties": 2},
    "dependentRequired": an_object(["b"], a=INTEGER, b=INTEGER)
    | {"dependentRequired": {"a": ["b"]}},
    "format": an_object(a={"type": "string", "format": "json-pointer"}),
    "untyped": an_object(a={"minimum": 3, "maxLength": 4}),
    "annotations": an_object(
        a={**TEXT, "title": "A", "x-more": {"y": 1}, "default": "", "examples": [""]},
        l={"type": "array", "items": INTEGER, "uniqueItems": False, "minContains": 2},
    )
    | {"description": "what it does", "propertyNames": True, "minProperties": 0},
}
"""Schemas that every format holds whole."""


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    with compiler_for(TOKENIZER) as compiler:
        yield compiler


def declared(name: str) -> ToolFormat:
    found = TOOLS[name]
    assert found is not None
    return found


def grammar_of(name: str, parameters: dict[str, Any], *, strict: bool) -> Grammar:
    tools = [a_tool("do_it", parameters, strict=strict)]
    wish = Wish(tools=tools, tool_choice="named", tool_name="do_it")
    grammar = request_grammar(declared(name), None, wish)
    assert grammar is not None
    return grammar


def arguments(
    name: str, parameters: dict[str, Any], grammar: Grammar, compiler: GrammarCompiler, seed: int
) -> Any:
    """The arguments of a random call that the grammar allows, as the client gets them."""
    constraint = compiler.compile(grammar).start(jumps=True)
    token_ids, is_whole = random_walk(
        constraint, TOKENIZER.eos_token_ids, seed=seed, max_tokens=2000, eager_to_end=0.7
    )
    assert is_whole
    machine = Machine(
        tool_format=declared(name),
        reasoning_format=None,
        call_id=lambda index, called: f"{index}",
        tools=ToolSchemas([a_tool("do_it", parameters)]),
        prompt_tail="",
    )
    parsed = Parsed()
    parsed.add(machine.feed(TOKENIZER.decode(token_ids), ()))
    parsed.add(machine.finish())
    assert machine.num_malformed == 0
    (call,) = parsed.calls
    return json.loads(call.arguments)


def refused(
    name: str, parameters: dict[str, Any], keyword: str, place: str, compiler: GrammarCompiler
) -> None:
    """Strict, the schema is refused with the tool (by the parser), the keyword and its place."""
    with pytest.raises((UnsupportedToolsError, UnsupportedGrammarError)) as caught:
        compiler.compile(grammar_of(name, parameters, strict=True))
    if isinstance(caught.value, UnsupportedToolsError):
        assert "'do_it'" in caught.value.message
    assert f"`{keyword}` at {place}" in caught.value.message


CASES = [
    *((keyword, an_object(a=schema), "/properties/a") for keyword, schema in IN_TEXT.items()),
    *((keyword, schema, "") for keyword, schema in IN_OBJECT.items()),
]


@pytest.mark.parametrize("name", TEXT_FORMATS)
@pytest.mark.parametrize(("keyword", "parameters", "within"), CASES)
def test_what_is_not_held_is_refused_when_strict_and_else_named(
    name: str, keyword: str, parameters: dict[str, Any], within: str, compiler: GrammarCompiler
) -> None:
    what = "pattern" if keyword == "enum" else keyword
    refused(name, parameters, what, f"{within}/{what}", compiler)
    grammar = grammar_of(name, parameters, strict=False)
    started = compiler.compile(grammar).start(jumps=False)
    assert f"{within}/{what}" in started.unenforced
    left = {keyword.rsplit("/", 1)[-1] for keyword in started.unenforced}
    rest = json.loads(json.dumps(parameters), object_hook=lambda one: _without(one, left))
    for seed in range(2):
        jsonschema.validate(arguments(name, parameters, grammar, compiler, seed), rest)


@pytest.mark.parametrize("name", ["pythonic", "gemma4", "minimax_m3"])
@pytest.mark.parametrize("keyword", IN_ARRAY)
def test_what_arrays_are_not_held_to_is_refused_when_strict_and_else_named(
    name: str, keyword: str, compiler: GrammarCompiler
) -> None:
    parameters = an_object(a=IN_ARRAY[keyword])
    with pytest.raises(UnsupportedToolsError, match="'do_it'.* at /properties/a/"):
        grammar_of(name, parameters, strict=True)
    grammar = grammar_of(name, parameters, strict=False)
    assert f"/properties/a/{keyword}" in grammar.unenforced
    assert set(grammar.unenforced) <= set(compiler.compile(grammar).start(jumps=False).unenforced)


@pytest.mark.parametrize("keyword", IN_ARRAY)
def test_arrays_that_are_written_as_json_are_held_or_named_with_their_place(
    keyword: str, compiler: GrammarCompiler
) -> None:
    parameters = an_object(a=IN_ARRAY[keyword])
    grammar = grammar_of("qwen3_coder", parameters, strict=False)
    named = compiler.compile(grammar).start(jumps=False).unenforced
    assert all(place.startswith("/properties/a/") for place in named)
    if named:
        with pytest.raises(UnsupportedGrammarError, match=" at /properties/a/"):
            compiler.compile(grammar_of("qwen3_coder", parameters, strict=True))
    else:
        for seed in range(3):
            found = arguments("qwen3_coder", parameters, grammar, compiler, seed)
            jsonschema.validate(found, parameters)


@pytest.mark.parametrize("name", TEXT_FORMATS)
@pytest.mark.parametrize("kind", HELD)
def test_what_is_held_is_served_strict_and_no_value_is_against_it(
    name: str, kind: str, compiler: GrammarCompiler
) -> None:
    parameters = HELD[kind]
    if (name, kind) == ("qwen3_coder", "untyped"):
        pytest.skip("a parameter without a type is text there")
    grammar = grammar_of(name, parameters, strict=True)
    assert compiler.compile(grammar).start(jumps=False).unenforced == ()
    for seed in range(4):
        jsonschema.validate(arguments(name, parameters, grammar, compiler, seed), parameters)


NOTHING_LIKE_IT = {
    "integer": {"type": ["string", "integer"], "minimum": 10, "pattern": "^([0-9]|ab)$"},
    "number": {"anyOf": [{"type": "string", "pattern": "^([0-9]|ab)$"}, {"const": 2.5}]},
    "array": {
        "type": ["string", "array"],
        "items": {"type": "boolean"},
        "pattern": "^(\\[[0-9]\\]|ab)$",
        "maxItems": 2,
    },
    "boolean": {"anyOf": [{"const": True}, {"type": "string", "pattern": "^(false|ab)$"}]},
    "enum": {"enum": ["1", "ab", 7]},
    "allOf": {
        "type": ["string", "integer"],
        "allOf": [{"type": "string", "pattern": "^([0-9]|ab)$"}],
    },
    "$ref": {"anyOf": [{"$ref": "#/$defs/ten"}, {"type": "string", "pattern": "^([0-9]|ab)$"}]},
}
"""Strings that are read as other types are mostly against the schema as these."""


@pytest.mark.parametrize("name", TEXT_FORMATS)
@pytest.mark.parametrize("kind", NOTHING_LIKE_IT)
def test_no_string_is_read_as_a_value_that_the_schema_forbids(
    name: str, kind: str, compiler: GrammarCompiler
) -> None:
    parameters = {
        **an_object(a=NOTHING_LIKE_IT[kind]),
        "$defs": {"ten": {"type": "integer", "minimum": 10, "maximum": 12}},
    }
    grammar = grammar_of(name, parameters, strict=True)
    for seed in range(8):
        jsonschema.validate(arguments(name, parameters, grammar, compiler, seed), parameters)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": ["object", "array"], "items": TEXT, "properties": {"a": TEXT}, "required": ["a"]},
        {"type": ["object", "string"], "properties": {"a": TEXT}, "pattern": "^a$"},
        {"type": ["object", "null"], "allOf": [{"type": ["object", "null", "string"]}]},
    ],
)
def test_objects_that_elements_do_not_tell_apart_are_refused_when_strict(
    schema: dict[str, Any],
) -> None:
    with pytest.raises(UnsupportedToolsError, match="`type` at /properties/a/type .* is read as"):
        grammar_of("minimax_m3", an_object(a=schema), strict=True)
    grammar = grammar_of("minimax_m3", an_object(a=schema), strict=False)
    assert grammar.unenforced == ("/properties/a/type",)


def test_definitions_have_the_place_where_they_are(compiler: GrammarCompiler) -> None:
    parameters = {
        **an_object(a={"type": "array", "items": {"$ref": "#/$defs/part"}}),
        "$defs": {"part": {"type": "array", "items": INTEGER, "uniqueItems": True}},
    }
    for name in TEXT_FORMATS:
        grammar = grammar_of(name, parameters, strict=False)
        named = compiler.compile(grammar).start(jumps=False).unenforced
        assert named == ("/$defs/part/uniqueItems",)


def test_the_place_of_a_keyword_deep_down_is_cut() -> None:
    parameters: dict[str, Any] = an_object(a={"type": "string", "not": {"const": "x"}})
    for number in range(20):
        parameters = an_object(None, **{f"{number}{'k' * 100}": parameters})
    (place,) = grammar_of("gemma4", parameters, strict=False).unenforced
    assert place.startswith("/properties/19kkk")
    assert place.endswith("/not")
    assert len(place) < 600


def test_no_more_is_named_than_the_header_holds() -> None:
    members = {f"m{number}": {"type": "string", "not": {"const": "x"}} for number in range(40)}
    grammar = grammar_of("pythonic", an_object(None, **members), strict=False)
    assert len(grammar.unenforced) == 32
    assert grammar.unenforced[0] == "/properties/m0/not"


def _without(schema: dict[str, Any], keywords: set[str]) -> dict[str, Any]:
    kept = dict(schema)
    for keyword in keywords:
        with suppress(KeyError):
            del kept[keyword]
    return kept

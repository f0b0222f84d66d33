"""Random schemas, and what their grammars accept: judged by another validator.

A text whose value is invalid is accepted only where a keyword is named as left to the model, and
then only if the rest of the schema allows it. A valid value, as JSON is usually written, is
accepted in some order of its members. `make fuzz` draws other schemas, and more of them.
"""

import itertools
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from llguidance import LLMatcher

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.json_schema.compiler import NO_VALUE, schema_rules
from engine_worker.grammar.limits import parser_limits
from engine_worker.grammar.vocabulary import GrammarVocabulary
from tests.fakes.fuzz_effort import EFFORT
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
VOCABULARY = GrammarVocabulary(TOKENIZER, TOKENIZER.num_tokens)
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER

# Numbers that doubles hold exactly: the other validator divides doubles.
NUMBERS = [0, 1, 2, 3, 6, -1, -3, 10, 1.5, 0.5, -0.5, 2.25]
STRINGS = ["", "a", "b", "ab", "abc", "ba", "é", "2024-02-29", "2023-02-29", "1.2.3.4"]
SCALARS: list[Any] = [None, True, False, *NUMBERS, *STRINGS]
MEMBERS = [("a", 1), ("a", "a"), ("b", 2.25), ("b", None), ("ab", "b"), ("c", 0)]
OBJECTS: list[dict[str, Any]] = [
    {},
    *({name: value} for name, value in MEMBERS),
    *(dict(pair) for pair in itertools.combinations(MEMBERS, 2) if pair[0][0] != pair[1][0]),
    {"a": 1, "b": 2.25, "c": 0},
    {"a": {"a": 1}},
]
ARRAYS: list[list[Any]] = [[], [1], ["a"], [1, 1], [1, "a"], ["a", 1], [None, 2], [1, 2, 3], [[1]]]
OTHER_SPELLINGS = ["1.0", "1.50", "-0", "0.0", "0.00", "-0.0", "2.250", "10.0", "1e0", "15e-1"]
VALUES = [*SCALARS, *OBJECTS, *ARRAYS]

SEED = os.environ.get("FUZZ_SEED", "the same for everybody")
NUM_DRAWS = 4
NUM_SCHEMAS = 75
NAMES = ["a", "b", "ab", "c"]
PATTERNS = ["^a", "b$", "^[a-c]+$", "a|é", "^.{2}$", "^(?=a).b", "^$"]
NAME_PATTERNS = ["^a", "b$", "^[ab]$", "c", "^(?!b)"]
TYPES = ["object", "array", "string", "number", "integer", "boolean", "null"]


_LOGIC = ["allOf", "anyOf", "oneOf", "not", "if", "then", "else"]
COMMON = ["type", "const", "enum", "$ref", *_LOGIC]
TOPICS = {
    "numbers": ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"],
    "strings": ["pattern", "format", "minLength", "maxLength"],
    "objects": [
        *("properties", "patternProperties", "propertyNames", "additionalProperties", "required"),
        *("minProperties", "maxProperties", "dependentRequired", "unevaluatedProperties"),
    ],
    "arrays": [
        *("items", "prefixItems", "contains", "minContains", "minItems", "maxItems"),
        *("uniqueItems", "unevaluatedItems"),
    ],
}
"""Keywords that say something about the same values."""
NEGATABLE = [
    *("type", "const", "enum", "required", "minimum", "maximum", "exclusiveMinimum"),
    *("exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems"),
    *("minProperties", "maxProperties"),
]


class RandomSchemas:
    """Draws schemas of a few keywords, nested a few levels.

    Args:
        source: Of chance.
    """

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._depth = 0
        self._plain: dict[str, Callable[[], Any]] = {
            "type": self._types,
            "const": lambda: source.choice(VALUES),
            "enum": lambda: source.sample(VALUES, source.randint(1, 4)),
            **dict.fromkeys(
                ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"],
                lambda: source.choice([-1, 0, 1, 1.5, 2, 3]),
            ),
            "multipleOf": lambda: source.choice([0.5, 1, 1.5, 2, 3]),
            "pattern": lambda: source.choice(PATTERNS),
            "format": lambda: source.choice(["date", "ipv4", "regex", "unknown"]),
            **dict.fromkeys(
                ["minLength", "maxLength", "minItems", "maxItems"], lambda: source.randint(0, 3)
            ),
            **dict.fromkeys(["minProperties", "maxProperties"], lambda: source.randint(0, 3)),
            "uniqueItems": lambda: source.random() < 0.8,
            "required": self._names,
            "dependentRequired": lambda: {name: self._names() for name in self._names()},
            "$ref": lambda: "#/$defs/d",
        }
        self._nesting: dict[str, Callable[[], Any]] = {
            "properties": lambda: {name: self._part() for name in self._names()},
            "patternProperties": lambda: {
                pattern: self._part() for pattern in source.sample(NAME_PATTERNS, 2)
            },
            "propertyNames": self._name_schema,
            **dict.fromkeys(
                ["additionalProperties", "items", "unevaluatedProperties", "unevaluatedItems"],
                self._part,
            ),
            "prefixItems": lambda: [self._part() for _ in range(source.randint(1, 2))],
            "contains": self._inner,
            "minContains": lambda: source.randint(0, 2),
            **dict.fromkeys(
                ["allOf", "anyOf", "oneOf"],
                lambda: [
                    self._condition() if source.random() < 0.3 else self._inner()
                    for _ in range(source.randint(1, 3))
                ],
            ),
            **dict.fromkeys(["not", "if"], self._condition),
            **dict.fromkeys(["then", "else"], self._inner),
        }

    def document(self) -> dict[str, Any]:
        """A schema, with the definition that it may refer to."""
        schema = self._schema(2)
        definition = self._schema(1)
        # Nothing endless, which the other validator would follow.
        while "$ref" in json.dumps(definition):
            definition = self._schema(1)
        return {**schema, "$defs": {"d": definition}} if "$ref" in json.dumps(schema) else schema

    def _schema(self, depth: int) -> dict[str, Any]:
        known = {**self._plain, **self._nesting} if depth else self._plain
        about = TOPICS[self._source.choice(list(TOPICS))] if self._source.random() < 0.7 else known
        some = [keyword for keyword in known if keyword in about or keyword in COMMON]
        chosen = self._source.sample(some, self._source.randint(1, 4 if depth else 2))
        before, self._depth = self._depth, depth
        schema = {keyword: known[keyword]() for keyword in chosen}
        self._depth = before
        return schema

    def _inner(self) -> dict[str, Any]:
        return self._schema(self._depth - 1)

    def _condition(self) -> dict[str, Any]:
        """Often of a form that can be negated."""
        if self._source.random() < 0.4:
            return self._inner()
        chosen = self._source.sample(NEGATABLE, 1 if self._source.random() < 0.7 else 2)
        return {keyword: self._plain[keyword]() for keyword in chosen}

    def _part(self) -> dict[str, Any] | bool:
        return self._inner() if self._source.random() < 0.6 else self._source.random() < 0.5

    def _names(self) -> list[str]:
        return self._source.sample(NAMES, self._source.randint(0, 2))

    def _name_schema(self) -> dict[str, Any]:
        if self._source.random() < 0.5:
            return self._inner()
        return {"enum": self._source.sample(NAMES, self._source.randint(1, 3))}

    def _types(self) -> str | list[str]:
        names = self._source.sample(TYPES, 2)
        return names if self._source.random() < 0.5 else names[0]


def orders(value: Any) -> Iterator[Any]:
    """A value with its own members in every order."""
    if isinstance(value, dict):
        yield from map(dict, itertools.permutations(value.items()))
    else:
        yield value


def accepts(matcher: LLMatcher, text: str) -> bool:
    token_ids = list(text.encode())
    own = matcher.deep_copy()
    return bool(own.try_consume_tokens(token_ids) == len(token_ids)) and own.is_accepting()


def accepts_value(matcher: LLMatcher, value: Any) -> bool:
    return any(accepts(matcher, json.dumps(one, ensure_ascii=False)) for one in orders(value))


def without(schema: dict[str, Any], places: tuple[str, ...]) -> dict[str, Any] | None:
    """A schema that allows all that one without some keywords allows; None for unknown."""
    written = json.dumps(schema)
    if places and "unevaluated" in written:
        return None  # what a keyword describes would become unevaluated
    if any(place.startswith("/$defs/") for place in places) and re.search(
        '"(not|if|oneOf)"', written
    ):
        return None  # a definition may be referred to where it forbids
    copy: Any = json.loads(json.dumps(schema))
    alternatives: list[dict[str, Any]] = []
    for place in places:
        target = copy
        parts = place.split("/")[1:]
        for part in parts:
            if isinstance(target, list):
                target = target[int(part)]
                continue
            if part == "oneOf":
                alternatives.append(target)
            elif part in ("not", "if") or part is parts[-1]:
                target.pop(part, None)
                if part == "patternProperties":
                    # It is about members that they don't describe.
                    target.pop("additionalProperties", None)
                break
            target = target.get(part)
            if target is None:
                break  # taken out before
    for one in alternatives:
        if "oneOf" in one:
            one["allOf"] = [*one.get("allOf", []), {"anyOf": one.pop("oneOf")}]
    return copy  # type: ignore[no-any-return]


def is_by_branches(schema: dict[str, Any]) -> bool:
    """Whether members or items are evaluated by several branches, of which one is written."""
    written = json.dumps(schema)
    branching = ("anyOf", "oneOf", '"if"', "dependent", '"not"')
    return "unevaluated" in written and any(keyword in written for keyword in branching)


def judged(schema: Any) -> Any:
    return jsonschema.Draft202012Validator(schema, format_checker=FORMATS)


def faults(schema: dict[str, Any]) -> list[tuple[str, Any]]:
    """Values and texts that are accepted although they are invalid, or the other way round."""
    validator = judged(schema)
    try:
        rules = schema_rules(json.dumps(schema))
    except UnsupportedGrammarError as error:
        if error.message != NO_VALUE:
            return [("no schema", error.message)]
        return [("refused", value) for value in VALUES if validator.is_valid(value)]
    matcher = LLMatcher(VOCABULARY.ll_tokenizer, rules.lark, log_level=0, limits=parser_limits())
    if matcher.is_error():
        return [("no grammar", matcher.get_error())]
    relaxed = without(schema, rules.unenforced)
    enforced = None if relaxed is None else judged(relaxed)
    found: list[tuple[str, Any]] = []
    for value in VALUES:
        is_accepted = accepts_value(matcher, value)
        if not is_accepted and not is_by_branches(schema) and validator.is_valid(value):
            found.append(("refused", value))
        if is_accepted and enforced is not None and not enforced.is_valid(value):
            found.append(("accepted", value))
    if enforced is not None:
        accepted = [text for text in OTHER_SPELLINGS if accepts(matcher, text)]
        found += [("accepted", one) for one in accepted if not enforced.is_valid(json.loads(one))]
    return found


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "not": {"const": 1.5}},
        {"allOf": [{"propertyNames": {"enum": ["a", "b"]}}, {"propertyNames": {"pattern": "^a"}}]},
        {"enum": ["2023-02-29", "2024-02-29"], "format": "date"},
        {"type": "array", "allOf": [{"unevaluatedItems": True}], "unevaluatedItems": False},
        {"type": "object", "minProperties": 1, "maxProperties": 0},
        {"anyOf": [{"type": "object"}, {"required": ["b", "c"]}]},
        {"anyOf": [{"const": {"a": 1, "b": 2.25}}, {"required": ["a"]}, {"items": {"const": 1}}]},
        {"dependentRequired": {"a": ["b"], "c": []}},
        {"maxLength": 2, "format": "ipv4"},
        {"type": ["string", "null"], "pattern": "^$", "minLength": 2},
        {"type": ["integer", "null"], "minimum": 1, "maximum": 1, "not": {"const": 1}},
        {"not": {"exclusiveMinimum": -1}},
        {"type": "number", "exclusiveMinimum": 1, "maximum": 1.5, "multipleOf": 0.5},
        {"required": ["a"], "propertyNames": {"minLength": 2, "maxLength": 1}},
        {"propertyNames": {"minLength": 2, "maxLength": 1, "not": {"const": "a"}}},
        {"uniqueItems": True, "items": {"type": "integer"}, "oneOf": [{"uniqueItems": True}]},
    ],
)
def test_what_random_schemas_once_showed(schema: dict[str, Any]) -> None:
    assert faults(schema) == []


@pytest.mark.parametrize("number", range(NUM_DRAWS))
def test_a_grammar_accepts_what_is_valid_and_nothing_else(number: int) -> None:
    schemas = RandomSchemas(random.Random(f"{SEED} {number}"))
    for _ in range(NUM_SCHEMAS * EFFORT):
        schema = schemas.document()
        assert faults(schema) == [], json.dumps(schema)

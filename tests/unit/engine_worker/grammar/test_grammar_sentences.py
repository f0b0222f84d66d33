import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from engine_worker.demo import demo_model_path
from engine_worker.grammar.compiler import GrammarCompiler
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import Grammar
from tests.fakes.grammar_texts import allowed_tokens, compiler_for, random_walk, sentence
from tests.fakes.tiny_tokenizers import byte_level_tokenizer, sentencepiece_tokenizer

BYTES = byte_level_tokenizer()
DEMO = Tokenizer.load(demo_model_path())
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


@pytest.fixture(scope="module")
def byte_compiler() -> Iterator[GrammarCompiler]:
    with compiler_for(BYTES) as compiler:
        yield compiler


@pytest.fixture(scope="module")
def demo_compiler() -> Iterator[GrammarCompiler]:
    with compiler_for(DEMO) as compiler:
        yield compiler


def an_object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


STRICT_SCHEMAS: dict[str, dict[str, Any]] = {
    "string": an_object(a={"type": "string", "maxLength": 9}),
    "integer": an_object(a={"type": "integer", "minimum": -5, "maximum": 12}),
    "number": an_object(a={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2}),
    "multiple": an_object(a={"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 99}),
    "boolean": an_object(a={"type": "boolean"}),
    "null": an_object(a={"type": ["string", "null"], "maxLength": 4}),
    "enum": an_object(a={"enum": ["red", "grün", 3, None, True]}),
    "const": an_object(a={"const": {"deep": [1, "x"]}}),
    "anyOf": an_object(a={"anyOf": [{"type": "integer"}, an_object(b={"type": "boolean"})]}),
    "pattern": an_object(a={"type": "string", "pattern": "^[a-c]{2}-\\d{3}$"}),
    **{
        f"format {name}": an_object(a={"type": "string", "format": name})
        for name in ("date", "time", "date-time", "duration", "uuid", "ipv4", "ipv6")
    },
    "array": an_object(
        a={"type": "array", "items": {"enum": [1, 22]}, "minItems": 2, "maxItems": 4}
    ),
    "nested": an_object(a=an_object(b={"type": "array", "items": an_object(c={"enum": ["x"]})})),
    "ref": {
        **an_object(a={"$ref": "#/$defs/point"}, b={"$ref": "#/$defs/point"}),
        "$defs": {"point": an_object(x={"type": "integer"}, y={"type": "integer"})},
    },
    "recursive": {
        **an_object(tree={"$ref": "#/$defs/node"}),
        "$defs": {
            "node": an_object(
                value={"type": "boolean"},
                next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            )
        },
    },
    "recursive root": an_object(
        name={"enum": ["a", "b"]}, children={"type": "array", "items": {"$ref": "#"}}
    ),
    "optional": {**an_object(a={"enum": [1]}, b={"enum": [2]}), "required": ["b"]},
    "other keys": {"type": "object", "additionalProperties": {"type": "boolean"}},
}
BOUNDED = frozenset(
    {"string", "integer", "multiple", "boolean", "null", "enum", "const", "pattern", "array"}
)


@pytest.mark.parametrize("name", STRICT_SCHEMAS)
def test_every_sentence_fits_its_schema(name: str, demo_compiler: GrammarCompiler) -> None:
    schema = STRICT_SCHEMAS[name]
    grammar = Grammar(kind="json_schema", source=json.dumps(schema))
    texts = [sentence(demo_compiler, DEMO, grammar, seed) for seed in range(5)]
    whole = [text for text in texts if text is not None]
    assert len(whole) == len(texts) if name in BOUNDED else whole
    for text in whole:
        jsonschema.validate(json.loads(text), schema, format_checker=FORMATS)


@pytest.mark.parametrize("tokenizer", [BYTES, sentencepiece_tokenizer()], ids=["bytes", "pieces"])
def test_any_kind_of_tokenizer_follows_a_schema(tokenizer: Tokenizer) -> None:
    schema = STRICT_SCHEMAS["nested"]
    grammar = Grammar(kind="json_schema", source=json.dumps(schema))
    with compiler_for(tokenizer) as compiler:
        texts = [sentence(compiler, tokenizer, grammar, seed) for seed in range(6)]
    whole = [json.loads(text) for text in texts if text is not None]
    assert whole
    for value in whole:
        jsonschema.validate(value, schema)


def test_free_json_is_an_object(byte_compiler: GrammarCompiler) -> None:
    grammar = Grammar(kind="json_object", source="")
    texts = [sentence(byte_compiler, BYTES, grammar, seed) for seed in range(30)]
    whole = [text for text in texts if text is not None]
    assert whole
    assert all(isinstance(json.loads(text, strict=False), dict) for text in whole)


@pytest.mark.parametrize("pattern", ["[ab]{3}/\\d{2}", "(yes|no)\\.?", "é+[^x]"])
def test_a_regular_expression_is_matched_whole(
    pattern: str, byte_compiler: GrammarCompiler
) -> None:
    for seed in range(6):
        text = sentence(byte_compiler, BYTES, Grammar(kind="regex", source=pattern), seed)
        assert text is None or re.fullmatch(pattern, text, re.DOTALL)


def test_a_choice_is_one_of_its_texts(demo_compiler: GrammarCompiler) -> None:
    choices = ["yes", "yes, sir", 'no "way"\n', "schön"]
    grammar = Grammar(kind="choice", source=json.dumps(choices))
    found = {sentence(demo_compiler, DEMO, grammar, seed) for seed in range(40)}
    assert found == set(choices)


def test_a_lark_grammar_is_followed(demo_compiler: GrammarCompiler) -> None:
    source = 'start: sum\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[1-9][0-9]?/\n'
    for seed in range(5):
        text = sentence(demo_compiler, DEMO, Grammar(kind="lark", source=source), seed)
        assert text is None or re.fullmatch(r"[1-9][0-9]?(\+[1-9][0-9]?)*", text)


MARKED = (
    'start: MARKER_0 value "MARKER_1" MARKER_1\nvalue[suffix=MARKER_1]: TEXT\n'
    "TEXT: /[a-z<>\\/_]{0,30}/\n"
)


@pytest.mark.parametrize(
    "markers",
    [("<tool_call>", "</tool_call>"), ("<a>", "</a>"), ("<a>\n<tool_call>", "</a>\n</tool_call>")],
    ids=["tokens", "texts", "mixed"],
)
def test_markers_are_special_tokens_or_text(
    markers: tuple[str, str], demo_compiler: GrammarCompiler
) -> None:
    start, end = markers
    grammar = Grammar(kind="lark", source=MARKED, markers=markers)
    special = DEMO.added_token_ids()
    for seed in range(8):
        constraint = demo_compiler.compile(grammar).start(jumps=True)
        token_ids, is_whole = random_walk(constraint, DEMO.eos_token_ids, seed=seed)
        assert is_whole
        text = DEMO.decode(token_ids)
        assert re.fullmatch(
            f"{re.escape(start)}[a-z<>/_]{{0,30}}{re.escape(end)}MARKER_1{re.escape(end)}", text
        )
        assert text.count(end) == 2
        if end in special:
            assert token_ids.count(special[end]) == 2


@pytest.mark.parametrize("marker", ["<tool_call>", "ab", "<tool_call>\n"])
def test_a_grammar_that_waits_for_its_marker_leaves_other_text_alone(
    marker: str, demo_compiler: GrammarCompiler
) -> None:
    grammar = Grammar(kind="json_schema", source='{"type": "boolean"}', after_marker=marker)
    compiled = demo_compiler.compile(grammar)
    before = [*DEMO.encode("Hi <|im_start|> <tool_", add_special_tokens=False)]
    for token_ids, ends in (
        (before, True),
        ([*before, *DEMO.encode(marker, add_special_tokens=False)], False),
        ([*before, *DEMO.encode(f"{marker}true", add_special_tokens=False)], True),
    ):
        constraint = compiled.start(jumps=False)
        constraint.push_all(token_ids)
        assert not constraint.failure
        may_end = DEMO.eos_token_ids & set(allowed_tokens(constraint))
        assert bool(may_end) is ends
    assert constraint.is_complete


def test_a_marker_that_ordinary_tokens_spell_arms_the_grammar_too(
    demo_compiler: GrammarCompiler,
) -> None:
    grammar = Grammar(kind="choice", source='["x"]', after_marker="<tool_call>")
    constraint = demo_compiler.compile(grammar).start(jumps=False)
    for piece in ("<tool", "_c", "all", ">"):
        constraint.push_all(DEMO.encode(piece, add_special_tokens=False))
    assert DEMO.decode(allowed_tokens(constraint)) == "x"


ARMED_BY_TWO = "<tool_call>tools</tool_call>"


@pytest.mark.parametrize(
    ("marker", "text", "is_armed"),
    [
        (ARMED_BY_TWO, "<tool_call>tools", False),
        (ARMED_BY_TWO, "<tool_call>other</tool_call> and", False),
        (ARMED_BY_TWO, "<tool_call>toolsx</tool_call>", False),
        (ARMED_BY_TWO, "<tool_call></tool_call>", False),
        (ARMED_BY_TWO, "a<tools>b<tool_call><tool_call>tools</tool_call>", True),
        ("<tool_call></tool_call>", "<tool_call>x</tool_call>", False),
        ("<tool_call></tool_call>", "<tool_call></tool_call>", True),
        ("]<[<tool_call>", "<tool_call> ]<[", False),
        ("]<[<tool_call>", "]<[</tool_call>]<[<tool_call>", True),
        ("a call:", "no call: a call", False),
        ("a call:", "<tools>a call:", True),
    ],
)
def test_markers_of_several_tokens_are_told_from_what_begins_like_them(
    marker: str, text: str, is_armed: bool, demo_compiler: GrammarCompiler
) -> None:
    grammar = Grammar(kind="choice", source='["yes", "no"]', after_marker=marker)
    constraint = demo_compiler.compile(grammar).start(jumps=False)
    constraint.push_all(DEMO.encode(text, add_special_tokens=False))
    assert not constraint.failure
    assert constraint.is_accepting is not is_armed
    constraint.push_all(DEMO.encode("yes", add_special_tokens=False))
    assert constraint.is_complete is is_armed

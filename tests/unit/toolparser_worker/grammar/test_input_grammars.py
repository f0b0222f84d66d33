"""The input of a custom tool follows a whole Lark grammar, whatever the format of its call."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from engine_worker.grammar.compiler import GrammarCompiler
from gateway.http.schemas.inference.messages import clean_tools
from tests.fakes.grammar_texts import compiler_for, random_walk
from tests.fakes.parsed_text import TOOLS
from tests.fakes.tiny_tokenizers import byte_level_tokenizer
from toolparser_worker.errors import UnsupportedToolsError
from toolparser_worker.grammar.request import Wish, request_grammar
from toolparser_worker.machine.declarations import ParameterBody, PythonBody, ToolFormat
from toolparser_worker.machine.machine import Machine
from toolparser_worker.machine.render import render_calls
from toolparser_worker.machine.tool_schemas import ToolSchemas

TOKENIZER = byte_level_tokenizer()
FORMATS = {name: declared for name, declared in TOOLS.items() if declared is not None}
TRIMMED = {
    name
    for name, one in FORMATS.items()
    if isinstance(one.body, ParameterBody) and one.body.trims == "space"
}
SUMS = r"""
start: sum
sum: item (("+" | "-") item)*
item: NUMBER | "(" sum ")" | ESCAPED_STRING | list{item}
list{x}: "[" x ("," x)* "]"
%import common (NUMBER, ESCAPED_STRING)
BLANK: " " | "\n" | "\t"
%ignore BLANK
"""
_TOKEN = re.compile(
    r'[ \n\t]*(?:(?P<item>"(?:[^"\\\n]|\\[^\n])*"|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)'
    r"(?:[eE][+-]?[0-9]+)?)|(?P<mark>[-+()\[\],]))"
)


def is_sum(text: str) -> bool:
    """Whether the grammar has a text, told without any library."""
    tokens, position = [], 0
    text = text.rstrip(" \n\t")
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return False
        tokens.append("i" if match["item"] else match["mark"])
        position = match.end()
    spelt = "".join(tokens)
    while True:
        # A whole sum in brackets is an item; of lists each member is one.
        shorter = re.sub(r"\(i(?:[-+]i)*\)|\[i(?:,i)*\]", "i", spelt)
        if shorter == spelt:
            return re.fullmatch(r"i(?:[-+]i)*", spelt) is not None
        spelt = shorter


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    with compiler_for(TOKENIZER) as compiler:
        yield compiler


def tools_of(definition: str) -> list[dict[str, Any]]:
    form = {"type": "grammar", "grammar": {"syntax": "lark", "definition": definition}}
    custom = {"name": "calc", "format": form}
    return clean_tools([{"type": "custom", "custom": custom}], with_strict=True)


def arguments_of(
    text: str, tools: list[dict[str, Any]], declared: ToolFormat, *, size: int = 10**6
) -> str:
    """What the parser makes of a text that comes in pieces of some size."""
    machine = Machine(
        tool_format=declared,
        reasoning_format=None,
        call_id=lambda index, name: f"{index}",
        tools=ToolSchemas(tools),
    )
    pieces = (text[start : start + size] for start in range(0, len(text), size))
    events = [event for piece in pieces for event in machine.feed(piece)]
    events += machine.finish()
    assert machine.num_malformed == 0
    arguments = "".join(one.text for one in events if one.kind == "tool_call_arguments")
    value: str = json.loads(arguments)["input"]
    assert list(json.loads(arguments)) == ["input"]
    return value


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_an_input_is_written_and_read_as_the_grammar_says(
    name: str, compiler: GrammarCompiler
) -> None:
    declared, tools = FORMATS[name], tools_of(SUMS)
    grammar = request_grammar(
        declared, None, Wish(tools=tools, tool_choice="named", tool_name="calc")
    )
    assert grammar is not None
    inputs = []
    for seed in range(4):
        constraint = compiler.compile(grammar).start(jumps=True)
        token_ids, is_whole = random_walk(
            constraint, TOKENIZER.eos_token_ids, seed=seed, max_tokens=4000, eager_to_end=0.8
        )
        assert is_whole
        inputs.append(arguments_of(TOKENIZER.decode(token_ids), tools, declared))
    assert all(map(is_sum, inputs)), inputs


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_the_format_writes_is_allowed_if_it_follows_the_grammar(
    name: str, compiler: GrammarCompiler
) -> None:
    declared, tools = FORMATS[name], tools_of(SUMS)
    grammar = request_grammar(declared, None, Wish(tools=tools, tool_choice="required"))
    assert grammar is not None
    for text, is_one in (
        ("1 +\n(2 - [3,\t4.5])", True),
        ("((((1))))", True),
        ('"a \\" b\\\\" + "é"', True),
        ("((1)", False),
        ("1 + + 2", False),
        ("[]", False),
    ):
        assert is_sum(text) is is_one
        arguments = json.dumps({"input": text}, ensure_ascii=False)
        written = render_calls(declared, [("calc", arguments)])
        if isinstance(declared.body, PythonBody):
            # Python has several spellings of a string; the one that JSON has is written.
            written = written.replace(repr(text), json.dumps(text, ensure_ascii=False))
        constraint = compiler.compile(grammar).start(jumps=True)
        constraint.push_all(TOKENIZER.encode(written, add_special_tokens=False))
        assert (not constraint.failure and constraint.is_sentence) is is_one, text


@pytest.mark.parametrize("name", sorted(TRIMMED))
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_white_space_around_a_text_is_its_own_where_a_grammar_says_so(
    name: str, size: int, compiler: GrammarCompiler
) -> None:
    """Formats that drop it from other arguments were refused."""
    declared, tools = FORMATS[name], tools_of(r'start: "(" start ")" | /[ \n]*1[ \n]*/')
    for text in ("  1\n", "(( 1 ))", "\n \n1"):
        written = render_calls(declared, [("calc", json.dumps({"input": text}))])
        grammar = request_grammar(declared, None, Wish(tools=tools, tool_choice="required"))
        assert grammar is not None
        constraint = compiler.compile(grammar).start(jumps=True)
        constraint.push_all(TOKENIZER.encode(written, add_special_tokens=False))
        assert not constraint.failure
        assert constraint.is_sentence
        assert arguments_of(written, tools, declared, size=size) == text


def test_where_calls_are_free_it_holds_once_a_call_begins(compiler: GrammarCompiler) -> None:
    tools = tools_of(SUMS)
    grammar = request_grammar(FORMATS["hermes"], None, Wish(tools=tools))
    assert grammar is not None
    constraint = compiler.compile(grammar).start(jumps=True)
    begun = 'No call. <tool_call>\n{"name": "calc", "arguments": {"input": "(1'
    constraint.push_all(TOKENIZER.encode(begun, add_special_tokens=False))
    assert not constraint.failure
    constraint.push_all(TOKENIZER.encode('"', add_special_tokens=False))
    assert constraint.failure


def test_an_end_of_the_argument_is_no_text_of_a_terminal(compiler: GrammarCompiler) -> None:
    tools = tools_of('start: "(" start ")" | /[^()]+/')
    declared = FORMATS["qwen3_coder"]
    grammar = request_grammar(declared, None, Wish(tools=tools, tool_choice="required"))
    assert grammar is not None
    for text, is_one in (("(a < /parameter>)", True), ("(a </parameter>)", False)):
        written = render_calls(declared, [("calc", json.dumps({"input": text}))])
        constraint = compiler.compile(grammar).start(jumps=True)
        constraint.push_all(TOKENIZER.encode(written, add_special_tokens=False))
        assert (not constraint.failure and constraint.is_sentence) is is_one


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"rules": [], "terminals": []},
        {"rules": ["T0"], "terminals": []},
        {"rules": ["R1"], "terminals": []},
        {"rules": ['T0 "x"'], "terminals": [["a", "a"]]},
        {"rules": ["T0\n%ignore T0"], "terminals": [["a", "a"]]},
        {"rules": ["T0"], "terminals": ["a"]},
        {"rules": ["T0"], "terminals": [["a"]]},
        3,
        [],
    ],
)
def test_rules_that_are_none_are_refused(value: object) -> None:
    (tool,) = tools_of(SUMS)
    tool["function"]["x_penstock_input"] = value
    with pytest.raises(UnsupportedToolsError):
        request_grammar(FORMATS["hermes"], None, Wish(tools=[tool], tool_choice="required"))

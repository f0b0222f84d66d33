"""What no model should write and some do: depth, length and characters of every kind, in all
formats."""

import itertools
import json

from tests.fakes.format_pairs import SOME_TOOLS, schemas
from tests.fakes.loops import of_each
from tests.fakes.parsed_text import TOOLS, Parsed, new_machine
from toolparser_worker.machine.render import render_calls

MARK = "QMARKQ"
DEPTH = 3_000
ANY_TOOL = schemas([("f", '{"a": ""}')])
NO_SCHEMA = schemas([("f", "{}")])
PAYLOADS = {
    "brackets": "[" * DEPTH + "]" * DEPTH,
    "braces": '{"a":' * DEPTH + "1" + "}" * DEPTH,
    "open brackets": "[" * DEPTH,
    "open braces": "{" * DEPTH,
    "open calls": "f(x=" * DEPTH,
    "elements": "<a>" * DEPTH,
    "a huge number": "9" * 10 * DEPTH,
    "a huge exponent": "1e" + "9" * DEPTH,
    "minus signs": "-" * DEPTH,
    "nul bytes": "\x00" * DEPTH,
    "lone surrogates": "\ud800\udfff\udc00" * DEPTH,
    "backslashes": "\\" * DEPTH,
    "half escapes": "\\u12" * DEPTH,
    "quotes": '"' * DEPTH,
    "single quotes": "'" * DEPTH,
    "blanks": " \n\t" * DEPTH,
    "other blanks": "\u2028\u00a0\x85" * DEPTH,
    "angles": "<" * DEPTH,
}


def written(tool: str, payload: str, *, in_string: bool) -> str:
    """A call with the payload as its argument, or in the argument's string."""
    tool_format = TOOLS[tool]
    assert tool_format is not None
    text = render_calls(tool_format, [("f", json.dumps({"a": MARK}))])
    assert MARK in text
    if not in_string:
        for quote in ('"', "'", '<|"|>', "<escape>"):
            text = text.replace(f"{quote}{MARK}{quote}", MARK)
    return text.replace(MARK, payload)


@of_each("tool", SOME_TOOLS)
def test_bad_arguments_neither_raise_nor_cost_more_than_their_length(tool: str) -> None:
    kinds = ((True, ANY_TOOL), (False, NO_SCHEMA))
    for name, (in_string, tools) in itertools.product(PAYLOADS, kinds):
        text = written(tool, PAYLOADS[name], in_string=in_string)
        machine = new_machine(TOOLS[tool], None, tools=tools)
        parsed = Parsed()
        for start in range(0, len(text), 1000):
            parsed.add(machine.feed(text[start : start + 1000]))
        parsed.add(machine.finish())
        assert machine.num_operations <= 40 * len(text) + 10_000, (name, in_string)
        assert parsed.calls or parsed.content, (name, in_string)
        out = "".join(call.arguments for call in parsed.calls) + parsed.content
        assert len(out) <= 8 * len(text) + 1000, (name, in_string)


@of_each("tool", SOME_TOOLS)
def test_megabytes_of_arguments_pass(tool: str) -> None:
    """Ten in the first format of each kind of body, one in the others, which go the same ways."""
    kinds = [type(declared.body) for name in SOME_TOOLS if (declared := TOOLS[name])]
    place = SOME_TOOLS.index(tool)
    num_megabytes = 1 if kinds[place] in kinds[:place] else 10
    text = "0123456789abcdef" * (num_megabytes * 1024 * 1024 // 16)
    whole = written(tool, text, in_string=True)
    machine = new_machine(TOOLS[tool], None, tools=ANY_TOOL)
    size = 256 * 1024
    arguments = []
    for start in range(0, len(whole), size):
        arguments += [
            event.text
            for event in machine.feed(whole[start : start + size])
            if event.kind == "tool_call_arguments"
        ]
    arguments += [event.text for event in machine.finish() if event.text]
    assert json.loads("".join(arguments)) == {"a": text}
    assert machine.num_malformed == 0

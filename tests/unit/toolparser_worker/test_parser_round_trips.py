"""Calls of functions as they are used, written in every format and read again, in three cuts."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.fakes.format_pairs import SOME_TOOLS
from tests.fakes.loops import of_each
from tests.fakes.parsed_text import TOOLS, parse
from toolparser_worker.machine.declarations import HeaderBody, JsonObjectBody
from toolparser_worker.machine.render import render_calls
from toolparser_worker.machine.tool_schemas import ToolSchemas

TEXT = {"type": "string"}
WHOLE = {"type": "integer"}
NUMBER = {"type": "number"}
TRUTH = {"type": "boolean"}


def listed(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def object_of(**members: Any) -> dict[str, Any]:
    return {"type": "object", "properties": members}


@dataclass(frozen=True)
class Case:
    """A call, its arguments as they are written, and the parameters' schema."""

    name: str
    arguments: str
    parameters: dict[str, Any]


ADDRESS = object_of(street=TEXT, number=WHOLE, point=object_of(lat=NUMBER, lon=NUMBER))
CASES = {
    "one string": Case("get_weather", '{"city": "Paris"}', object_of(city=TEXT)),
    "nothing": Case("now", "{}", object_of()),
    "scalars": Case(
        "set_alarm",
        '{"hour": 7, "volume": 0.5, "repeat": true, "silent": false, "label": "up"}',
        object_of(hour=WHOLE, volume=NUMBER, repeat=TRUTH, silent=TRUTH, label=TEXT),
    ),
    "nested objects": Case(
        "ship",
        '{"to": {"street": "Rue de Rivoli", "number": 5, "point": {"lat": 48.85, "lon": 2.35}}}',
        object_of(to=ADDRESS),
    ),
    "a list of objects": Case(
        "order",
        '{"items": [{"sku": "a-1", "count": 2, "gift": true}, {"sku": "b", "count": 1, '
        '"gift": false}], "note": "soon"}',
        object_of(items=listed(object_of(sku=TEXT, count=WHOLE, gift=TRUTH)), note=TEXT),
    ),
    "objects with lists of objects": Case(
        "plan",
        '{"days": [{"date": "2026-01-02", "visits": [{"place": "A", "hours": [9, 12]}, '
        '{"place": "B", "hours": [14]}]}]}',
        object_of(
            days=listed(
                object_of(date=TEXT, visits=listed(object_of(place=TEXT, hours=listed(WHOLE))))
            )
        ),
    ),
    "lists": Case(
        "average",
        '{"numbers": [1, -2, 3.5], "names": ["a", "b c"], "flags": [true, false]}',
        object_of(numbers=listed(NUMBER), names=listed(TEXT), flags=listed(TRUTH)),
    ),
    "a list of lists": Case(
        "multiply", '{"matrix": [[1, 2], [3, 4]]}', object_of(matrix=listed(listed(NUMBER)))
    ),
    "numbers as written": Case(
        "measure",
        '{"a": 1.10, "b": 1e5, "c": 9007199254740993, "d": -0.5, "e": 123456789.12345678901, '
        '"f": 0, "g": [1.0, 2.50, 1E-7], "h": {"i": 12345678901234567890123}}',
        object_of(
            a=NUMBER,
            b=NUMBER,
            c=WHOLE,
            d=NUMBER,
            e=NUMBER,
            f=WHOLE,
            g=listed(NUMBER),
            h=object_of(i=WHOLE),
        ),
    ),
    "Unicode": Case(
        "translate",
        '{"text": "Grüße, 東京 🙂 и é\u3000\u00a0\u2028!", "to": "日本語", "tags": ["ñ", "Ω"]}',
        object_of(text=TEXT, to=TEXT, tags=listed(TEXT)),
    ),
    "empty values": Case(
        "save",
        '{"text": "", "list": [], "object": {}, "after": "x"}',
        object_of(text=TEXT, list=listed(TEXT), object={"type": "object"}, after=TEXT),
    ),
    "null": Case(
        "filter",
        '{"since": null, "nested": {"until": null}, "list": [null, 1]}',
        object_of(
            since={"type": ["integer", "null"]},
            nested=object_of(until={"anyOf": [{"type": "null"}, {"type": "integer"}]}),
            list=listed({"type": ["integer", "null"]}),
        ),
    ),
    "code": Case(
        "write_file",
        json.dumps(
            {
                "path": "a/b.py",
                "content": (
                    "def f(x: int) -> str:\n\treturn f\"{x!r}\" if x < 3 and x > 1 else '\\n'"
                ),
            }
        ),
        object_of(path=TEXT, content=TEXT),
    ),
    "text that looks like other types": Case(
        "note",
        '{"a": "5", "b": "true", "c": "null", "d": "[1, 2]", "e": "{\\"f\\": 1}", "g": "1e5"}',
        object_of(a=TEXT, b=TEXT, c=TEXT, d=TEXT, e=TEXT, g=TEXT),
    ),
    "choices": Case(
        "convert",
        '{"unit": "celsius", "precision": 2, "mode": "fast"}',
        object_of(
            unit={"enum": ["celsius", "kelvin"]}, precision={"enum": [1, 2]}, mode={"const": "fast"}
        ),
    ),
    "a name with dots and dashes": Case(
        "files.search-all", '{"pattern": "*.md"}', object_of(pattern=TEXT)
    ),
    "references": Case(
        "tree",
        '{"root": {"value": 1, "children": [{"value": 2, "children": []}]}}',
        {
            "type": "object",
            "properties": {"root": {"$ref": "#/$defs/node"}},
            "$defs": {
                "node": object_of(value=WHOLE, children=listed({"$ref": "#/$defs/node"})),
            },
        },
    ),
}


def cuts(text: str) -> Iterator[list[str]]:
    yield [text]
    yield list(text)
    yield [text[start : start + 4] for start in range(0, len(text), 4)]


def as_written(text: str) -> Any:
    """A JSON value whose numbers are their digits."""
    return json.loads(
        text, parse_int=lambda digits: ("number", digits), parse_float=lambda d: ("number", d)
    )


def schemas(*cases: Case) -> ToolSchemas:
    return ToolSchemas(
        {"function": {"name": case.name, "parameters": case.parameters}} for case in cases
    )


def assert_read_again(tool: str, cases: list[Case], tools: ToolSchemas) -> None:
    tool_format = TOOLS[tool]
    assert tool_format is not None
    text = render_calls(tool_format, [(case.name, case.arguments) for case in cases])
    for pieces in cuts(text):
        parsed = parse(pieces, tool_format, tools=tools)
        assert [(call.name, as_written(call.arguments)) for call in parsed.calls] == [
            (case.name, as_written(case.arguments)) for case in cases
        ]
        assert all(call.is_complete for call in parsed.calls), text
        assert (parsed.num_malformed, parsed.content) == (0, ""), text


@of_each("tool", SOME_TOOLS)
def test_a_call_is_read_as_it_was_meant(tool: str) -> None:
    tools = schemas(*CASES.values())
    for case in CASES.values():
        assert_read_again(tool, [case], tools)


@of_each("tool", SOME_TOOLS)
def test_all_calls_in_one_answer_are_read(tool: str) -> None:
    cases = list(CASES.values())
    assert_read_again(tool, cases, schemas(*cases))


@of_each(
    "tool",
    [
        name
        for name in SOME_TOOLS
        if (declared := TOOLS[name]) and isinstance(declared.body, JsonObjectBody | HeaderBody)
    ],
)
def test_json_needs_no_schema(tool: str) -> None:
    for case in CASES.values():
        assert_read_again(tool, [case], ToolSchemas())

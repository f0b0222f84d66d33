"""Texts that once lost something, or became what nobody meant: what they are now, in every cut."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.fakes.format_pairs import SOME_TOOLS, formats
from tests.fakes.law_of_cuts import Formats, find_broken, outcome
from tests.fakes.parsed_text import TOOLS
from tests.fakes.text_in_every_cut import read, values
from toolparser_worker.machine.coercion import coerced
from toolparser_worker.machine.declarations import HeaderBody, JsonObjectBody
from toolparser_worker.machine.render import render_calls

DSML = "<｜DSML｜function_calls>{}</｜DSML｜function_calls>"
M3 = "]<]minimax[>[<tool_call>]<]minimax[>[<invoke name=f>{}]<]minimax[>[</invoke>"
GEMMA = "<|tool_call>call:f{}<tool_call|>"
JSON_FORMATS = [
    name
    for name in SOME_TOOLS
    if (declared := TOOLS[name])
    and isinstance(declared.body, JsonObjectBody)
    and not declared.body.name_is_key
]


# Nothing vanishes without a word.


@pytest.mark.parametrize("tool", JSON_FORMATS)
@pytest.mark.parametrize("key", ["arguments", "parameters", "args"])
def test_arguments_may_be_called_otherwise(tool: str, key: str) -> None:
    tool_format = TOOLS[tool]
    assert tool_format is not None
    assert isinstance(tool_format.body, JsonObjectBody)
    text = render_calls(tool_format, [("f", '{"x": "a"}')])
    own = f'"{tool_format.body.argument_keys[0]}"'
    parsed = read(tool, text.replace(own, f'"{key}"'))
    assert values(parsed) == [("f", {"x": "a"})]
    assert parsed.num_malformed == 0


@pytest.mark.parametrize("tool", [name for name in JSON_FORMATS if name != "llama3_json"])
@pytest.mark.parametrize("more", ['"x": "a"', '"args": {"x": 1}', '"arguments": {"y": 2}'])
def test_members_that_are_left_out_are_counted(tool: str, more: str) -> None:
    tool_format = TOOLS[tool]
    assert tool_format is not None
    text = render_calls(tool_format, [("f", "{}")]).replace("{}", f"{{}}, {more}")
    parsed = read(tool, text)
    assert values(parsed) == [("f", {})]
    assert parsed.num_malformed == 1


def test_members_that_say_nothing_are_not_counted() -> None:
    text = '<tool_call>{"id": "1", "type": "function", "name": "f", "index": 0}</tool_call>'
    assert read("hermes", text).num_malformed == 0


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        ("deepseek_v32", DSML.format('<｜DSML｜invoke name="f">{}</｜DSML｜invoke>')),
        ("qwen3_coder", "<tool_call>\n<function=f>\n{}\n</function>\n</tool_call>"),
        ("step3p5", "<tool_call>\n<function=f>\n{}\n</function>\n</tool_call>"),
        ("seed_oss", "<seed:tool_call>\n<function=f>{}</function>\n</seed:tool_call>"),
        ("glm45", "<tool_call>f\n{}\n</tool_call>"),
        ("glm45", "<tool_call>f{}</tool_call>"),
        ("poolside_v1", "<tool_call>f\n{}</tool_call>"),
        ("hy_v3", "<tool_calls><tool_call>f<tool_sep>{}</tool_call></tool_calls>"),
        ("minimax_m2", '<minimax:tool_call><invoke name="f">{}</invoke></minimax:tool_call>'),
        (
            "minimax_m3",
            "]<]minimax[>[<tool_call>]<]minimax[>[<invoke name=f>{}]<]minimax[>[</invoke>",
        ),
        ("dots", '<dots_function_call><invoke name="f">{}</invoke></dots_function_call>'),
        (
            "step3",
            "<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜>"
            '<steptml:invoke name="f">{}</steptml:invoke><｜tool_call_end｜><｜tool_calls_end｜>',
        ),
        ("minicpm5", '<function name="f">{}</function>'),
        (
            "kimi_k3",
            '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|>{}'
            "<|close|>call<|sep|><|close|>tools<|sep|>",
        ),
        (
            "muse_glimmer",
            ' to=tools<|message|><atem:function_calls><atem:invoke name="f">{}</atem:invoke>',
        ),
    ],
)
def test_an_object_in_the_place_of_parameters_is_the_arguments(tool: str, text: str) -> None:
    parsed = read(tool, text.replace("{}", '{"x": "a </b>", "n": 1.50}'))
    assert [call.arguments for call in parsed.calls] == ['{"x": "a </b>", "n": 1.50}']
    assert parsed.num_malformed == 0
    broken = read(tool, text.replace("{}", '{"x": oops}'))
    assert values(broken) == [("f", {})]
    assert broken.num_malformed == 1
    words = read(tool, text.replace("{}", "\nx is a"))
    assert words.num_malformed == 1 or tool in ("glm45", "poolside_v1")
    assert all(json.loads(call.arguments) == {} for call in words.calls)


@pytest.mark.parametrize("between", ["", "\n"])
def test_a_second_object_between_the_markers_is_a_second_call(between: str) -> None:
    first, second = '{"name": "f", "arguments": {}}', '{"name": "g", "arguments": {"x": "b"}}'
    parsed = read("hermes", f"<tool_call>{first}{between}{second}</tool_call>")
    assert values(parsed) == [("f", {}), ("g", {"x": "b"})]
    assert parsed.num_malformed == 0


@pytest.mark.parametrize("more", ['{"nam": "g"}', ", and", '{"name', "]", '{"name": 1}'])
def test_what_else_stands_before_the_end_marker_is_counted(more: str) -> None:
    parsed = read("hermes", f'<tool_call>{{"name": "f", "arguments": {{}}}}{more}</tool_call>')
    assert values(parsed) == [("f", {})]
    assert parsed.num_malformed == 1


def test_what_follows_in_a_block_and_is_no_call_is_counted() -> None:
    call = '{"name": "f", "arguments": {}}'
    parsed = read("minimax", f"<tool_calls>\n{call}\nand\n{call}\n</tool_calls>")
    assert (len(parsed.calls), parsed.num_malformed) == (1, 1)


KIMI = "<|tool_call_begin|>{} <|tool_call_argument_begin|>{{}}<|tool_call_end|>"


@pytest.mark.parametrize("noise", [" noise ", KIMI.format("functions.invalid.0"), "<|tool_call"])
def test_a_block_that_is_broken_does_not_hide_the_calls_after_it(noise: str) -> None:
    call = KIMI.format("functions.f:1")
    section = "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>"
    before = read("kimi_k2", "Help. " + section.format(noise + call))
    assert values(before) == [("f", {})]
    assert before.content == f"Help. <|tool_calls_section_begin|>{noise}"
    after = read("kimi_k2", "Help. " + section.format(call + noise + call) + " x")
    assert values(after) == [("f", {}), ("f", {})]
    assert (after.content, after.num_malformed) == ("Help. ", 1)


def test_step3_may_write_its_separator_between_calls() -> None:
    call = "<｜tool_call_begin｜><steptml:invoke name={}></steptml:invoke><｜tool_call_end｜>"
    calls = "<｜tool_sep｜>".join(map(call.format, "fg"))
    parsed = read("step3", f"<｜tool_calls_begin｜>{calls}<｜tool_calls_end｜>")
    assert values(parsed) == [("f", {}), ("g", {})]
    assert (parsed.content, parsed.num_malformed) == ("", 0)


def test_an_end_marker_inside_a_value_is_counted() -> None:
    text = (
        "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>the </tool_call> tag</arg_value>\n"
        "</tool_call>"
    )
    parsed = read("glm45", text)
    assert values(parsed) == [("f", {"x": "the "})]
    assert parsed.num_malformed == 1


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        ("minicpm5", '<function name="f"><param name="z">1</param></function>'),
        ("minicpm5", '<function name="f"><param>1</param></function>'),
        ("qwen3_coder", "<function=f><parameter=x>1</parameter>oops</function>"),
        ("qwen3_coder", "<function=f><parameter=x>1</parameter><parameter=x>2</parameter>"),
        ("minimax_m3", M3.format("oops")),
        ("minimax_m3", M3.format("]<]minimax[>[</x>")),
        ("gemma4", GEMMA.replace("{}", "{n:1,n:2}")),
        ("pythonic", "[f(n=1, n=2)]"),
        ("apertus", '<|tools_prefix|>[{"f": {}, "g": {}}]<|tools_suffix|>'),
    ],
)
def test_whatever_else_is_left_out_is_counted(tool: str, text: str) -> None:
    parsed = read(tool, text)
    assert [name for name, _ in values(parsed)] == ["f"]
    assert parsed.num_malformed == 1


# Arguments are an object.


OBJECTS: list[tuple[str, dict[str, object]]] = [
    ("null", {}),
    ('""', {}),
    ('" \\n"', {}),
    ('"{\\"x\\": \\"\\\\ud83d\\\\ude00\\"}"', {"x": "😀"}),
    ('" {}"', {}),
]


@pytest.mark.parametrize("tool", JSON_FORMATS)
def test_what_stands_for_an_object_is_one(tool: str) -> None:
    tool_format = TOOLS[tool]
    assert tool_format is not None
    for written, meant in OBJECTS:
        parsed = read(tool, render_calls(tool_format, [("f", written)]))
        assert values(parsed) == [("f", meant)], written
        assert parsed.num_malformed == 0, written


@pytest.mark.parametrize(
    "tool", [*JSON_FORMATS, "kimi_k2", "deepseek_v3", "deepseek_v31", "openai"]
)
def test_arguments_that_are_no_object_are_counted(tool: str) -> None:
    tool_format = TOOLS[tool]
    assert tool_format is not None
    for written in ('"x"', "0", "true", "[1]", '"[1]"', '"{oops}"'):
        parsed = read(tool, render_calls(tool_format, [("f", written)]))
        assert (len(parsed.calls), parsed.num_malformed) == (1, 1), written


@pytest.mark.parametrize(
    "tool",
    [
        *("kimi_k2", "deepseek_v3", "deepseek_v31", "openai"),
        *[name for name in SOME_TOOLS if isinstance(getattr(TOOLS[name], "body", 0), HeaderBody)],
    ],
)
@pytest.mark.parametrize("written", ["", " \n", "null", '""'])
def test_a_header_without_arguments_has_an_empty_object(tool: str, written: str) -> None:
    tool_format = TOOLS[tool]
    assert tool_format is not None
    parsed = read(tool, render_calls(tool_format, [("f", written), ("g", '{"x": "a"}')]))
    assert values(parsed) == [("f", {}), ("g", {"x": "a"})]
    assert parsed.num_malformed == 0


@pytest.mark.parametrize("following", ["", "[TOOL_CALLS]g[ARGS]{}"])
def test_mistrals_header_may_have_nothing_after_it(following: str) -> None:
    parsed = read("mistral", f"[TOOL_CALLS]f[ARGS]{following}")
    assert values(parsed) == [("f", {}), ("g", {})][: 1 + bool(following)]
    assert parsed.num_malformed == 0


# JSON that the worker writes.


@pytest.mark.parametrize(
    "tool",
    [
        name
        for name in SOME_TOOLS
        if not isinstance(getattr(TOOLS[name], "body", 0), JsonObjectBody | HeaderBody)
    ],
)
def test_what_the_worker_writes_is_json_however_the_call_breaks(tool: str) -> None:
    def invalid(text: str, chosen: Formats, options: Any, _generator: Any) -> str | None:
        events, num_malformed, *_ = outcome([text], *chosen, options)
        arguments: dict[int, str] = {}
        for kind, piece, *_, index in events:
            if kind in ("tool_call_start", "tool_call_arguments"):
                arguments[index] = arguments.get(index, "") + piece
        for written in arguments.values():
            try:
                if not isinstance(json.loads(written), dict):
                    return f"{written} is no object"
            except ValueError as error:
                return f"{written}: {error}"
        ended = sum(kind == "tool_call_end" for kind, *_ in events)
        return None if ended == len(arguments) or num_malformed else "a broken call is not counted"

    other_body_is_json = isinstance(getattr(TOOLS[tool], "other_body", None), JsonObjectBody)
    if other_body_is_json:
        pytest.skip("The other spelling of its calls is the model's own JSON.")
    assert find_broken(formats(tool, "none"), 400, f"json {tool}", invalid) is None


@pytest.mark.parametrize(
    ("tool", "text", "arguments"),
    [
        ("pythonic", "[f(x='O'Brien')]", {"x": "O"}),
        ("pythonic", "[f(o={'a': 1, 'b'})]", {"o": {"a": 1}}),
        ("pythonic", "[f(o={'a': 1, 'b': ]", {"o": {"a": 1, "b": None}}),
        ("pythonic", "[f(l=['a', g()])]", {"l": ["a", None]}),
        ("olmo3", "<function_calls>f(x='a' b)</function_calls>", {"x": "a"}),
        ("gemma4", '<|tool_call>call:f{x:<|"|>a<|"|> b}<tool_call|>', {"x": "a"}),
        ("gemma4", "<|tool_call>call:f{n:1<tool_call|>", {"n": 1}),
        ("gemma4", "<|tool_call>call:f{n:1,l<tool_call|>", {"n": 1}),
    ],
)
def test_a_call_that_breaks_is_closed(tool: str, text: str, arguments: dict[str, Any]) -> None:
    parsed = read(tool, text)
    assert values(parsed) == [("f", arguments)]
    assert parsed.num_malformed == 1


# One format each.


def test_mistrals_own_ids_are_the_calls_ids() -> None:
    header = "[TOOL_CALLS]get_weather[CALL_ID]{}[ARGS]{{}}"
    text = header.format("abcdefghi") + header.format("abcdefghi") + header.format("no id")
    first, second = read("mistral", text).calls
    assert (first.name, first.id) == ("get_weather", "abcdefghi")
    assert second.id != "abcdefghi"


@pytest.mark.parametrize("tool", ["qwen3_coder", "seed_oss", "step3p5"])
def test_python_literals_are_lists_and_objects_where_the_schema_wants_them(tool: str) -> None:
    text = (
        "<function=f>\n<parameter=l>\n['a', (1, None)]\n</parameter>\n<parameter=o>\n{'k': True}\n"
        "</parameter>\n<parameter=x>\n['a']\n</parameter>\n</function>"
    )
    assert values(read(tool, text)) == [
        ("f", {"l": ["a", [1, None]], "o": {"k": True}, "x": "['a']"})
    ]


@pytest.mark.parametrize("broken", ["<parameter=\nb>", "<parameter=b\n>", "<parameter=<b>>"])
def test_what_is_no_key_is_part_of_the_value(broken: str) -> None:
    text = f"<function=f>\n<parameter=x>\na {broken} c\n</parameter>\n</function>"
    parsed = read("qwen3_coder", text)
    assert values(parsed) == [("f", {"x": f"a {broken} c"})]
    assert parsed.num_malformed == 0


@pytest.mark.parametrize("end", ["</｜DSML｜invoke>\n", ""])
def test_the_line_feed_before_an_implicit_end_is_no_part_of_the_value(end: str) -> None:
    value = '<｜DSML｜parameter name="x" string="true">a\n'
    for following in ('<｜DSML｜parameter name="n" string="false">1</｜DSML｜parameter>', ""):
        text = DSML.format(f'\n<｜DSML｜invoke name="f">\n{value}{following}{end}')
        expected = {"x": "a", "n": 1} if following else {"x": "a"}
        assert values(read("deepseek_v32", text)) == [("f", expected)]


def test_kimis_singular_section_is_one() -> None:
    call = "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    text = f"<|tool_call_section_begin|>{call}<|tool_call_section_end|>"
    assert values(read("kimi_k2", text)) == [("f", {})]


@pytest.mark.parametrize("tool", SOME_TOOLS)
def test_an_opening_marker_may_be_doubled(tool: str) -> None:
    tool_format = TOOLS[tool]
    assert tool_format is not None
    text = render_calls(tool_format, [("f", '{"x": "a"}')])
    markers: Sequence[str] = tool_format.wrapper_starts or tool_format.body.starts
    opening = next((marker for marker in markers if text.startswith(marker)), "")
    if not opening.endswith((">", "]")) or (tool_format.framing and opening):
        return  # It begins with a name, or with nothing.
    for between in ("", "\n"):
        parsed = read(tool, opening + between + text)
        assert (values(parsed), parsed.content) == ([("f", {"x": "a"})], "")


@pytest.mark.parametrize(
    ("braces", "arguments"),
    [
        ("{d:{m:90}}", {"d": {"m": 90}}),
        ("{l:[1,2]}", {"l": [1, 2]}),
        ("{o:{a:true,b:null,c:1.50,d:text}}", {"o": {"a": True, "b": None, "c": 1.5, "d": "text"}}),
        ('{l:["ds_1"]}', {"l": ["ds_1"]}),
        ('{x:"a, {b}"}', {"x": "a, {b}"}),
        ("{x:true}", {"x": "true"}),
        ("{z:90}", {"z": 90}),
    ],
)
def test_gemmas_bare_values_are_no_strings(braces: str, arguments: dict[str, Any]) -> None:
    parsed = read("gemma4", GEMMA.replace("{}", braces))
    assert values(parsed) == [("f", arguments)]
    assert parsed.num_malformed == 0


@pytest.mark.parametrize(
    "text",
    [
        "<|tool_call>call:a b{n:1}<tool_call|>",
        "<|tool_call>call:<tool_call|>{n:1}",
        "<|tool_call>call:f\u3000{n:1}",
        "<|tool_call>call:{n:1}",
        f"<|tool_call>call:{'f' * 600}{{n:1}}",
    ],
)
def test_what_no_name_can_be_is_text(text: str) -> None:
    parsed = read("gemma4", text)
    assert (parsed.content, parsed.calls) == (text, [])


# Escapes of characters beyond the first 65,536, which JSON has in two halves.


@pytest.mark.parametrize(
    ("escapes", "meant"),
    [
        (r"\ud83d\ude00", "😀"),
        (r"\uD83D\uDE00!", "😀!"),
        (r"\ud83d", "\ufffd"),
        (r"\ude00a", "\ufffda"),
        (r"\ud83d\ud83d\ude00", "\ufffd😀"),
        (r"\ud83d\u0041", "\ufffdA"),
        (r"\ud83dx\ude00", "\ufffdx\ufffd"),
        (r"\ude00\ud83d", "\ufffd\ufffd"),
    ],
)
@pytest.mark.parametrize(
    ("tool", "before", "after"),
    [
        ("pythonic", "[f(x='", "')]"),
        ("pythonic", '[f(x={"a": """', '"""})]'),
        ("gemma4", '<|tool_call>call:f{x:"', '"}<tool_call|>'),
        (
            "hermes",
            r'<tool_call>{"name": "f", "arguments": "{\"x\": \"',
            r'\"}"}</tool_call>',
        ),
        (
            "qwen3_coder",
            '<tool_call><function=f><parameter=o>{"x": "',
            '"}</parameter></function></tool_call>',
        ),
    ],
)
def test_two_halves_are_one_character_and_one_is_none(
    tool: str, before: str, after: str, escapes: str, meant: str
) -> None:
    ((_, arguments),) = values(read(tool, before + escapes + after))
    (value,) = arguments.values()
    assert (value if isinstance(value, str) else value.popitem()[1]) == meant


def test_python_has_a_long_escape_of_half_a_pair_too() -> None:
    assert values(read("pythonic", r"[f(x='\U0000d83d')]")) == [("f", {"x": "\ufffd"})]


@pytest.mark.parametrize("kind", [["number", "string"], ["integer", "string"]])
@pytest.mark.parametrize(
    "text", ["12_34", "1_2.5", "１２.５", "١٢", "1e1_0", "0x1", "infinity", "."]
)
def test_what_only_python_takes_for_a_number_is_text(kind: list[str], text: str) -> None:
    assert json.loads(coerced(text, {"type": kind})) == text


@pytest.mark.parametrize(
    ("text", "number"),
    [("+1.5", 1.5), (".5", 0.5), ("5.", 5), ("-1e2", -100.0), (" 007.5 ", 7.5), ("1E+2", 100.0)],
)
def test_numbers_that_json_would_spell_otherwise_are_numbers(text: str, number: float) -> None:
    assert json.loads(coerced(text, {"type": ["number", "string"]})) == number


@pytest.mark.parametrize("blank", ["", "\n"])
def test_a_value_in_cdata_ends_with_its_element_also_on_the_next_line(blank: str) -> None:
    opening = '<function name="f"><param name="x"><![CDATA[<b>]] > </param>'
    text = f'{opening}]]>{blank}</param><param name="n">7</param></function>'
    assert values(read("minicpm5", text)) == [("f", {"x": "<b>]] > </param>", "n": 7})]


def test_bare_names_of_python_are_values_where_texts_have_quotes() -> None:
    """The templates of Gemma 4's first releases show null as None."""
    braces = "{n:None,l:[True,False,null,{a:None}],o:{k:None},x:None,z:None}"
    assert values(read("gemma4", GEMMA.replace("{}", braces))) == [
        (
            "f",
            {
                "n": None,
                "l": [True, False, None, {"a": None}],
                "o": {"k": None},
                "x": "None",  # the schema says text
                "z": None,
            },
        )
    ]

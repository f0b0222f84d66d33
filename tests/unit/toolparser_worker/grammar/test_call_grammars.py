import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import regex_to_lark

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.compiler import GrammarCompiler
from protocol.errors import ErrorCode
from protocol.wire.messages import Grammar, OpenParse
from tests.fakes.fuzz_effort import EFFORT
from tests.fakes.grammar_texts import compiler_for, random_walk
from tests.fakes.parsed_text import REASONING, TOOLS, Parsed
from tests.fakes.tiny_tokenizers import byte_level_tokenizer
from tests.fakes.tool_schemas import PARAMETERS, TEXT, a_tool, an_object
from toolparser_worker.errors import InvalidToolsError, UnsupportedToolsError
from toolparser_worker.grammar.lark import regex
from toolparser_worker.grammar.request import Wish, request_grammar
from toolparser_worker.machine.declarations import ReasoningFormat, ToolFormat
from toolparser_worker.machine.machine import Machine
from toolparser_worker.machine.render import render_calls
from toolparser_worker.machine.tool_schemas import ToolSchemas
from toolparser_worker.sessions import SessionStore
from toolparser_worker.tools import read_tools

TOKENIZER = byte_level_tokenizer()
FORMATS = {name: declared for name, declared in TOOLS.items() if declared is not None}
REASONING_FORMATS = {name: one for name, one in REASONING.items() if one is not None}
OTHER = a_tool("other", an_object(z={"type": "integer"}))
CITY = a_tool("get_weather", an_object(city=TEXT), strict=True)


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    with compiler_for(TOKENIZER) as compiler:
        yield compiler


def required(grammar: Grammar | None) -> Grammar:
    assert grammar is not None
    return grammar


def walk(compiler: GrammarCompiler, grammar: Grammar, seed: int, begin: str = "") -> str:
    """A whole random text that goes on from a beginning."""
    constraint = compiler.compile(grammar).start(jumps=True)
    begun = TOKENIZER.encode(begin, add_special_tokens=False)
    constraint.push_all(begun)
    assert not constraint.failure, f"{begin!r} is refused"
    token_ids, is_whole = random_walk(
        constraint, TOKENIZER.eos_token_ids, seed=seed, max_tokens=4000, eager_to_end=0.8
    )
    assert is_whole, "the text has no end"
    return TOKENIZER.decode([*begun, *token_ids])


def parse(
    text: str,
    tools: list[dict[str, Any]],
    tool_format: ToolFormat | None,
    reasoning_format: ReasoningFormat | None = None,
    prompt_tail: str = "",
) -> Parsed:
    machine = Machine(
        tool_format=tool_format,
        reasoning_format=reasoning_format,
        call_id=lambda index, name: f"{index}",
        tools=ToolSchemas(tools),
        prompt_tail=prompt_tail,
    )
    parsed = Parsed()
    parsed.add(machine.feed(text, ()))
    parsed.add(machine.finish())
    parsed.num_malformed = machine.num_malformed
    return parsed


def check_calls(parsed: Parsed, tools: list[dict[str, Any]]) -> None:
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    assert parsed.calls
    assert parsed.num_malformed == 0
    for call in parsed.calls:
        parameters = functions[call.name].get("parameters") or an_object()
        jsonschema.validate(json.loads(call.arguments), parameters)


@pytest.mark.parametrize("name", FORMATS)
def test_a_named_call_is_one_valid_call(name: str, compiler: GrammarCompiler) -> None:
    for kind, parameters in PARAMETERS.items():
        tools = [OTHER, a_tool("do_it", parameters)]
        wish = Wish(tools=tools, tool_choice="named", tool_name="do_it")
        grammar = required(request_grammar(FORMATS[name], None, wish))
        for seed in range(min(EFFORT, 2)):
            parsed = parse(walk(compiler, grammar, seed), tools, FORMATS[name])
            check_calls(parsed, tools)
            assert [call.name for call in parsed.calls] == ["do_it"], kind
            assert not parsed.content.strip(), kind


@pytest.mark.parametrize("name", FORMATS)
def test_a_required_choice_may_call_any_tool_and_several(
    name: str, compiler: GrammarCompiler
) -> None:
    tools = [OTHER, CITY]
    grammar = required(
        request_grammar(FORMATS[name], None, Wish(tools=tools, tool_choice="required"))
    )
    found = []
    for seed in range(8):
        parsed = parse(walk(compiler, grammar, seed), tools, FORMATS[name])
        check_calls(parsed, tools)
        found.append([call.name for call in parsed.calls])
    assert {called for calls in found for called in calls} == {"other", "get_weather"}
    assert max(map(len, found)) > 1
    alone = Wish(tools=tools, tool_choice="required", parallel_tool_calls=False)
    grammar = required(request_grammar(FORMATS[name], None, alone))
    for seed in range(4):
        assert len(parse(walk(compiler, grammar, seed), tools, FORMATS[name]).calls) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_a_strict_tool_is_enforced_once_its_call_begins(
    name: str, compiler: GrammarCompiler
) -> None:
    declared = FORMATS[name]
    tools = [CITY, a_tool("loose", an_object(k={"type": "integer"}), strict=True)]
    grammar = required(request_grammar(declared, None, Wish(tools=tools)))
    if grammar.after_marker is None:
        assert name == "pythonic"
        begin, free = "[", "Hello [1, 2] there."
    else:
        free = "Hello, is [1] < {2}?"
        is_first = declared.bare == "first" or declared.framing is not None
        begin = f"{'' if is_first else 'Hello. '}{grammar.after_marker}"
    constraint = compiler.compile(grammar).start(jumps=True)
    constraint.push_all(TOKENIZER.encode(free, add_special_tokens=False))
    assert constraint.is_accepting
    names: set[str] = set()
    for seed in range(6):
        text = walk(compiler, grammar, seed, begin)
        parsed = parse(text, tools, declared)
        assert parsed.calls, text
        check_calls(parsed, tools)
        names.update(call.name for call in parsed.calls)
    assert names == {"get_weather", "loose"}


@pytest.mark.parametrize(
    "name", ["hermes", "deepseek_v3", "qwen3_coder", "functiongemma", "gemma4"]
)
def test_beside_a_strict_tool_the_others_take_any_arguments(
    name: str, compiler: GrammarCompiler
) -> None:
    declared = FORMATS[name]
    tools = [CITY, a_tool("loose", an_object(k={"type": "integer"}))]
    grammar = required(request_grammar(declared, None, Wish(tools=tools)))
    constraint = compiler.compile(grammar).start(jumps=True)
    written = render_calls(declared, [("loose", '{"anything": "at all"}')])
    constraint.push_all(TOKENIZER.encode(written, add_special_tokens=False))
    assert constraint.is_accepting


def test_without_strict_tools_nothing_is_enforced() -> None:
    for wish in (
        Wish(tools=[OTHER]),
        Wish(tools=[a_tool("f", None, strict=False)]),
        Wish(tools=(), tool_choice="auto"),
    ):
        assert request_grammar(FORMATS["hermes"], None, wish) is None


@pytest.mark.parametrize("name", REASONING_FORMATS)
def test_reasoning_comes_before_a_required_call_where_the_format_has_it(
    name: str, compiler: GrammarCompiler
) -> None:
    reasoning = REASONING_FORMATS[name]
    tool_format = FORMATS.get(name, FORMATS["hermes"])
    if reasoning.framing is not None:
        tool_format = FORMATS[{"openai_gptoss": "openai"}.get(name, name)]
    wish = Wish(tools=[CITY], tool_choice="required")
    grammar = required(request_grammar(tool_format, reasoning, wish))
    start = reasoning.rendered_start or next(iter(reasoning.starts), "")
    end = reasoning.rendered_end or min(reasoning.ends, key=len, default="")
    has_reasoning = bool(end) and reasoning.opens != "prompted"
    begin = f"{start}Let me think.{end}" if has_reasoning else ""
    parsed = parse(walk(compiler, grammar, 1, begin), [CITY], tool_format, reasoning)
    check_calls(parsed, [CITY])
    assert parsed.reasoning == ("Let me think." if has_reasoning else "")


def test_a_prompt_that_closed_the_reasoning_leaves_none(compiler: GrammarCompiler) -> None:
    wish = Wish(tools=[CITY], tool_choice="required", prompt_tail="<think>\n\n</think>\n\n")
    grammar = required(request_grammar(FORMATS["hermes"], REASONING_FORMATS["qwen3"], wish))
    assert walk(compiler, grammar, 0).startswith("<tool_call>")


def test_a_prompt_that_opened_the_reasoning_must_see_its_end(compiler: GrammarCompiler) -> None:
    wish = Wish(tools=[CITY], tool_choice="required", prompt_tail="<think>\n")
    grammar = required(request_grammar(FORMATS["hermes"], REASONING_FORMATS["deepseek_v3"], wish))
    text = walk(compiler, grammar, 0, "So. </think>")
    parsed = parse(text, [CITY], FORMATS["hermes"], REASONING_FORMATS["deepseek_v3"], "<think>\n")
    assert parsed.reasoning == "So. "
    check_calls(parsed, [CITY])


RESPONSES = {
    "schema": Grammar(kind="json_schema", source=json.dumps(an_object(a={"enum": ["x"]}))),
    "object": Grammar(kind="json_object", source=""),
    "regex": Grammar(kind="regex", source="[ab]{3}/"),
    "choice": Grammar(kind="choice", source='["yes", "no"]'),
    "lark": Grammar(kind="lark", source='start: "{" X "}"\nX: /[0-9]{2}/\n'),
}


@pytest.mark.parametrize("kind", RESPONSES)
def test_the_wanted_content_comes_after_the_reasoning(kind: str, compiler: GrammarCompiler) -> None:
    reasoning = REASONING_FORMATS["deepseek_r1"]
    wish = Wish(response=RESPONSES[kind])
    grammar = required(request_grammar(None, reasoning, wish))
    text = walk(compiler, grammar, 3, "<think>Hm.</think>")
    parsed = parse(text, [], None, reasoning)
    assert parsed.reasoning == "Hm."
    alone = compiler.compile(RESPONSES[kind]).start(jumps=True)
    if kind != "object":
        alone.push_all(TOKENIZER.encode(parsed.content, add_special_tokens=False))
        assert alone.is_accepting
    else:
        assert isinstance(json.loads(parsed.content), dict)


def test_a_request_without_reasoning_keeps_its_own_grammar() -> None:
    wanted = RESPONSES["schema"]
    assert request_grammar(None, None, Wish(response=wanted)) == wanted
    closed = Wish(response=wanted, prompt_tail="<think></think>")
    assert request_grammar(None, REASONING_FORMATS["qwen3"], closed) == wanted


def accepts(compiler: GrammarCompiler, grammar: Grammar, text: str) -> bool:
    constraint = compiler.compile(grammar).start(jumps=True)
    constraint.push_all(TOKENIZER.encode(text, add_special_tokens=False))
    return constraint.is_accepting and not constraint.failure


@pytest.mark.parametrize(
    ("kind", "source", "good", "bad"),
    [
        ("regex", r"\d+", "12", "٣"),
        ("regex", r"[\d/]\D\w", "/٣٣", "٣a٣"),
        ("json_schema", '{"const": 0.1234567890123456789012}', "0.1234567890123456789012", "0.1"),
        ("json_schema", '{"const": 1e400}', "1e400", "1e401"),
        (
            "json_schema",
            '{"x-guidance": {"item_separator": ",", "whitespace_flexible": true}, "items": '
            '{"const": 1}, "type": "array"}',
            "[1, 1]",
            "[1,1]",
        ),
        (
            "json_schema",
            '\n{"properties": {"a": {"const": "//%json {}"}},\n"required": ["a"]\n} ',
            '{"a": "//%json {}"}',
            "{}",
        ),
        ("json_schema", " { } ", '{"a": 1}', '{"a" 1}'),
        ("json_schema", "true", '{"a": 1}', '{"a" 1}'),
        ("json_object", "", '{\n  "a": [\n    1\n  ]\n}', "[1]"),
        ("json_object", "", '{"a": {"b": "é"}}', '{\t"a": 1}'),
        ("choice", '["a/b", "a/b", "c"]', "a/b", "b"),
    ],
)
def test_the_same_content_is_good_with_and_without_reasoning(
    kind: Literal["json_schema", "json_object", "regex", "choice"],
    source: str,
    good: str,
    bad: str,
    compiler: GrammarCompiler,
) -> None:
    direct = Grammar(kind=kind, source=source)
    wish = Wish(response=direct)
    reasoning = required(request_grammar(None, REASONING_FORMATS["deepseek_r1"], wish))
    assert (accepts(compiler, direct, good), accepts(compiler, direct, bad)) == (True, False)
    assert accepts(compiler, reasoning, f"<think>Hm.</think>{good}")
    assert not accepts(compiler, reasoning, f"<think>Hm.</think>{bad}")


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        *(("json_schema", source) for source in ("[]", "5", "false", "{", '{"const": NaN}')),
        *(("choice", source) for source in ("[]", '["a", ""]', '{"a": 1}', "[1]")),
    ],
)
def test_content_that_cannot_be_held_to_is_refused_with_and_without_reasoning(
    kind: Literal["json_schema", "choice"], source: str, compiler: GrammarCompiler
) -> None:
    direct = Grammar(kind=kind, source=source)
    with pytest.raises(UnsupportedGrammarError):
        compiler.compile(direct)
    with pytest.raises((UnsupportedGrammarError, UnsupportedToolsError)):
        compiler.compile(
            required(request_grammar(None, REASONING_FORMATS["qwen3"], Wish(response=direct)))
        )


@given(
    pattern=st.text(alphabet="\\dDwWsSb/[]^-+n\n\r\t()a#é{|}$. "),
    ascii_words=st.booleans(),
)
def test_regular_expressions_are_written_as_engines_write_them(
    pattern: str, ascii_words: bool
) -> None:
    of_engines = regex_to_lark(pattern, use_ascii="dw" if ascii_words else "d")
    assert regex(pattern, ascii_words=ascii_words) == f"/{of_engines}/"


def test_digits_of_a_strict_pattern_are_those_of_ascii(compiler: GrammarCompiler) -> None:
    tools = [a_tool("f", an_object(a={"type": "string", "pattern": r"^\d\w$"}))]
    wish = Wish(tools=tools, tool_choice="required")
    grammar = required(request_grammar(FORMATS["qwen3_coder"], None, wish))
    call = render_calls(FORMATS["qwen3_coder"], [("f", '{"a": "VALUE"}')])
    assert accepts(compiler, grammar, call.replace("VALUE", "1a"))
    assert not accepts(compiler, grammar, call.replace("VALUE", "٣a"))
    assert not accepts(compiler, grammar, call.replace("VALUE", "1é"))


def test_the_style_of_calls_is_not_their_clients_to_choose(compiler: GrammarCompiler) -> None:
    parameters = an_object(a={"const": 1}, b={"const": 1})
    parameters["x-guidance"] = {"item_separator": ",", "whitespace_flexible": True}
    wish = Wish(tools=[a_tool("f", parameters)], tool_choice="required")
    grammar = required(request_grammar(FORMATS["hermes"], None, wish))
    call = render_calls(FORMATS["hermes"], [("f", '{"a": 1, "b": 1}')])
    assert accepts(compiler, grammar, call)
    assert not accepts(compiler, grammar, call.replace("1, ", "1,"))


@pytest.mark.parametrize("name", ["openai_gptoss", "inkling", "muse_glimmer"])
def test_content_stands_in_the_message_that_the_format_has_for_it(
    name: str, compiler: GrammarCompiler
) -> None:
    reasoning = REASONING_FORMATS[name]
    grammar = required(request_grammar(None, reasoning, Wish(response=RESPONSES["choice"])))
    framing = reasoning.framing
    assert framing is not None
    text = walk(compiler, grammar, 0, framing.rendered_content)
    parsed = parse(text, [], None, reasoning)
    assert parsed.content in ("yes", "no")


def test_tools_and_wanted_content_are_one_or_the_other(compiler: GrammarCompiler) -> None:
    wish = Wish(tools=[CITY], response=RESPONSES["choice"])
    grammar = required(request_grammar(FORMATS["hermes"], None, wish))
    texts = [walk(compiler, grammar, seed) for seed in range(12)]
    contents = {text for text in texts if "<tool_call>" not in text}
    assert contents
    assert contents <= {"yes", "no"}
    for text in set(texts) - contents:
        check_calls(parse(text, [CITY], FORMATS["hermes"]), [CITY])


@pytest.mark.parametrize(
    ("name", "parameters", "reason"),
    [
        ("pythonic", an_object(None, **{"not a name": TEXT}), "no name that Python has"),
        ("gemma4", an_object(None, **{"a:b": TEXT}), "can't be written in this format"),
        ("qwen3_coder", an_object(None, **{"a>b": TEXT}), "can't be written in this format"),
        ("minimax_m3", an_object(item=TEXT), "read as a list"),
        ("glm45", an_object(a={"allOf": [TEXT, {"type": "object"}]}), "allows nothing"),
        ("glm45", an_object(a={"$ref": "#/$defs/nowhere"}), "goes nowhere"),
        ("glm45", an_object(a={"$ref": "http://x/y"}), "goes outside"),
        ("pythonic", {"anyOf": [{"type": "array"}, TEXT]}, "an object"),
    ],
)
def test_what_a_format_can_not_express_is_refused_with_the_tool_and_the_reason(
    name: str, parameters: dict[str, Any], reason: str
) -> None:
    tools = [a_tool("do_it", parameters)]
    with pytest.raises(UnsupportedToolsError) as caught:
        request_grammar(FORMATS[name], None, Wish(tools=tools, tool_choice="required"))
    assert caught.value.code is ErrorCode.UNSUPPORTED_GRAMMAR
    assert caught.value.param == "tools"
    assert "'do_it'" in caught.value.message
    assert reason in caught.value.message


NUMBERS = "[123456789012345678901234567890, 0.1000000000000000055]"


@pytest.mark.parametrize("name", ["hermes", "pythonic", "gemma4", "qwen3_coder", "minimax_m3"])
def test_numbers_of_a_tool_keep_every_digit(name: str, compiler: GrammarCompiler) -> None:
    """In formats that write JSON and in those that spell values as text."""
    parameters = an_object(a={"enum": [1, 2]})
    listed = json.dumps([a_tool("do_it", parameters, strict=True)]).replace("[1, 2]", NUMBERS)
    wish = Wish(tools=read_tools(listed), tool_choice="required", parallel_tool_calls=False)
    grammar = required(request_grammar(FORMATS[name], None, wish))
    texts = {walk(compiler, grammar, seed) for seed in range(12)}
    for number in NUMBERS[1:-1].split(", "):
        assert any(number in text for text in texts)


def test_alternatives_of_alternatives_are_counted_no_further_than_they_may_go() -> None:
    definitions: dict[str, Any] = {"d0": TEXT}
    for number in range(1, 40):
        below = {"$ref": f"#/$defs/d{number - 1}"}
        definitions[f"d{number}"] = {"anyOf": [below, below]}
    parameters = an_object(a={"$ref": "#/$defs/d39"}) | {"$defs": definitions}
    wish = Wish(tools=[a_tool("do_it", parameters)], tool_choice="required")
    with pytest.raises(UnsupportedToolsError, match="more than 256 forms"):
        request_grammar(FORMATS["pythonic"], None, wish)


# Anything that has passed `check_parameters`, and much that has not.

KEYWORDS = st.sampled_from(
    [
        *("type", "properties", "required", "items", "anyOf", "enum", "const", "$ref", "$defs"),
        *("minItems", "maxItems", "minLength", "maxLength", "pattern", "format", "minimum", "x"),
        *("additionalProperties", "definitions", "a", "b", "allOf", "oneOf", "not", "if", "then"),
        *("uniqueItems", "contains", "prefixItems", "patternProperties", "dependentRequired"),
        *("minProperties", "maxProperties", "unevaluatedProperties", "$schema"),
    ]
)
ANY_SCHEMA = st.recursive(
    st.sampled_from(
        [
            *("string", "object", "array", "integer", "#", "#/x", "#/$defs/a", "#/x/a", "#a"),
            *(7, -1, 2.5, None, True, False, "abc", "date", "^a$", ["a"], [], {}),
            *({"type": "string"}, {"type": "array", "items": {"$ref": "#/x/a"}}),
        ]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "pythonic", "gemma4", "minimax_m3"])
@settings(max_examples=40 * EFFORT)
@given(parameters=st.dictionaries(KEYWORDS, ANY_SCHEMA, max_size=5))
def test_any_schema_is_written_or_refused_and_none_is_held_when_its_request_is_over(
    name: str, parameters: dict[str, Any]
) -> None:
    # Half of them lead to a part that stands where no schema stands.
    parameters.setdefault("properties", {"a": {"$ref": "#/x/a"}})
    tools = [a_tool("do_it", parameters)]
    with suppress(UnsupportedToolsError):
        request_grammar(FORMATS[name], None, Wish(tools=tools, tool_choice="required"))
    store = SessionStore(max_sessions=2, idle_timeout_s=60.0, clock=lambda: 0.0)
    opening = OpenParse(
        request_id="r",
        attempt=1,
        tool_format=name,
        tools_json=json.dumps(tools),
        tool_choice="required",
    )
    with suppress(InvalidToolsError, UnsupportedToolsError):
        store.open(("g", "r", 1), opening)
    store.close_gateway("g")
    assert len(store._tools) == 0


@pytest.mark.parametrize("name", ["pythonic", "gemma4", "minimax_m3", "hermes"])
def test_schemas_of_any_depth_are_enforced_or_refused(name: str) -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        deep = an_object(a=deep)
    tools = [a_tool("do_it", deep)]
    wish = Wish(tools=tools, tool_choice="required")
    if name == "hermes":
        assert request_grammar(FORMATS[name], None, wish) is not None
    else:
        with pytest.raises(UnsupportedToolsError, match="too deep"):
            request_grammar(FORMATS[name], None, wish)
    assert ToolSchemas(tools).has("do_it")


@pytest.mark.parametrize(
    "response",
    [Grammar(kind="json_schema", source="{"), Grammar(kind="choice", source='{"a": 1}')],
)
def test_wanted_content_that_is_no_json_is_refused(response: Grammar) -> None:
    with pytest.raises(UnsupportedToolsError, match="wanted content"):
        request_grammar(None, REASONING_FORMATS["deepseek_r1"], Wish(response=response))

"""Single facts about the machine, one text each."""

import json
import tracemalloc

import pytest

from tests.fakes.parsed_text import MADE_UP, REASONING, TOOLS, new_machine, parse

HERMES = TOOLS["hermes"]
LLAMA = TOOLS["llama3_json"]
THINK = REASONING["think"]
R1 = REASONING["deepseek_r1"]
QWEN3 = REASONING["qwen3"]
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


def test_a_hermes_call_is_taken_out_of_the_text() -> None:
    parsed = parse(f"Let me see.\n{CALL}", HERMES)
    assert parsed.content == "Let me see.\n"
    assert [(c.name, c.arguments, c.is_complete) for c in parsed.calls] == [("f", '{"x": 1}', True)]
    assert parsed.num_malformed == 0


def test_arguments_are_the_verbatim_slice_of_the_text() -> None:
    arguments = '{ "a" : [1,\n 2.50e+3], "s": "\\u00e9 \\/ é </tool_call>" }'
    parsed = parse(f'<tool_call>{{"name":"f","arguments":{arguments}}}</tool_call>', HERMES)
    assert parsed.calls[0].arguments == arguments


def test_the_name_leaves_before_the_arguments_are_there() -> None:
    machine = new_machine(HERMES, None)
    events = machine.feed('<tool_call>{"name": "f"')
    assert [event.kind for event in events] == ["tool_call_start"]


def test_arguments_that_come_first_wait_for_the_name() -> None:
    machine = new_machine(HERMES, None)
    assert machine.feed('<tool_call>{"arguments": {"x": 1}, "na') == ()
    events = machine.feed('me": "f"}')
    assert [(event.kind, event.name, event.text) for event in events] == [
        ("tool_call_start", "f", ""),
        ("tool_call_arguments", "", '{"x": 1}'),
        ("tool_call_end", "", ""),
    ]


def test_missing_arguments_become_an_empty_object() -> None:
    assert parse('<tool_call>{"name": "f"}</tool_call>', HERMES).calls[0].arguments == "{}"


def test_a_last_block_may_lack_its_end_tag() -> None:
    parsed = parse('<tool_call>\n{"name": "f", "arguments": {}}\n', HERMES)
    assert parsed.calls[0].is_complete
    assert parsed.content == ""


def test_other_members_are_part_of_the_call() -> None:
    parsed = parse(
        '<tool_call>{"id": [1], "name": "f", "arguments": {}, "z": {}}</tool_call>', HERMES
    )
    assert [call.arguments for call in parsed.calls] == ["{}"]
    assert parsed.content == ""


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>not json</tool_call>",
        "<tool_call></tool_call>",
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {"x": 1}}</tool_call>',
        '<tool_call>{"arguments": {broken}, "name": "f"}</tool_call>',
        '<tool_call>{"na',
        "<tool_call>  ",
        "<tool_cal",
        '<tool_call>[{"name": "f"}]</tool_call>',
    ],
)
def test_what_breaks_before_its_name_is_content_character_for_character(text: str) -> None:
    parsed = parse(f"a {text}", HERMES)
    assert parsed.content == f"a {text}"
    assert parsed.calls == []
    assert parsed.num_malformed == 0


def test_a_broken_block_does_not_hide_the_call_after_it() -> None:
    parsed = parse(f"<tool_call>oops {CALL}", HERMES)
    assert parsed.content == "<tool_call>oops "
    assert len(parsed.calls) == 1


def test_the_rest_of_a_call_that_breaks_after_its_name_leaves_as_arguments() -> None:
    parsed = parse(
        f'<tool_call>{{"name": "f", "arguments": {{"x": oops}}}}</tool_call>{CALL}', HERMES
    )
    assert [(c.arguments, c.is_complete) for c in parsed.calls] == [
        ('{"x": oops}}', True),
        ('{"x": 1}', True),
    ]
    assert parsed.num_malformed == 1


def test_a_raw_newline_in_a_string_is_counted_but_does_not_lose_the_end() -> None:
    arguments = '{"code": "a\nb </tool_call> c"}'
    parsed = parse(f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>', HERMES)
    assert parsed.calls[0].arguments == arguments
    assert parsed.num_malformed == 1


def test_an_unfinished_call_has_no_end_and_is_counted() -> None:
    parsed = parse('<tool_call>{"name": "f", "arguments": {"x": 1', HERMES)
    assert (parsed.calls[0].arguments, parsed.calls[0].is_complete) == ('{"x": 1', False)
    assert parsed.num_malformed == 1


def test_white_space_alone_before_a_call_is_no_content() -> None:
    assert parse(f"\n\n{CALL}", HERMES).content == ""
    assert parse("\n\n", HERMES).content == "\n\n"
    assert parse("\n\nx", HERMES).content == "\n\nx"
    assert parse('\n<<{"tool": "f"}>> x', MADE_UP).content == " x"


def test_without_a_tool_format_markup_stays_in_the_content() -> None:
    parsed = parse(CALL)
    assert parsed.content == CALL
    assert parsed.calls == []


def test_only_the_first_call_is_kept_when_calls_may_not_be_parallel() -> None:
    parsed = parse(f"{CALL}\n{CALL}", HERMES, parallel_tool_calls=False)
    assert [call.name for call in parsed.calls] == ["f"]
    assert parsed.content == ""
    broken = parse(f'{CALL}<tool_call>{{"name": "g", oops', HERMES, parallel_tool_calls=False)
    assert (len(broken.calls), broken.num_malformed) == (1, 0)


def test_text_between_and_after_calls_follows_the_declaration() -> None:
    assert parse(f"a {CALL} b {CALL} c", HERMES).content == "a "
    text = 'a <<{"tool":"f","args":{}}>> b <<!{"args":1,"fn":"g"}\n>> c'
    parsed = parse(text, MADE_UP)
    assert parsed.content == "a  b  c"
    assert [(call.name, call.arguments) for call in parsed.calls] == [("f", "{}"), ("g", "1")]


def test_llama_calls_are_bare_objects() -> None:
    text = (
        '{"name": "f", "parameters": {"x": 1}}; {"type": "function", "name": "g", "arguments": {}}'
    )
    parsed = parse(text, LLAMA)
    assert [(call.name, call.arguments) for call in parsed.calls] == [
        ("f", '{"x": 1}'),
        ("g", "{}"),
    ]
    assert parsed.content == ""


@pytest.mark.parametrize(
    "text",
    [
        'Use {x: 1} and {"city": "Paris", "name": "x", "parameters": {}}.',
        '{"name": "Bob", "age": 3}',
        '{"name": "Bob"}',
        '{"result": {"name": "f", "parameters": {}}}',
        '<|python_tag|>print("x")',
        "{{{{",
    ],
)
def test_json_that_is_no_llama_call_stays_content(text: str) -> None:
    parsed = parse(text, LLAMA)
    assert parsed.content == text
    assert parsed.calls == []


def test_json_in_an_answer_streams_once_it_cannot_be_a_call() -> None:
    machine = new_machine(LLAMA, None)
    assert machine.feed('{"city"') != ()
    assert "".join(event.text for event in machine.feed(': "Par')) == ': "Par'


@pytest.mark.parametrize(
    ("reasoning", "text", "expected"),
    [
        (THINK, "<think>a</think>b", ("a", "b")),
        (THINK, "\n<think>a", ("a", "")),
        (THINK, "a</think>b", ("", "a</think>b")),
        (THINK, "a <think>b</think>", ("", "a <think>b</think>")),
        (THINK, "<think>a</think>b</think>c", ("a", "bc")),
        (THINK, "<thin", ("", "<thin")),
        (R1, "a</think>b", ("a", "b")),
        (R1, "<think>a</think>b</think>c", ("a", "b</think>c")),
        (R1, "a<tool_call>b", ("a<tool_call>b", "")),
        (QWEN3, "a</think>b</think>c", ("a", "bc")),
        (QWEN3, "a<tool_call>b</think>", ("a<tool_call>b", "")),
        (QWEN3, "a<tool_call>\n<function=f>", ("a", "<tool_call>\n<function=f>")),
        (QWEN3, "  ", ("  ", "")),
    ],
)
def test_reasoning_is_told_from_content(
    reasoning: None, text: str, expected: tuple[str, str]
) -> None:
    parsed = parse(text, None, reasoning)
    assert (parsed.reasoning, parsed.content) == expected


def test_the_prompt_can_open_the_reasoning() -> None:
    parsed = parse("a</think>b", None, THINK, prompt_tail="<|assistant|><think>\n")
    assert (parsed.reasoning, parsed.content) == ("a", "b")


def test_the_prompt_can_close_the_reasoning() -> None:
    tail = "<|assistant|><think>\n\n</think>\n\n"
    for reasoning in (THINK, R1, QWEN3):
        parsed = parse("a</think>b", None, reasoning, prompt_tail=tail)
        assert (parsed.reasoning, parsed.content) == ("", "a</think>b")


def test_reasoning_of_an_earlier_turn_does_not_close_it() -> None:
    tail = "<think>x</think>y<|im_end|><|im_start|>assistant\n"
    assert parse("a</think>b", None, R1, prompt_tail=tail).reasoning == "a"


def test_a_call_right_after_the_reasoning_is_found() -> None:
    parsed = parse(f"<think>a</think>\n{CALL}", HERMES, THINK)
    assert (parsed.reasoning, parsed.content, len(parsed.calls)) == ("a", "", 1)


def test_a_call_inside_the_reasoning_ends_it() -> None:
    parsed = parse(f"<think>a {CALL}</think>", HERMES, THINK)
    assert (parsed.reasoning, parsed.content, len(parsed.calls)) == ("a ", "", 1)


def test_what_only_resembles_a_call_stays_reasoning() -> None:
    parsed = parse("<think>use <tool_call> tags</think>b", HERMES, THINK)
    assert (parsed.reasoning, parsed.content) == ("use <tool_call> tags", "b")


def test_a_bare_object_inside_the_reasoning_is_no_call() -> None:
    text = '<think>{"name": "f", "parameters": {}}</think>{"name": "g", "parameters": {}}'
    parsed = parse(text, LLAMA, THINK)
    assert [call.name for call in parsed.calls] == ["g"]


def test_reasoning_tokens_are_counted_by_where_they_end() -> None:
    text = "<think>ab</think>cd"
    ends = [7, 8, 9, 17, 18, 19]
    assert parse(text, None, THINK, ends).num_reasoning_tokens == 4
    assert parse(list(text), None, THINK, ends).num_reasoning_tokens == 4


def test_tokens_of_a_call_inside_the_reasoning_are_no_reasoning_tokens() -> None:
    text = f"<think>ab{CALL}"
    assert parse(list(text), HERMES, THINK, range(1, len(text) + 1)).num_reasoning_tokens == 9


def test_tokens_beyond_the_text_belong_to_the_last_region() -> None:
    machine = new_machine(None, THINK)
    machine.feed("<think>a", [7, 8, 12])
    machine.finish()
    assert machine.num_reasoning_tokens == 3


def test_lone_surrogates_and_nul_are_ordinary_characters() -> None:
    text = 'a\ud800\x00<tool_call>{"name": "f", "arguments": {"x": "\ud800"}}'
    parsed = parse(text, HERMES)
    assert parsed.content == "a\ud800\x00"
    assert parsed.calls[0].arguments == '{"x": "\ud800"}'


def test_a_number_of_a_million_digits_passes() -> None:
    number = "1" * 1_000_000
    parsed = parse(f'<tool_call>{{"name": "f", "arguments": {number}}}</tool_call>', HERMES)
    assert parsed.calls[0].arguments == number
    parsed = parse(f'<tool_call>{{"name": {number}, "arguments": 1}}</tool_call>', HERMES)
    assert parsed.calls == []


def test_ten_thousand_brackets_pass() -> None:
    arguments = '{"x": ' + "[" * 10_000 + "]" * 10_000 + "}"
    parsed = parse(f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>', HERMES)
    assert parsed.calls[0].arguments == arguments
    assert parsed.num_malformed == 0


def test_a_long_stream_holds_little() -> None:
    machine = new_machine(HERMES, THINK)
    machine.feed('<think>x</think><tool_call>{"name": "f", "arguments": {"s": "')
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(50_000):
            machine.feed("abcd", (1,))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 64 * 1024


def test_calls_with_json_of_every_type_round_trip_through_python() -> None:
    value = {"s": "é\n\"'", "n": [1, -2.5e-3, None, True], "o": {"</tool_call>": "<tool_call>"}}
    text = f'<tool_call>{{"name": "f", "arguments": {json.dumps(value)}}}</tool_call>'
    assert json.loads(parse(list(text), HERMES).calls[0].arguments) == value

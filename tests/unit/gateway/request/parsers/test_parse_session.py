"""A generation's text on its way through a parser, and through the next one when the first is
lost."""

from typing import Any

import pytest

from gateway.errors import (
    UnsupportedFieldError,
)
from gateway.request.delivery.events import (
    ChoiceFinished,
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallStarted,
)
from gateway.request.jobs.answer_options import AnswerOptions
from gateway.request.parsers.parsing import parse_opening
from protocol.wire.messages import (
    CloseParse,
    Grammar,
    OpenParse,
    ParseEvent,
    SamplingParams,
    TokenLogprob,
    TokenLogprobs,
    Usage,
)
from tests.fakes.parsed_generation import Parsed, content
from tests.fakes.request_parts import engine_offer, generation_job


async def test_what_a_parser_is_told_and_what_it_says_to_the_engine() -> None:
    case = Parsed(
        parse_reasoning=True,
        enforced_tools_json='[{"f":1}]',
        tool_choice="named",
        tool_name="f",
        parallel_tool_calls=False,
        thinking=True,
        answer_so_far="so far",
        response_grammar=Grammar(kind="regex", source="a"),
        options=AnswerOptions(num_choices=2, num_answers=2),
    )
    one = case.parts.parser()
    started = await case.opening()
    assert case.parts.parser_wire.of(OpenParse) == [
        OpenParse(
            request_id="r",
            attempt=1,
            num_choices=2,
            tool_format="hermes",
            reasoning_format="think",
            tools_json='[{"f":1}]',
            tool_choice="named",
            tool_name="f",
            parallel_tool_calls=False,
            prompt_tail="tail",
            thinking=True,
            response_grammar=Grammar(kind="regex", source="a"),
            trace_id="trace",
            answer_so_far="so far",
        )
    ]
    assert case.parts.generates() == []
    grammar = Grammar(kind="lark", source="start: /b/")
    await case.opened(one, keep_special_tokens=("<tool>",), grammar=grammar)
    await started.task
    generate = case.parts.generates()[0]
    assert (generate.keep_special_tokens, generate.grammar) == (("<tool>",), grammar)


async def test_text_is_told_apart_and_the_finish_waits_for_the_parser() -> None:
    case = Parsed(parse_reasoning=True)
    parts, one = case.parts, case.parts.parser()
    started = await case.running(one)
    await parts.output(case.engine, 2, text="ab", token_ends=(1, 2))
    assert case.fed() == [("p", 0, 1, "ab", (1, 2), False)]
    assert await started.events() == []
    await case.parsed(
        one,
        ParseEvent(kind="reasoning", text="why"),
        content("a"),
        ParseEvent(kind="tool_call_start", index=0, id="id", name="f"),
        ParseEvent(kind="tool_call_arguments", index=0, text="{}"),
        ParseEvent(kind="tool_call_end", index=0),
        num_reasoning_tokens=1,
    )
    assert await started.events() == [
        ReasoningText(0, "why"),
        ContentText(0, "a"),
        ToolCallStarted(0, 0, "id", "f"),
        ToolCallArguments(0, 0, "{}"),
    ]
    await parts.finish(case.engine, usage=Usage(prompt_tokens=5, completion_tokens=2))
    assert case.fed()[1:] == [("p", 0, 1, "", (), True)]
    assert await started.events() == []
    assert (parts.num_slots, len(parts.outbox.settles)) == (0, 0)
    await case.parsed(one, final=True, num_reasoning_tokens=1, num_malformed=3)
    usage = Usage(prompt_tokens=5, completion_tokens=2, reasoning_tokens=1)
    assert await started.events() == [ChoiceFinished(0, "tool_calls", usage)]
    assert [settle.reasoning_tokens for settle in parts.outbox.settles] == [1]
    assert len(parts.parser_wire.of(CloseParse)) == 1
    rendered = parts.metrics.render().decode()
    assert 'malformed_tool_calls_total{model="m"} 3.0' in rendered


@pytest.mark.parametrize(
    ("tool_choice", "reason", "num_ends", "expected"),
    [
        ("auto", "stop", 1, "tool_calls"),
        ("auto", "stop", 0, "stop"),
        ("auto", "length", 1, "length"),
        ("named", "stop", 1, "stop"),
    ],
)
async def test_an_answer_that_calls_whole_tools_says_so_unless_it_had_to(
    tool_choice: str, reason: Any, num_ends: int, expected: str
) -> None:
    case = Parsed(tool_choice=tool_choice)
    one = case.parts.parser()
    started = await case.running(one)
    await case.parsed(one, *[ParseEvent(kind="tool_call_end", index=0)] * num_ends)
    await case.parts.finish(case.engine, reason)
    await case.parsed(one, final=True)
    (end,) = await started.events()
    assert end.finish_reason == expected


async def test_choices_are_told_apart() -> None:
    case = Parsed(options=AnswerOptions(num_choices=2, num_answers=2))
    one = case.parts.parser()
    started = await case.running(one)
    await case.parts.output(case.engine, text="a", choice=1)
    await case.parts.output(case.engine, text="b", choice=0)
    assert [(fed[1], fed[3]) for fed in case.fed()] == [(1, "a"), (0, "b")]
    await case.parsed(one, content("a"), choice=1)
    # A choice that there is not is some foreign parser's nonsense.
    await case.parsed(one, content("x"), choice=2, final=True)
    await case.parsed(one, content("x"), choice=-1, final=True)
    assert await started.events() == [ContentText(1, "a")]
    assert len(case.parts.sessions) == 1


def position(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(chosen=TokenLogprob(token_id, "x", b"x", -1.0))


async def test_log_probabilities_follow_the_content() -> None:
    case = Parsed(options=AnswerOptions(num_top_logprobs=1), sampling=SamplingParams(logprobs=1))
    one = case.parts.parser()
    started = await case.running(one)
    told = tuple(position(number) for number in range(3))
    await case.parts.output(case.engine, 3, text="abc", token_ends=(1, 2, 3), logprobs=told)
    await case.parsed(
        one, ParseEvent(kind="reasoning", text="a", start=0, end=1), content("b", start=1)
    )
    assert await started.events() == [ReasoningText(0, "a"), ContentText(0, "b", told[1:2])]
    # A piece without text of its own still brings its tokens.
    await case.parsed(one, ParseEvent(kind="content", text="", start=2, end=3))
    assert await started.events() == [ContentText(0, "", told[2:])]
    await case.parts.output(case.engine, 1, text="", token_ends=(3,), logprobs=told[:1])
    await case.parts.finish(case.engine)
    await case.parsed(one, final=True)
    rest, _ = await started.events()
    assert rest == ContentText(0, "", told[:1])


async def test_a_parser_that_ends_a_choice_twice_ends_no_other_one() -> None:
    case = Parsed(options=AnswerOptions(num_choices=2, num_answers=2))
    one = case.parts.parser()
    started = await case.running(one)
    await case.parts.finish(case.engine)
    for _ in range(2):
        await case.parsed(one, final=True)
    assert len(await started.events()) == 1
    assert started.request.outcome is None
    await case.parts.finish(case.engine, choice=1)
    await case.parsed(one, final=True, choice=1)
    assert len(await started.events()) == 1
    assert len(case.parts.outbox.settles) == 1


async def test_token_ids_do_not_wait_for_the_parser() -> None:
    case = Parsed(options=AnswerOptions(shows_token_ids=True))
    started = await case.running(case.parts.parser())
    await case.parts.output(case.engine, 2, text="ab")
    assert (await started.events())[1:] == [ContentText(0, "", token_ids=(7, 7))]
    assert case.fed()[0][3] == "ab"


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"tools_json": "[]"}, "tools"), ({"wants_reasoning": True}, "reasoning_effort")],
)
def test_what_a_model_without_formats_is_asked_for_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(UnsupportedFieldError) as raised:
        parse_opening(generation_job(**fields), engine_offer(), "r", "trace")
    assert raised.value.param == param
    assert "`m`" in str(raised.value)


def test_text_without_tools_and_reasoning_needs_no_parser() -> None:
    offer = engine_offer(tool_format="hermes", reasoning_format="think")
    assert parse_opening(generation_job(), offer, "r", "trace") is None
    reasoning = parse_opening(generation_job(parse_reasoning=True), offer, "r", "trace")
    assert reasoning is not None
    assert (reasoning.tool_format, reasoning.reasoning_format) == (None, "think")
    tools = parse_opening(generation_job(tools_json="[]"), offer, "r", "trace")
    assert tools is not None
    assert (tools.tool_format, tools.reasoning_format) == ("hermes", None)


def test_an_attempt_after_another_has_a_session_of_its_own() -> None:
    """The gateway of an earlier one may have died, and its session be open still."""
    job = generation_job(parse_reasoning=True)
    offer = engine_offer(reasoning_format="think")
    opened = [
        parse_opening(job.changed(take=take), offer, "r", "trace") for take in ("", "ab", "cd")
    ]
    assert [one and one.request_id for one in opened] == ["r", "r-ab", "r-cd"]

"""A generation's text on its way through a parser, and through the next one when the first is lost."""

import asyncio
from typing import Any

import pytest

from gateway.errors import (
    GatewayError,
    RemoteFailureError,
    UnsupportedFieldError,
    WorkerLostError,
    WorkerUnavailableError,
)
from gateway.request.answer_options import AnswerOptions
from gateway.request.events import (
    ChoiceFinished,
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallStarted,
)
from gateway.request.parsing import MAX_FRUITLESS, parse_opening
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    CloseParse,
    Failure,
    Grammar,
    OpenParse,
    ParseBatch,
    ParsedBatch,
    ParsedDelta,
    ParseEvent,
    ParseOpened,
    Prepare,
    SamplingParams,
    TokenLogprob,
    TokenLogprobs,
    Usage,
)
from protocol.wire.peers import Peer
from tests.fakes.request_parts import Generation, Parts, engine_offer, generation_job
from tests.fakes.virtual_time import idle


def content(text: str, start: int = 0) -> ParseEvent:
    return ParseEvent(kind="content", text=text, start=start, end=start + len(text))


class Parsed:
    """A generation whose text passes a parser, and the engine and the parsers that the test plays."""

    def __init__(self, **job: Any) -> None:
        self.parts = Parts()
        self.engine = self.parts.engine(tool_format="hermes", reasoning_format="think")
        self.job = generation_job(**{"tools_json": "[]", "tool_choice": "auto", **job})
        self.started: Generation | None = None

    async def opening(self) -> Generation:
        """The generation waits for its parser."""
        self.started = await self.parts.generation(self.job)
        await self.parts.grant()
        for _ in self.parts.engine_wire.of(Prepare):
            await self.parts.prepare_next(prompt_tail="tail")
        return self.started

    async def opened(self, one: Peer, attempt: int = 1, **fields: Any) -> None:
        message = ParseOpened(request_id="r", attempt=attempt, **fields)
        self.parts.parsers.on_event(one, message)
        await idle()

    async def running(self, one: Peer) -> Generation:
        started = await self.opening()
        await self.opened(one)
        await started.task
        await idle()
        return started

    async def parsed(
        self, one: Peer, *events: ParseEvent, attempt: int = 1, choice: int = 0, **fields: Any
    ) -> None:
        delta = ParsedDelta(request_id="r", choice=choice, attempt=attempt, events=events, **fields)
        self.parts.parsers.on_event(one, ParsedBatch(deltas=(delta,)))
        await idle()

    async def fail(self, one: Peer, code: ErrorCode, attempt: int = 0) -> None:
        failure = Failure(request_id="r", code=code, message="no", attempt=attempt)
        self.parts.parsers.on_event(one, failure)
        await idle()

    async def lose(self, one: Peer) -> None:
        self.parts.parsers.on_peer_lost(one)
        await idle()

    def openings(self) -> list[int]:
        return [opening.attempt for opening in self.parts.parser_wire.of(OpenParse)]

    def fed(self) -> list[tuple[str, int, int, str, tuple[int, ...], bool]]:
        return [
            (
                one.instance_id,
                delta.choice,
                delta.attempt,
                delta.text,
                delta.token_ends,
                delta.final,
            )
            for one, message in self.parts.parser_wire.sent
            if isinstance(message, ParseBatch)
            for delta in message.deltas
        ]


async def test_what_a_parser_is_told_and_what_it_says_to_the_engine() -> None:
    case = Parsed(
        parse_reasoning=True,
        enforced_tools_json='[{"f":1}]',
        tool_choice="named",
        tool_name="f",
        parallel_tool_calls=False,
        thinking=True,
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
    assert (parts.num_seats, len(parts.outbox.settles)) == (0, 0)
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


async def test_a_lost_parser_s_text_is_replayed_and_nothing_is_told_twice() -> None:
    case = Parsed(parse_reasoning=True)
    parts, first = case.parts, case.parts.parser("a")
    started = await case.running(first)
    await parts.output(case.engine, 2, text="abcd", token_ends=(2, 4))
    start = ParseEvent(kind="tool_call_start", index=0, id="id", name="f")
    await case.parsed(
        first,
        ParseEvent(kind="reasoning", text="why"),
        content("ab"),
        start,
        ParseEvent(kind="tool_call_arguments", index=0, text="{"),
        ParseEvent(kind="tool_call_end", index=0),
    )
    assert len(await started.events()) == 4
    second = parts.parser("b")
    await case.lose(first)
    # Text that comes during the replay leaves with it.
    await parts.output(case.engine, 1, text="e", token_ends=(5,))
    assert case.openings() == [1, 2]
    assert len(case.fed()) == 1
    await case.opened(second, 2)
    assert case.fed()[1:] == [("b", 0, 2, "abcde", (2, 4, 5), False)]
    await case.parsed(
        second,
        ParseEvent(kind="reasoning", text="why not"),
        content("a"),
        content("bc", start=1),
        start,
        ParseEvent(kind="tool_call_arguments", index=0, text="{}"),
        ParseEvent(kind="tool_call_end", index=0),
        ParseEvent(kind="tool_call_start", index=1, id="id2", name="g"),
        attempt=2,
    )
    assert await started.events() == [
        ReasoningText(0, " not"),
        ContentText(0, "c"),
        ToolCallArguments(0, 0, "}"),
        ToolCallStarted(0, 1, "id2", "g"),
    ]
    session = started.work._parse
    assert session is not None
    assert session.num_completed_calls(0) == 1
    assert session.num_replayed == 1
    await parts.finish(case.engine)
    await case.parsed(second, final=True, attempt=2)
    assert started.request.outcome == "finished"
    assert 'resumptions_total{model="m",role="toolparser"} 1.0' in parts.metrics.render().decode()


async def test_an_end_during_a_replay_leaves_with_it() -> None:
    case = Parsed()
    first = case.parts.parser("a")
    started = await case.running(first)
    await case.lose(first)
    await case.parts.finish(case.engine)
    assert case.fed() == []
    second = case.parts.parser("b")
    await idle()
    await case.opened(second, 3)
    assert case.fed() == [("b", 0, 3, "", (), True)]
    await case.parsed(second, final=True, attempt=3)
    assert started.request.outcome == "finished"


async def test_choices_without_text_are_not_replayed() -> None:
    case = Parsed(options=AnswerOptions(num_choices=2, num_answers=2))
    first = case.parts.parser("a")
    await case.running(first)
    await case.parts.output(case.engine, text="x", choice=1)
    second = case.parts.parser("b")
    await case.lose(first)
    await case.opened(second, 2)
    assert [(fed[1], fed[2], fed[3]) for fed in case.fed()] == [(1, 1, "x"), (1, 2, "x")]


async def test_a_parser_that_forgot_the_session_is_no_end() -> None:
    case = Parsed()
    one = case.parts.parser()
    started = await case.running(one)
    await case.parts.output(case.engine, text="a")
    await case.fail(one, ErrorCode.UNKNOWN_REQUEST)
    assert case.openings() == [1, 2]
    await case.opened(one, 2)
    assert case.fed()[-1] == ("p", 0, 2, "a", (), False)
    started.request.end("aborted")


async def test_a_parser_that_gives_up_ends_the_request() -> None:
    case = Parsed()
    one = case.parts.parser()
    started = await case.running(one)
    await case.fail(one, ErrorCode.INTERNAL_ERROR)
    with pytest.raises(RemoteFailureError):
        await started.work.next_events(None)
    assert case.openings() == [1]


async def test_without_another_parser_a_replay_waits_for_one_until_the_deadline() -> None:
    case = Parsed()
    first = case.parts.parser("a")
    started = await case.running(first)
    await case.lose(first)
    await asyncio.sleep(20.0)
    second = case.parts.parser("b")
    await idle()
    assert case.openings() == [1, 3]
    await case.opened(second, 3)
    await case.parts.output(case.engine, text="a")
    assert case.fed() == [("b", 0, 3, "a", (), False)]
    started.request.end("aborted")


@pytest.mark.parametrize("code", [ErrorCode.WORKER_UNAVAILABLE, ErrorCode.OVERLOADED])
async def test_a_parser_that_is_full_is_asked_again_after_a_pause(code: ErrorCode) -> None:
    case = Parsed()
    first = case.parts.parser("a")
    await case.running(first)
    second = case.parts.parser("b")
    await case.lose(first)
    await case.fail(second, code)
    await asyncio.sleep(0.19)
    assert case.openings() == [1, 2]
    await asyncio.sleep(0.02)
    assert case.openings() == [1, 2, 3]


async def test_a_parser_that_refuses_the_replay_ends_the_request() -> None:
    case = Parsed()
    first = case.parts.parser("a")
    started = await case.running(first)
    second = case.parts.parser("b")
    await case.lose(first)
    await case.fail(second, ErrorCode.INVALID_REQUEST)
    with pytest.raises(RemoteFailureError):
        await started.work.next_events(None)


async def test_four_parsers_lost_over_the_same_text_are_the_text_s_fault() -> None:
    case = Parsed()
    peers = [case.parts.parser("0")]
    started = await case.running(peers[0])
    await case.parts.output(case.engine, text="poison")
    for attempt in range(1, MAX_FRUITLESS + 2):
        peers.append(case.parts.parser(str(attempt)))
        await case.lose(peers[-2])
        if attempt <= MAX_FRUITLESS:
            await case.opened(peers[-1], attempt + 1)
    assert case.openings() == [1, 2, 3, 4]
    with pytest.raises(WorkerLostError, match="The parsers of this request were lost"):
        await started.work.next_events(None)


async def test_parsers_that_are_lost_while_nothing_is_with_them_count_for_nothing() -> None:
    case = Parsed()
    peers = [case.parts.parser("0")]
    started = await case.running(peers[0])
    for attempt in range(1, 6):
        peers.append(case.parts.parser(str(attempt)))
        await case.lose(peers[-2])
        await case.opened(peers[-1], attempt + 1)
    # Nor do those that were lost after an answer.
    for attempt in range(6, 12):
        await case.parts.output(case.engine, text="a")
        await case.parsed(peers[-1], attempt=attempt)
        peers.append(case.parts.parser(str(attempt)))
        await case.lose(peers[-2])
        await case.opened(peers[-1], attempt + 1)
        await case.parsed(peers[-1], attempt=attempt + 1)
    assert started.request.outcome is None


async def test_parsers_lost_while_a_session_opens_are_replaced_a_few_times() -> None:
    case = Parsed()
    for number in range(MAX_FRUITLESS + 1):
        case.parts.parser(str(number))
    started = await case.opening()
    for _ in range(MAX_FRUITLESS + 1):
        asked = case.parts.parser_wire.sent[-1][0]
        await case.lose(asked)
    assert isinstance(await started.error(), WorkerLostError)
    assert case.openings() == [1, 2, 3, 4]
    assert case.parts.generates() == []
    assert [settle.is_unused for settle in case.parts.outbox.settles] == [True]


async def test_without_a_parser_nothing_is_generated() -> None:
    case = Parsed()
    started = await case.opening()
    assert isinstance(await started.error(), WorkerUnavailableError)
    assert (case.parts.generates(), case.parts.num_seats) == ([], 0)


async def test_after_the_end_a_parser_is_closed_once_and_heard_no_more() -> None:
    case = Parsed()
    one = case.parts.parser()
    started = await case.running(one)
    await case.parts.output(case.engine, text="a")
    session = started.work._parse
    assert session is not None
    started.request.fail(GatewayError("the end"))
    session.close()
    assert len(case.parts.parser_wire.of(CloseParse)) == 1
    session.on_parsed(ParsedDelta(request_id="r", choice=0, attempt=1, events=(content("a"),)))
    session.on_parse_failure(WorkerLostError("lost"))
    await idle()
    assert case.openings() == [1]


async def test_an_end_during_a_replay_ends_the_replay() -> None:
    case = Parsed()
    first = case.parts.parser("a")
    started = await case.running(first)
    case.parts.parser("b")
    await case.lose(first)
    started.request.on_client_gone()
    await idle()
    assert [message.attempt for message in case.parts.parser_wire.of(CloseParse)] == [2]
    await asyncio.sleep(30.0)
    assert case.openings() == [1, 2]


async def test_a_session_whose_events_raise_is_closed_at_its_parser(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The session was forgotten here, and stayed open at the parser and in the table of it."""
    case = Parsed()
    one = case.parts.parser()
    started = await case.running(one)

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("gateway.request.parsing.ParseSession._on_event", broken)
    await case.parsed(one, content("a"))
    with pytest.raises(GatewayError, match="Something went wrong"):
        await started.work.next_events(None)
    assert len(case.parts.parser_wire.of(CloseParse)) == 1
    assert case.parts.parsers._sessions[one] == {}
    assert "request r failed while parsed text was delivered" in caplog.messages
    caplog.clear()


async def test_a_bug_in_a_replay_ends_the_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody looked at the task that replays, so the request waited until its time ran out."""
    case = Parsed()
    first = case.parts.parser("a")
    started = await case.running(first)
    case.parts.parser("b")

    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("gateway.request.parsing.ParseSession._reopen", broken)
    await case.lose(first)
    with pytest.raises(GatewayError, match="Something went wrong in this server."):
        await started.work.next_events(5.0)
    assert caplog.messages == ["request r failed"]
    caplog.clear()


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

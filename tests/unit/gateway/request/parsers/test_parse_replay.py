"""A text that is sent again to the next parser when the first is lost, and sessions that end."""

import asyncio
import logging

import pytest

from gateway.errors import (
    GatewayError,
    RemoteFailureError,
    WorkerLostError,
    WorkerUnavailableError,
)
from gateway.request.delivery.events import (
    ChoiceFinished,
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallStarted,
)
from gateway.request.jobs.answer_options import AnswerOptions
from gateway.request.parsers.parsing import MAX_FRUITLESS
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    CloseParse,
    ParsedDelta,
    ParseEvent,
    SamplingParams,
    TokenLogprob,
    TokenLogprobs,
)
from tests.fakes.parsed_generation import Parsed, content
from tests.fakes.virtual_time import idle


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
    (end,) = await started.events()
    assert isinstance(end, ChoiceFinished)
    assert (end.finish_reason, end.is_call_cut) == ("tool_calls", True)
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
    with pytest.raises(
        WorkerLostError, match="^The parsers of this request were lost; please try again.$"
    ):
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
    assert (case.parts.generates(), case.parts.num_slots) == ([], 0)


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

    monkeypatch.setattr("gateway.request.parsers.parsing.ParseSession._on_event", broken)
    await case.parsed(one, content("a"))
    with pytest.raises(GatewayError, match="Internal server error"):
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

    monkeypatch.setattr("gateway.request.parsers.parsing.ParseSession._reopen", broken)
    await case.lose(first)
    with pytest.raises(GatewayError, match="Internal server error."):
        await started.work.next_events(5.0)
    assert caplog.messages == ["request r failed"]
    caplog.clear()


async def test_each_call_is_replayed_by_itself() -> None:
    case = Parsed()
    first = case.parts.parser("a")
    started = await case.running(first)
    calls = [
        event
        for index in (0, 1)
        for event in (
            ParseEvent(kind="tool_call_start", index=index, id=f"id{index}", name="f"),
            ParseEvent(kind="tool_call_arguments", index=index, text="{"),
        )
    ]
    await case.parts.output(case.engine, text="x")
    await case.parsed(first, *calls[:2])
    assert len(await started.events()) == 2
    second = case.parts.parser("b")
    await case.lose(first)
    await case.opened(second, 2)
    await case.parsed(second, *calls, attempt=2)
    assert await started.events() == [
        ToolCallStarted(0, 1, "id1", "f"),
        ToolCallArguments(0, 1, "{"),
    ]


async def test_only_losses_since_the_last_answer_speak_against_the_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "penstock.gateway.parsing")
    case = Parsed()
    peers = [case.parts.parser("0")]
    started = await case.running(peers[0])
    await case.parts.output(case.engine, text="a")
    await case.parsed(peers[0])
    for attempt in range(1, MAX_FRUITLESS + 2):  # the first of them had answered
        peers.append(case.parts.parser(str(attempt)))
        await case.lose(peers[-2])
        await case.opened(peers[-1], attempt + 1)
    assert started.request.outcome is None
    session = started.work._parse
    assert session is not None
    assert session.num_replayed == MAX_FRUITLESS + 1
    assert caplog.messages == ["request r goes to another toolparser"] * (MAX_FRUITLESS + 1)


async def test_tokens_of_an_engine_that_tells_no_offsets_follow_the_content_all_the_same() -> None:
    case = Parsed(options=AnswerOptions(num_top_logprobs=0), sampling=SamplingParams(logprobs=0))
    one = case.parts.parser()
    started = await case.running(one)
    told = tuple(TokenLogprobs(chosen=TokenLogprob(number, "x", b"x", -1.0)) for number in range(2))
    await case.parts.output(case.engine, 1, text="ab", logprobs=told[:1])
    await case.parts.output(case.engine, 1, text="c", logprobs=told[1:])
    await case.parsed(one, content("ab"), content("c", start=2))
    assert await started.events() == [
        ContentText(0, "ab", told[:1]),
        ContentText(0, "c", told[1:]),
    ]

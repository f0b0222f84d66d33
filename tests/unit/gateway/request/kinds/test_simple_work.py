"""Parsing a text and calling a tool: replays, foreign parsers, and what counts as used."""

import asyncio

import pytest

from gateway.errors import (
    GatewayError,
    InvalidRequestError,
    OverloadedError,
    RemoteFailureError,
    ToolNotFoundError,
    ToolPluginsError,
    WorkerLostError,
    WorkerUnavailableError,
)
from gateway.request.kinds.text_parse import PIECE_CHARACTERS, ParsedCall, ParseWork
from gateway.request.kinds.tool_call import ToolWork
from gateway.request.leases.work_bound import Admitted, Bound
from gateway.request.lifecycle.request import Request
from gateway.tools.toolbox import ToolBox, ToolResult
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Authorize,
    CloseParse,
    Failure,
    OpenParse,
    ParseBatch,
    ParsedBatch,
    ParsedDelta,
    ParseEvent,
    ParseOpened,
    Usage,
)
from protocol.wire.peers import Peer
from tests.fakes.request_parts import CALLER, Parts
from tests.fakes.virtual_time import idle


class Parsing:
    """A text that is being parsed, and the parsers that the test plays."""

    def __init__(self, parts: Parts, text: str = "hello") -> None:
        self.parts = parts
        opening = OpenParse(request_id="r", attempt=1, tool_format="hermes")
        made: tuple[Request, ParseWork] = parts.factory.parse("/parse", opening, text, CALLER)
        self.request, self.work = made
        self.task = asyncio.create_task(self.request.start())

    @classmethod
    async def granted(cls, parts: Parts, text: str = "hello") -> "Parsing":
        started = cls(parts, text)
        await idle()
        await parts.grant()
        return started

    async def opened(self, one: Peer, attempt: int = 1) -> None:
        self.parts.parsers.on_event(one, ParseOpened(request_id="r", attempt=attempt))
        await idle()

    def parse(
        self, one: Peer, *events: ParseEvent, attempt: int = 1, num_malformed: int = 0
    ) -> None:
        delta = ParsedDelta(
            request_id="r",
            choice=0,
            attempt=attempt,
            events=events,
            num_malformed=num_malformed,
        )
        self.parts.parsers.on_event(one, ParsedBatch(deltas=(delta,)))

    async def parsed(self, one: Peer, *events: ParseEvent, **fields: int) -> None:
        self.parse(one, *events, **fields)
        await idle()

    async def fail(self, one: Peer, code: ErrorCode) -> None:
        self.parts.parsers.on_event(one, Failure(request_id="r", code=code, message="no"))
        await idle()

    def pieces(self) -> list[tuple[Peer, str, bool]]:
        return [
            (one, delta.text, delta.final)
            for one, message in self.parts.parser_wire.sent
            if isinstance(message, ParseBatch)
            for delta in message.deltas
        ]

    async def error(self) -> BaseException | None:
        (outcome,) = await asyncio.gather(self.task, return_exceptions=True)
        return outcome


async def test_a_text_travels_in_pieces_and_comes_back_told_apart() -> None:
    parts = Parts()
    one = parts.parser()
    text = "x" * PIECE_CHARACTERS + "rest"
    started = await Parsing.granted(parts, text)
    (authorize,) = parts.auth_wire.of(Authorize)
    assert (authorize.endpoint, authorize.model, authorize.is_metered) == ("/parse", "", True)
    assert (authorize.prompt_tokens, authorize.completion_tokens) == (0, 0)
    await started.opened(one)
    assert started.pieces() == [(one, "x" * PIECE_CHARACTERS, False)]
    (batch,) = parts.parser_wire.of(ParseBatch)
    (delta,) = batch.deltas
    assert (delta.request_id, delta.choice, delta.attempt) == ("r", 0, 1)
    await started.parsed(
        one, ParseEvent(kind="reasoning", text="r"), ParseEvent(kind="content", text="a")
    )
    assert started.pieces()[1:] == [(one, "rest", True)]
    await started.parsed(
        one,
        ParseEvent(kind="content", text="b"),
        ParseEvent(kind="tool_call_start", id="i", name="f"),
        ParseEvent(kind="tool_call_arguments", text="{"),
        ParseEvent(kind="tool_call_arguments", text="}"),
        ParseEvent(kind="tool_call_end"),
        num_malformed=2,
    )
    assert await started.error() is None
    assert parts.parser_wire.of(CloseParse) == [CloseParse(request_id="r", attempt=1)]
    parse = started.work.parse
    assert (parse.content, parse.reasoning) == (["a", "b"], ["r"])
    assert parse.calls == [ParsedCall("i", "f", ["{", "}"])]
    assert parse.num_malformed == 2
    assert len(parts.parser_wire.of(CloseParse)) == 1
    (settle,) = parts.outbox.settles
    assert (settle.outcome, settle.is_unused) == ("finished", False)
    assert (settle.prompt_tokens, settle.completion_tokens) == (0, 0)
    assert len(parts.sessions) == 0


@pytest.mark.parametrize(
    ("text", "num_pieces"),
    [("", 1), ("x", 1), ("x" * PIECE_CHARACTERS, 1), ("x" * (PIECE_CHARACTERS + 1), 2)],
)
async def test_every_text_has_one_last_piece(text: str, num_pieces: int) -> None:
    parts = Parts()
    one = parts.parser()
    started = await Parsing.granted(parts, text)
    await started.opened(one)
    for _ in range(num_pieces):
        await started.parsed(one)
    assert await started.error() is None
    finals = [final for _, _, final in started.pieces()]
    assert finals == [False] * (num_pieces - 1) + [True]


async def test_nothing_that_a_foreign_parser_says_can_raise() -> None:
    parts = Parts()
    one = parts.parser()
    started = await Parsing.granted(parts)
    # Before it said that the session is open, nobody waits for anything.
    await started.parsed(one, ParseEvent(kind="content", text="early"))
    await started.opened(one)
    await started.parsed(
        one,
        *(
            ParseEvent(kind="tool_call_arguments", text="{", index=index)
            for index in (-1, 0, 1, 10**9)
        ),
        ParseEvent(kind="tool_call_end", index=7),
    )
    await started.parsed(one)
    assert await started.error() is None
    assert started.work.parse.calls == []


async def test_without_a_parser_it_is_a_503_and_unused() -> None:
    """It counted as a request in the caller's totals although no parser had been asked."""
    parts = Parts()
    started = await Parsing.granted(parts)
    assert isinstance(await started.error(), WorkerUnavailableError)
    assert [settle.is_unused for settle in parts.outbox.settles] == [True]


async def test_a_parser_that_refuses_has_begun_nothing() -> None:
    parts = Parts()
    one = parts.parser()
    started = await Parsing.granted(parts)
    await started.fail(one, ErrorCode.OVERLOADED)
    assert isinstance(await started.error(), RemoteFailureError)
    assert [settle.is_unused for settle in parts.outbox.settles] == [True]


@pytest.mark.parametrize("is_forgotten", [True, False])
async def test_a_parser_that_is_lost_after_its_last_answer_is_needed_no_more(
    is_forgotten: bool,
) -> None:
    parts = Parts()
    one = parts.parser()
    started = await Parsing.granted(parts)
    await started.opened(one)
    started.parse(one, ParseEvent(kind="content", text="all"))
    if is_forgotten:
        await started.fail(one, ErrorCode.UNKNOWN_REQUEST)
    else:
        parts.parsers.on_peer_lost(one)
    assert await started.error() is None
    assert started.work.parse.content == ["all"]
    assert len(parts.parser_wire.of(OpenParse)) == 1


async def test_a_session_that_its_parser_forgot_is_opened_anew() -> None:
    parts = Parts()
    one = parts.parser()
    started = await Parsing.granted(parts)
    await started.opened(one)
    await started.fail(one, ErrorCode.UNKNOWN_REQUEST)
    await started.opened(one, 2)
    await started.parsed(one, attempt=2)
    assert await started.error() is None


async def test_a_text_begins_anew_at_another_parser_with_another_attempt() -> None:
    parts = Parts()
    first = parts.parser("a")
    started = await Parsing.granted(parts, "x" * (PIECE_CHARACTERS + 1))
    await started.opened(first)
    await started.parsed(first, ParseEvent(kind="content", text="lost"))
    second = parts.parser("b")
    parts.parsers.on_peer_lost(first)
    await idle()
    assert [opening.attempt for opening in parts.parser_wire.of(OpenParse)] == [1, 2]
    await started.opened(second, 2)
    await started.parsed(second, attempt=2)
    # What an older attempt still says counts for nothing.
    await started.parsed(second, ParseEvent(kind="content", text="stale"), attempt=1)
    await started.parsed(second, ParseEvent(kind="content", text="new"), attempt=2)
    assert await started.error() is None
    assert started.work.parse.content == ["new"]
    assert [settle.is_unused for settle in parts.outbox.settles] == [False]


async def test_after_three_lost_parsers_it_is_the_text() -> None:
    parts = Parts()
    for number in range(4):
        parts.parser(str(number))
    started = await Parsing.granted(parts)
    for attempt in (1, 2, 3):
        one = [peer for peer, sent in parts.parser_wire.sent if isinstance(sent, OpenParse)][-1]
        await started.opened(one, attempt)
        parts.parsers.on_peer_lost(one)
        await idle()
    assert isinstance(await started.error(), WorkerLostError)
    assert [opening.attempt for opening in parts.parser_wire.of(OpenParse)] == [1, 2, 3]
    assert [settle.is_unused for settle in parts.outbox.settles] == [False]


async def test_a_text_that_one_parser_took_is_used_even_if_the_next_ones_are_away() -> None:
    parts = Parts()
    one = parts.parser()
    started = await Parsing.granted(parts)
    assert started.work.parse.num_malformed == 0
    await started.opened(one)
    parts.parsers.on_peer_lost(one)
    assert isinstance(await started.error(), WorkerUnavailableError)
    assert [settle.is_unused for settle in parts.outbox.settles] == [False]


async def test_a_text_that_the_parser_refuses_is_not_tried_again() -> None:
    parts = Parts()
    one = parts.parser()
    started = await Parsing.granted(parts)
    await started.opened(one)
    await started.fail(one, ErrorCode.INVALID_REQUEST)
    error = await started.error()
    assert isinstance(error, RemoteFailureError)
    assert len(parts.parser_wire.of(OpenParse)) == 1
    assert [settle.is_unused for settle in parts.outbox.settles] == [False]


async def test_a_parser_that_is_lost_between_two_pieces_is_noticed_at_once() -> None:
    """Its next piece went to nobody, and the request waited until its time ran out."""
    parts = Parts()
    first = parts.parser("a")
    started = await Parsing.granted(parts, "x" * (PIECE_CHARACTERS + 1))
    await started.opened(first)
    second = parts.parser("b")
    started.parse(first)
    parts.parsers.on_peer_lost(first)  # before the request has run again
    await idle()
    assert [one for one, sent in parts.parser_wire.sent if isinstance(sent, OpenParse)] == [
        first,
        second,
    ]
    await started.opened(second, 2)
    await started.parsed(second, attempt=2)
    await started.parsed(second, attempt=2)
    assert await started.error() is None


async def test_who_leaves_while_a_text_is_parsed_closes_its_session() -> None:
    parts = Parts()
    one = parts.parser()
    started = await Parsing.granted(parts)
    await started.opened(one)
    started.request.on_client_gone()
    await started.error()
    assert len(parts.parser_wire.of(CloseParse)) == 1
    assert len(parts.sessions) == 0


# Tools.


class ScriptedToolBox(ToolBox):
    """One tool, of which the test says what becomes."""

    def __init__(self, outcome: "asyncio.Future[ToolResult]") -> None:
        self.outcome = outcome
        self.calls: list[tuple[str, str]] = []

    async def execute(self, name: str, arguments_json: str, caller: bytes = b"") -> ToolResult:
        self.calls.append((name, arguments_json))
        return await self.outcome


class Calling:
    """A tool that is being called."""

    def __init__(self, parts: Parts) -> None:
        self.outcome: asyncio.Future[ToolResult] = asyncio.get_running_loop().create_future()
        self.toolbox = ScriptedToolBox(self.outcome)
        made: tuple[Request, ToolWork] = parts.factory.tool(
            "/tools", self.toolbox, "add", '{"x": 1}', CALLER, "r"
        )
        self.request, self.work = made
        self.task = asyncio.create_task(self.request.start())

    @classmethod
    async def granted(cls, parts: Parts) -> "Calling":
        calling = cls(parts)
        await idle()
        assert calling.toolbox.calls == []
        await parts.grant()
        return calling

    async def error(self) -> BaseException | None:
        (outcome,) = await asyncio.gather(self.task, return_exceptions=True)
        return outcome


async def test_a_called_tool_yields_its_result_and_counts() -> None:
    parts = Parts()
    calling = await Calling.granted(parts)
    (authorize,) = parts.auth_wire.of(Authorize)
    assert (authorize.request_id, authorize.endpoint, authorize.model) == ("r", "/tools", "")
    assert calling.toolbox.calls == [("add", '{"x": 1}')]
    assert calling.work.result == ToolResult()
    calling.outcome.set_result(ToolResult(result=3))
    assert await calling.error() is None
    assert calling.work.result == ToolResult(result=3)
    (settle,) = parts.outbox.settles
    assert (settle.outcome, settle.is_unused) == ("finished", False)


@pytest.mark.parametrize(
    ("error", "is_unused"),
    [
        (OverloadedError("too many calls"), True),
        (ToolPluginsError("can't be loaded"), True),
        (ToolNotFoundError("add", ()), False),
        (InvalidRequestError("x is no text"), False),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_call_that_was_never_begun_is_unused_unless_it_was_wrong(
    error: GatewayError, is_unused: bool
) -> None:
    """A refusal because too many calls wait counted as a request."""
    parts = Parts()
    calling = await Calling.granted(parts)
    calling.outcome.set_exception(error)
    assert await calling.error() is error
    assert [settle.is_unused for settle in parts.outbox.settles] == [is_unused]


async def test_who_leaves_while_a_tool_runs_has_used_it() -> None:
    parts = Parts()
    calling = await Calling.granted(parts)
    calling.request.on_client_gone()
    await calling.error()
    assert calling.outcome.cancelled()
    (settle,) = parts.outbox.settles
    assert (settle.outcome, settle.is_unused) == ("aborted", False)


async def test_simple_work_reserves_nothing_and_is_never_at_a_worker() -> None:
    parts = Parts()
    work = Calling(parts).work
    assert work.bound() == Bound(uses_tools=True)
    assert (work.usage(), work.choice_usages()) == (Usage(), ())
    assert not work.is_at_worker
    assert not work.has_begun
    assert await work.prepare(Admitted()) is None  # type: ignore[func-returns-value]
    work.owner.end("aborted")
    await idle()

"""The links to engines, auth and parsers, with a wire that only takes notes."""

import asyncio
from typing import Any

import pytest
from msgspec import structs

from gateway.dispatch.routing import PrefixRouter
from gateway.errors import GatewayError, RemoteFailureError, WorkerLostError, WorkerUnavailableError
from gateway.request.preparation.prompts import PromptBatch
from gateway.workers.auth import AuthLink, AuthNews
from gateway.workers.engine_directory import EngineDirectory
from gateway.workers.engines import EngineLink
from gateway.workers.parsers import ParserLink
from gateway.workers.questions import QuestionTable
from protocol.errors import ErrorCode
from protocol.version import PROTOCOL_VERSION, ProtocolVersion
from protocol.wire.messages import (
    Actor,
    AuditPage,
    AuthOffer,
    Authorize,
    CloseParse,
    Credits,
    Delta,
    EngineOffer,
    Failure,
    Finished,
    Generate,
    Granted,
    KeySettings,
    KeysFound,
    Message,
    OpenParse,
    OrphanUsage,
    OrphanUsageNoted,
    ParseBatch,
    ParsedDelta,
    ParseOpened,
    ParserOffer,
    Prepare,
    Prepared,
    ReadAudit,
    Role,
    SamplingParams,
    Settle,
    StepOutput,
    StreamUsage,
    TokenWanted,
    UpdateKey,
    Usage,
)
from protocol.wire.peers import Peer


class Notes:
    """A wire that notes what is sent to whom."""

    def __init__(self) -> None:
        self.sent: list[tuple[Peer, Message]] = []
        self.cancelled: list[tuple[Peer, str]] = []
        self.refused: list[str] = []
        self.noted: list[OrphanUsageNoted] = []

    def send(self, peer: Peer, message: Message) -> None:
        self.sent.append((peer, message))

    def cancel(self, peer: Peer, request_id: str) -> bool:
        self.cancelled.append((peer, request_id))
        return False

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for _, message in self.sent if isinstance(message, kind)]


def peer(role: Role, name: str = "w", **offer: Any) -> Peer:
    return Peer(
        identity=name.encode(),
        role=role,
        instance_id=name,
        protocol_version=PROTOCOL_VERSION,
        build="",
        last_heard=0.0,
        progress_since=0.0,
        phase_since=0.0,
        phase="ready",
        **offer,
    )


def engine_peer() -> Peer:
    offer = EngineOffer(
        model="m",
        fingerprint="f",
        resume_version=1,
        max_model_len=100,
        created=0,
        credits=Credits(max_requests=4, max_tokens=1000),
    )
    return peer("engine", engine=offer)


class Sink:
    """A choice that notes what it is told."""

    def __init__(self) -> None:
        self.attempt = 1
        self.deltas: list[Delta] = []
        self.ends: list[object] = []

    def on_delta(self, delta: Delta) -> None:
        self.deltas.append(delta)

    def on_finished(self, finished: Finished) -> None:
        self.ends.append(finished)

    def on_failure(self, error: GatewayError, failure: Failure | None) -> None:
        self.ends.append(error)

    def on_broken(self, error: GatewayError) -> None:
        self.ends.append(error)


class BrokenSink:
    """A choice of whose output something of ours can't make sense."""

    attempt = 1

    def __init__(self) -> None:
        self.broken: list[GatewayError] = []

    def on_delta(self, delta: Delta) -> None:
        raise RuntimeError("a bug")

    def on_finished(self, finished: Finished) -> None:
        raise RuntimeError("a bug")

    def on_failure(self, error: GatewayError, failure: Failure | None) -> None:
        raise RuntimeError("a bug")

    def on_broken(self, error: GatewayError) -> None:
        self.broken.append(error)


def generate() -> Generate:
    return Generate(
        request_id="r",
        choice=0,
        attempt=1,
        prompt_token_ids=(1,),
        sampling=SamplingParams(),
        lease_tokens=8,
        deadline_s=1.0,
    )


def engine_link(
    wire: Notes | None = None, reports: list[OrphanUsage] | None = None
) -> tuple[EngineLink, EngineDirectory]:
    directory = EngineDirectory(lambda _: None)
    noted: list[OrphanUsage] = [] if reports is None else reports
    return EngineLink(wire or Notes(), directory, PrefixRouter(), noted.append), directory


def started(wire: Notes | None = None) -> tuple[EngineLink, Peer, Sink]:
    link, directory = engine_link(wire)
    one, sink = engine_peer(), Sink()
    link.on_peer_ready(one)
    link.generate(directory.engines("m")[0], generate(), sink)
    return link, one, sink


def test_a_failure_that_names_no_attempt_still_ends_the_choice() -> None:
    link, one, sink = started()
    failure = Failure(request_id="r", code=ErrorCode.INTERNAL_ERROR, message="oops")
    link.on_event(one, failure)
    link.on_event(one, failure)
    assert len(sink.ends) == 1
    assert isinstance(sink.ends[0], RemoteFailureError)


async def test_a_stale_attempt_is_ignored() -> None:
    link, one, sink = started()
    sink.attempt = 2
    link.on_event(one, StepOutput(deltas=(Delta(request_id="r", choice=0, attempt=1, text="x"),)))
    link.on_event(
        one, Failure(request_id="r", choice=0, attempt=1, code=ErrorCode.OVERLOADED, message="")
    )
    assert (sink.deltas, sink.ends) == ([], [])


def test_output_of_an_engine_that_was_not_asked_is_ignored() -> None:
    link, _, sink = started()
    stranger = engine_peer()
    link.on_peer_ready(stranger)
    delta = Delta(request_id="r", choice=0, attempt=1, text="x")
    link.on_event(stranger, StepOutput(deltas=(delta,)))
    assert sink.deltas == []


def test_a_lost_engine_ends_each_of_its_choices_once() -> None:
    link, one, sink = started()
    link.on_peer_lost(one)
    link.on_peer_lost(one)
    assert [type(end) for end in sink.ends] == [WorkerLostError]


def test_a_sink_that_raises_costs_no_other_request_its_tokens() -> None:
    """The old link let the exception through: the rest of the message was never delivered."""
    wire = Notes()
    link, directory = engine_link(wire)
    one, good = engine_peer(), Sink()
    link.on_peer_ready(one)
    bad = BrokenSink()
    (handle,) = directory.engines("m")
    link.generate(handle, structs.replace(generate(), request_id="bad"), bad)
    link.generate(handle, generate(), good)
    deltas = tuple(Delta(request_id=name, choice=0, attempt=1, text="x") for name in ("bad", "r"))
    end = Finished(
        request_id="r", choice=0, attempt=1, finish_reason="stop", usage=Usage(completion_tokens=1)
    )
    link.on_event(one, StepOutput(deltas=deltas, ends=(end,)))
    assert [delta.text for delta in good.deltas] == ["x"]
    assert good.ends == [end]
    assert len(bad.broken) == 1
    # Nothing more comes to a sink that broke.
    link.on_event(one, StepOutput(deltas=deltas[:1]))
    assert len(bad.broken) == 1


def test_a_sink_that_raises_does_not_hide_a_lost_engine_from_the_others() -> None:
    link, directory = engine_link()
    one, good = engine_peer(), Sink()
    link.on_peer_ready(one)
    (handle,) = directory.engines("m")
    link.generate(handle, structs.replace(generate(), request_id="bad"), BrokenSink())
    link.generate(handle, generate(), good)
    link.on_peer_lost(one)
    assert [type(end) for end in good.ends] == [WorkerLostError]
    assert list(directory.engines("m")) == []
    assert directory.offer("m") is not None


async def test_an_engine_that_refuses_within_its_credit_is_left_alone_for_a_moment() -> None:
    link, directory = engine_link()
    one = engine_peer()
    link.on_peer_ready(one)
    (handle,) = directory.engines("m")
    link.generate(handle, generate(), Sink())
    link.on_event(
        one,
        Failure(
            request_id="r", choice=0, attempt=1, code=ErrorCode.CREDIT_EXCEEDED, message="full"
        ),
    )
    assert not handle.can_take(1)


async def test_a_question_to_a_lost_engine_fails_and_leaves_nothing_behind() -> None:
    link, directory = engine_link()
    one = engine_peer()
    link.on_peer_ready(one)
    (handle,) = directory.engines("m")
    prepares = [Prepare(request_id=f"r{n}", kind="completion", deadline_s=1.0) for n in range(2)]
    asking = asyncio.create_task(PromptBatch(link, handle, prepares).wait(len))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    link.on_peer_lost(one)
    with pytest.raises(WorkerLostError):
        await asking
    with pytest.raises(WorkerLostError):
        link.ask(handle, prepares[0], Prepared)
    assert len(link._questions) == 0


async def test_a_question_that_nobody_waits_for_is_cancelled_once_unless_it_was_answered() -> None:
    wire = Notes()
    link, directory = engine_link(wire)
    one = engine_peer()
    link.on_peer_ready(one)
    (handle,) = directory.engines("m")
    question = Prepare(request_id="r", kind="count", deadline_s=1.0)
    link.ask(handle, question, Prepared)
    link.close(handle, "r")
    link.close(handle, "r")
    assert wire.cancelled == [(one, "r")]
    link.ask(handle, question, Prepared)
    link.on_event(one, Prepared(request_id="r", prompt_token_ids=(1,)))
    link.close(handle, "r")
    # Nobody is there any more to be told.
    link.ask(handle, question, Prepared)
    link.on_peer_lost(one)
    link.close(handle, "r")
    assert wire.cancelled == [(one, "r")]


def auth_link(wire: Notes, timeout_s: float = 5.0, num_refused: int = 0) -> AuthLink:
    return AuthLink(
        wire,
        timeout_s=timeout_s,
        require_keys=False,
        take_refused=lambda _: num_refused,
        news=AuthNews(
            on_settled=lambda _: None,
            on_settle_refused=wire.refused.append,
            on_ready=lambda: None,
            on_orphans_noted=wire.noted.append,
        ),
    )


async def test_a_settlement_that_auth_refuses_is_reported_by_its_request() -> None:
    wire, one = Notes(), peer("auth", auth=AuthOffer(epoch=1))
    link = auth_link(wire)
    link.on_peer_ready(one)
    link.on_event(one, Failure(request_id="r", code=ErrorCode.INVALID_REQUEST, message="range"))
    link.on_event(one, Failure(request_id="s", code=ErrorCode.INTERNAL_ERROR, message="disk"))
    assert wire.refused == ["r"]


async def test_keys_that_were_refused_unasked_are_told_with_the_token_too() -> None:
    wire, one = Notes(), peer("auth", auth=AuthOffer(epoch=1))
    link = auth_link(wire, num_refused=7)
    link.on_peer_ready(one)
    link.ask(Authorize(request_id="r", key_digest=b"d", endpoint="/x"), "a.b.c")
    link.on_event(one, TokenWanted(request_id="r"))
    assert [(asked.token, asked.num_refused_guesses) for asked in wire.of(Authorize)] == [
        ("", 7),
        ("a.b.c", 7),
    ]


async def test_a_grant_that_comes_too_late_is_given_back() -> None:
    wire, one = Notes(), peer("auth", auth=AuthOffer(epoch=1))
    link = auth_link(wire, timeout_s=0.01)
    link.on_peer_ready(one)
    with pytest.raises(WorkerUnavailableError):
        await link.authorize(Authorize(request_id="r", key_digest=None, endpoint="/x"))
    link.on_event(
        one, Granted(request_id="r", lease_id="lease", tenant="t", key_id="k", role="user")
    )
    (settle,) = wire.of(Settle)
    assert (settle.lease_id, settle.prompt_tokens, settle.is_unused) == ("lease", 0, True)


async def test_a_grant_that_comes_as_its_client_leaves_is_given_back() -> None:
    wire, one = Notes(), peer("auth", auth=AuthOffer(epoch=1))
    link = auth_link(wire)
    link.on_peer_ready(one)
    asking = asyncio.create_task(
        link.authorize(Authorize(request_id="r", key_digest=None, endpoint="/x"))
    )
    await asyncio.sleep(0)
    link.on_event(
        one, Granted(request_id="r", lease_id="lease", tenant="t", key_id="k", role="user")
    )
    asking.cancel()  # before the task could run again
    await asyncio.gather(asking, return_exceptions=True)
    assert [settle.lease_id for settle in wire.of(Settle)] == ["lease"]


async def test_the_auth_worker_with_the_highest_epoch_is_asked() -> None:
    wire = Notes()
    link = auth_link(wire)
    old = peer("auth", "old", auth=AuthOffer(epoch=1))
    new = peer("auth", "new", auth=AuthOffer(epoch=2))
    link.on_peer_ready(new)
    link.on_peer_ready(old)
    asking = asyncio.create_task(
        link.authorize(Authorize(request_id="r", key_digest=None, endpoint="/x"))
    )
    await asyncio.sleep(0)
    assert wire.sent[0][0] is new
    # An answer of anybody else counts for nothing.
    granted = Granted(request_id="r", lease_id="", tenant="t", key_id="k", role="user")
    link.on_event(old, granted)
    assert not asking.done()
    link.on_event(new, granted)
    assert (await asking).tenant == "t"


async def test_once_a_later_epoch_was_there_an_earlier_one_is_not_asked_and_grants_nothing() -> (
    None
):
    wire = Notes()
    link = auth_link(wire)
    old = peer("auth", "old", auth=AuthOffer(epoch=1, database_id="db"))
    new = peer("auth", "new", auth=AuthOffer(epoch=2, database_id="db"))
    link.on_peer_ready(old)
    asking = asyncio.create_task(
        link.authorize(Authorize(request_id="r", key_digest=None, endpoint="/x"))
    )
    await asyncio.sleep(0)
    assert wire.sent[0][0] is old
    link.on_peer_ready(new)
    with pytest.raises(WorkerUnavailableError):
        await asking
    # It wakes up, and says what it had decided.
    link.on_event(old, Granted(request_id="r", lease_id="l", tenant="t", key_id="k", role="user"))
    assert [settle.lease_id for settle in wire.of(Settle)] == ["l"]
    assert wire.sent[-1][0] is new
    link.on_peer_lost(new)
    link.on_peer_ready(old)
    assert not link.is_ready
    other = peer("auth", "other", auth=AuthOffer(epoch=1, database_id="db.1"))
    link.on_peer_ready(other)
    assert link.is_ready, "epochs of another database can't be compared"


async def test_a_silent_worker_of_the_last_epoch_is_waited_for_rather_than_passed_by() -> None:
    link = auth_link(Notes())
    old = peer("auth", "old", auth=AuthOffer(epoch=1, database_id="db"))
    new = peer("auth", "new", auth=AuthOffer(epoch=2, database_id="db"))
    link.on_peer_ready(old)
    link.on_peer_ready(new)
    new.is_silent = True
    assert not link.is_ready


async def test_an_auth_worker_that_was_not_heard_for_a_while_is_asked_and_may_answer() -> None:
    wire, slow = Notes(), peer("auth", "slow", auth=AuthOffer(epoch=2))
    link = auth_link(wire)
    link.on_peer_ready(slow)
    slow.is_silent = True
    assert not link.is_ready
    answer = link.ask(Authorize(request_id="r", key_digest=None, endpoint="/x"))
    granted = Granted(request_id="r", lease_id="", tenant="t", key_id="k", role="user")
    link.on_event(slow, granted)
    assert (await answer).tenant == "t"
    # One that is heard is asked before it, whatever their epochs; one that hangs is not asked.
    link.on_peer_ready(peer("auth", "heard", auth=AuthOffer(epoch=1)))
    link.ask(Authorize(request_id="s", key_digest=None, endpoint="/x"))
    assert wire.sent[-1][0].instance_id == "heard"
    alone = auth_link(wire)
    alone.on_peer_ready(slow)
    slow.stuck_at = 7
    with pytest.raises(WorkerUnavailableError):
        alone.ask(Authorize(request_id="t", key_digest=None, endpoint="/x"))


def orphan_usage() -> OrphanUsage:
    return OrphanUsage(report_id="w:1", engine_id="w", streams=(StreamUsage(lease_id="l"),))


def test_an_engines_report_goes_to_auth_and_the_answer_back_to_that_engine() -> None:
    reports: list[OrphanUsage] = []
    wire, one = Notes(), engine_peer()
    engines, _ = engine_link(wire, reports)
    engines.on_peer_ready(one)
    engines.on_event(one, orphan_usage())
    auth_wire, two = Notes(), peer("auth", auth=AuthOffer(epoch=1))
    auth = auth_link(auth_wire)
    auth.report_orphans(reports[0])  # nobody is there: the engine will repeat it
    auth.on_peer_ready(two)
    auth.report_orphans(reports[0])
    assert auth_wire.sent == [(two, orphan_usage())]
    auth.on_event(two, OrphanUsageNoted(report_id="w:1", engine_id="w"))
    (noted,) = auth_wire.noted
    engines.orphans_noted(noted)
    engines.orphans_noted(OrphanUsageNoted(report_id="x:1", engine_id="x"))
    assert wire.sent == [(one, noted)]


def test_an_auth_worker_that_is_too_old_gets_no_report() -> None:
    wire, one = Notes(), peer("auth", auth=AuthOffer(epoch=1))
    one.protocol_version = ProtocolVersion(1, 0)
    link = auth_link(wire)
    link.on_peer_ready(one)
    link.report_orphans(orphan_usage())
    assert wire.sent == []


async def test_what_an_older_auth_worker_would_leave_aside_is_not_sent() -> None:
    wire, one = Notes(), peer("auth", auth=AuthOffer(epoch=1))
    one.protocol_version = ProtocolVersion(1, 4)
    link = auth_link(wire)
    link.on_peer_ready(one)
    actor = Actor(key_id="key_1")
    question = ReadAudit(request_id="r", reader=actor, actions=("key_created",))
    with pytest.raises(WorkerUnavailableError, match="older release"):
        await link.administer(question, AuditPage)
    both = UpdateKey("r", actor, "key_2", ("name",), KeySettings(name="n"), "revoke")
    with pytest.raises(WorkerUnavailableError, match="older release"):
        await link.administer(both, KeysFound)
    assert wire.sent == []


class ParseNotes:
    """A request that notes what its parser says."""

    attempt = 1

    def on_parsed(self, parsed: ParsedDelta) -> None: ...

    def on_parse_failure(self, error: GatewayError) -> None: ...


def parser_peer(name: str, *formats: str) -> Peer:
    offer = ParserOffer(tool_formats=formats, reasoning_formats=("think",))
    return peer("toolparser", name, parser=offer)


async def open_session(link: ParserLink, wire: Notes, request_id: str) -> Peer:
    opening = OpenParse(request_id=request_id, attempt=1, tool_format="hermes")
    asking = asyncio.create_task(link.open(opening, ParseNotes()))
    await asyncio.sleep(0)
    chosen = wire.sent[-1][0]
    link.on_event(chosen, ParseOpened(request_id=request_id, attempt=1))
    found, _ = await asking
    return found


async def test_sessions_go_to_the_parser_with_the_fewest_that_knows_the_format() -> None:
    wire = Notes()
    link = ParserLink(wire)
    for one in (parser_peer("a", "hermes"), parser_peer("b", "hermes"), parser_peer("c", "x")):
        link.on_peer_ready(one)
    chosen = [(await open_session(link, wire, f"r{n}")).instance_id for n in range(4)]
    assert sorted(chosen) == ["a", "a", "b", "b"]
    with pytest.raises(WorkerUnavailableError, match="nope"):
        await link.open(OpenParse(request_id="r9", attempt=1, tool_format="nope"), ParseNotes())


async def test_text_that_gathers_in_one_turn_of_the_loop_travels_as_one_batch() -> None:
    wire = Notes()
    link = ParserLink(wire)
    link.on_peer_ready(parser_peer("a", "hermes"))
    one = await open_session(link, wire, "r1")
    await open_session(link, wire, "r2")
    link.feed(one, "r1", 0, 1, "ab", (1, 2))
    link.feed(one, "r2", 0, 1, "x")
    link.feed(one, "r1", 0, 1, "c", (3,), final=True)
    await asyncio.sleep(0)
    (batch,) = wire.of(ParseBatch)
    first, second = batch.deltas
    assert (first.text, first.token_ends, first.final) == ("abc", (1, 2, 3), True)
    assert (second.request_id, second.text, second.final) == ("r2", "x", False)


async def test_who_gives_up_opening_closes_what_may_have_been_opened() -> None:
    wire = Notes()
    link = ParserLink(wire)
    link.on_peer_ready(parser_peer("a", "hermes"))
    opening = OpenParse(request_id="r", attempt=1, tool_format="hermes")
    asking = asyncio.create_task(link.open(opening, ParseNotes()))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert len(wire.of(CloseParse)) == 1


async def test_a_session_that_fails_right_behind_its_answer_is_fed_nothing() -> None:
    """Its opener took the answer for good and fed a session that was gone."""
    wire = Notes()
    link = ParserLink(wire)
    one = parser_peer("a", "hermes")
    link.on_peer_ready(one)
    opening = OpenParse(request_id="r", attempt=1, tool_format="hermes")
    asking = asyncio.create_task(link.open(opening, ParseNotes()))
    await asyncio.sleep(0)
    # Both in one turn of the loop, before whoever asked has run again.
    link.on_event(one, ParseOpened(request_id="r", attempt=1))
    link.on_event(
        one, Failure(request_id="r", attempt=1, code=ErrorCode.UNKNOWN_REQUEST, message="gone")
    )
    with pytest.raises(RemoteFailureError, match="gone"):
        await asking
    assert wire.of(ParseBatch) == []


async def test_a_session_that_failed_is_closed_and_what_waited_for_it_is_not_sent() -> None:
    wire = Notes()
    link = ParserLink(wire)
    one = parser_peer("a", "hermes")
    link.on_peer_ready(one)
    await open_session(link, wire, "r")
    link.feed(one, "r", 0, 1, "text")
    link.on_event(
        one, Failure(request_id="r", attempt=1, code=ErrorCode.INTERNAL_ERROR, message="unsent")
    )
    await asyncio.sleep(0)
    assert wire.of(CloseParse) == [CloseParse(request_id="r", attempt=1)]
    assert wire.of(ParseBatch) == []


async def test_a_second_question_of_an_open_id_is_refused_instead_of_taking_its_answer() -> None:
    questions, asked = QuestionTable(), peer("auth")
    answer = questions.open("req-1", asked, Granted)
    with pytest.raises(ValueError, match="open already"):
        questions.open("req-1", asked, Granted)
    assert questions.is_open("req-1", asked)
    assert not answer.done()
    assert questions.close("req-1")

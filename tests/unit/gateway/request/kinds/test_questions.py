"""Work that is one question to an engine: slots, other engines, poison, and what is charged."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gateway import bridge
from gateway.dispatch.quarantine import Suspicion
from gateway.dispatch.slots import Share, Slot, SlotKind
from gateway.errors import (
    ClientDisconnectedError,
    DeadlineExceededError,
    ModelNotFoundError,
    OverloadedError,
    PoisonRequestError,
    RemoteFailureError,
    UnsupportedFieldError,
    WorkerUnavailableError,
)
from gateway.request.jobs.job import question_fingerprint
from gateway.request.kinds.questions import Question, QuestionWork
from gateway.request.lifecycle.request import ABORT_PATIENCE_S, Request, State
from protocol.errors import ErrorCode
from protocol.version import ProtocolVersion
from protocol.wire.messages import (
    Authorize,
    Cancel,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    EngineOffer,
    Message,
    Usage,
)
from protocol.wire.peers import Peer
from tests.fakes.request_parts import CALLER, Parts
from tests.fakes.virtual_time import idle

LEAST, BOUND = 3, 20


def embedding(
    texts: tuple[str, ...] = ("hello",), check: Callable[..., None] = lambda *_: None
) -> Question[Embed, Embedded]:
    return Question(
        endpoint="/v1/embeddings",
        model="m",
        message=bridge.embedding_inputs(texts, (), None, None),
        answer_kind=Embedded,
        check=check,
        prompt_tokens=lambda offer: BOUND if offer is None else BOUND + 1,
        least_tokens=lambda offer: LEAST * offer.resume_version,
        tokens_of=lambda embedded: sum(embedded.num_tokens),
        slot="work",
    )


def detokenizing(model: str = "m") -> Question[Detokenize, Detokenized]:
    return Question(
        endpoint="/detokenize",
        model=model,
        message=bridge.token_ids((1, 2)),
        answer_kind=Detokenized,
        check=lambda *_: None,
    )


class Asked:
    """A question whose request was started."""

    def __init__(self, parts: Parts, question: Question[Any, Any], request_id: str = "r") -> None:
        made: tuple[Request, QuestionWork[Any, Any]] = parts.factory.question(
            question, CALLER, request_id
        )
        self.request, self.work = made
        self.task = asyncio.create_task(self.request.start())

    async def error(self) -> BaseException | None:
        (outcome,) = await asyncio.gather(self.task, return_exceptions=True)
        return outcome


async def asked(
    parts: Parts, question: Question[Any, Any] | None = None, tenant: str = "t"
) -> Asked:
    """At an engine, if one is there."""
    started = Asked(parts, question or embedding())
    await idle()
    await parts.grant(tenant=tenant)
    return started


async def answer(parts: Parts, one: Peer, num_tokens: tuple[int, ...] = (4, 5)) -> None:
    message: Message = Embedded(
        request_id="r", num_dimensions=1, vectors=b"\0" * 4, num_tokens=num_tokens
    )
    parts.link.on_event(one, message)  # type: ignore[arg-type]
    await idle()


def engine_of_last_question(parts: Parts) -> Peer:
    return [one for one, message in parts.engine_wire.sent if isinstance(message, Embed)][-1]


def assert_settled(parts: Parts, tokens: int, *, is_unused: bool, outcome: str) -> None:
    (settle,) = parts.outbox.settles
    assert (settle.prompt_tokens, settle.is_unused, settle.outcome) == (tokens, is_unused, outcome)
    assert (settle.completion_tokens, settle.lease_id) == (0, "lease")
    assert (parts.num_slots, len(parts.sessions), len(parts.link._questions)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("told", "charged"), [((20, 5), 25), ((1, 1), LEAST), ((), LEAST), (None, LEAST)]
)
async def test_a_client_that_leaves_is_charged_what_was_computed_until_then(
    told: tuple[int, ...] | None, charged: int
) -> None:
    parts = Parts()
    one = parts.engine()
    started = await asked(parts, replace(embedding(), is_counted_late=True))
    await idle()
    started.request.on_client_gone()
    await idle()
    assert isinstance(await started.error(), ClientDisconnectedError)
    assert [message.request_id for message in parts.engine_wire.of(Cancel)] == ["r"]
    assert parts.outbox.settles == []
    if told is None:
        await asyncio.sleep(ABORT_PATIENCE_S + 1)  # an engine of an older release says nothing
    else:
        await answer(parts, one, told)
    await idle()
    assert_settled(parts, charged, is_unused=False, outcome="aborted")


async def test_a_client_that_leaves_while_its_engine_dies_waits_for_nobody() -> None:
    parts = Parts()
    one = parts.engine()
    started = await asked(parts, replace(embedding(), is_counted_late=True))
    await idle()
    started.request.on_client_gone()
    await idle()
    parts.lose(one)
    await idle()
    assert isinstance(await started.error(), ClientDisconnectedError)
    assert_settled(parts, LEAST, is_unused=False, outcome="aborted")


async def test_an_answered_question_is_charged_what_its_answer_says() -> None:
    parts = Parts()
    one = parts.engine()
    started = Asked(parts, embedding())
    await idle()
    (authorize,) = parts.auth_wire.of(Authorize)
    assert (authorize.prompt_tokens, authorize.endpoint) == (BOUND + 1, "/v1/embeddings")
    assert (authorize.is_metered, authorize.model) == (True, "m")
    assert parts.engine_wire.sent == []
    await asyncio.sleep(2.0)
    await parts.grant(tenant="tenant", priority=3)
    (embed,) = parts.engine_wire.of(Embed)
    assert embed == Embed(
        request_id="r",
        deadline_s=58.0,
        texts=("hello",),
        priority=3,
        tenant="tenant",
        trace_id="trace",
    )
    assert (parts.num_slots, parts.handle(one).num_tokens) == (1, BOUND + 1)
    assert started.request.state is State.RUNNING
    await answer(parts, one)
    assert await started.error() is None
    assert started.work.answer.num_tokens == (4, 5)
    assert started.request.usage().prompt_tokens == 9
    assert_settled(parts, 9, is_unused=False, outcome="finished")
    assert parts.engine_wire.of(Cancel) == []
    (counted,) = parts.metrics.tokens.samples()
    assert (counted.labels, counted.value) == ((("model", "m"), ("kind", "prompt")), 9)


async def test_the_lease_of_a_question_is_renewed_and_a_drain_waits_for_it() -> None:
    """Neither a drain nor the renewal knew of embeddings."""
    parts = Parts()
    one = parts.engine()
    started = await asked(parts)
    assert len(parts.sessions) == 1
    (report,) = parts.sessions.lease_reports()
    assert report.lease_id == started.request.lease.lease_id
    await answer(parts, one)
    assert await started.error() is None
    assert (len(parts.sessions), parts.sessions.lease_reports()) == (0, ())


async def test_what_charges_no_tokens_counts_as_a_request() -> None:
    parts = Parts()
    one = parts.engine()
    started = await asked(parts, detokenizing())
    assert (parts.handle(one).num_questions, parts.handle(one).num_requests) == (1, 0)
    parts.link.on_event(one, Detokenized(request_id="r", text="ab"))
    assert await started.error() is None
    assert started.work.answer.text == "ab"
    assert_settled(parts, 0, is_unused=False, outcome="finished")
    assert "penstock_gateway_tokens_total{" not in parts.metrics.render().decode()


async def test_a_question_is_not_answered_by_another_kind_of_message() -> None:
    parts = Parts()
    one = parts.engine()
    started = await asked(parts, detokenizing())
    await answer(parts, one)
    assert not started.task.done()
    started.request.end("aborted")
    await started.error()


@pytest.mark.parametrize(("version", "num_cancels"), [((1, 2), 1), ((1, 1), 0)])
async def test_an_abandoned_question_is_charged_the_least_that_it_costs(
    version: tuple[int, int], num_cancels: int
) -> None:
    parts = Parts()
    parts.engine(version=version)
    started = await asked(parts)
    started.request.on_client_gone()
    assert isinstance(await started.error(), ClientDisconnectedError)
    assert len(parts.engine_wire.of(Cancel)) == num_cancels
    assert_settled(parts, LEAST, is_unused=False, outcome="aborted")


async def test_a_question_whose_time_runs_out_at_an_engine_is_charged_the_least() -> None:
    parts = Parts(timeout_s=9.0)
    parts.engine()
    started = await asked(parts)
    assert isinstance(await started.error(), DeadlineExceededError)
    assert_settled(parts, LEAST, is_unused=False, outcome="failed")


async def test_who_leaves_before_an_engine_was_asked_pays_nothing() -> None:
    parts = Parts()
    one = parts.engine(max_requests=1)
    parts.handle(one).num_requests = 1
    started = await asked(parts)
    started.request.on_client_gone()
    await started.error()
    parts.handle(one).num_requests = 0
    assert_settled(parts, 0, is_unused=True, outcome="aborted")
    assert parts.engine_wire.sent == []
    assert parts.admission.num_waiting("m") == 0


async def test_a_question_that_the_engine_finds_wrong_counts_and_is_charged_nothing() -> None:
    """It was charged the least that an embedding costs, though nothing was embedded."""
    parts = Parts()
    one = parts.engine()
    started = await asked(parts)
    await parts.fail(one, "r", ErrorCode.INVALID_REQUEST, param="input")
    error = await started.error()
    assert isinstance(error, RemoteFailureError)
    assert error.param == "input"
    assert_settled(parts, 0, is_unused=False, outcome="failed")


@pytest.mark.parametrize(("computed", "charged"), [(25, 25), (1, LEAST)])
async def test_a_question_whose_time_runs_out_at_its_engine_is_charged_what_was_computed(
    computed: int, charged: int
) -> None:
    """The engine was a moment earlier than the gateway; nobody was charged anything."""
    parts = Parts()
    one = parts.engine()
    started = await asked(parts)
    usage = Usage(prompt_tokens=computed, cached_tokens=1)
    await parts.fail(one, "r", ErrorCode.DEADLINE_EXCEEDED, usage=usage)
    error = await started.error()
    assert isinstance(error, RemoteFailureError)
    assert error.code is ErrorCode.DEADLINE_EXCEEDED
    assert_settled(parts, charged, is_unused=False, outcome="failed")


async def test_a_client_that_leaves_as_the_time_runs_out_is_charged_what_was_computed() -> None:
    parts = Parts()
    one = parts.engine()
    started = await asked(parts, replace(embedding(), is_counted_late=True))
    await idle()
    started.request.on_client_gone()
    await idle()
    usage = Usage(prompt_tokens=25)
    await parts.fail(one, "r", ErrorCode.DEADLINE_EXCEEDED, usage=usage)
    assert isinstance(await started.error(), ClientDisconnectedError)
    assert_settled(parts, 25, is_unused=False, outcome="aborted")


async def test_a_question_for_which_the_engines_are_full_is_unused() -> None:
    """The refused request counted, and was charged tokens that nobody had computed."""
    parts = Parts()
    one = parts.engine()
    started = await asked(parts)
    for _ in range(4):
        await parts.fail(one, "r", ErrorCode.OVERLOADED, message="full")
        await asyncio.sleep(1.0)
    error = await started.error()
    assert isinstance(error, RemoteFailureError)
    assert (error.code, str(error)) == (ErrorCode.OVERLOADED, "full")
    assert len(parts.engine_wire.of(Embed)) == 4
    assert_settled(parts, 0, is_unused=True, outcome="failed")


async def test_a_full_engine_is_left_alone_before_it_is_asked_again() -> None:
    parts = Parts()
    one = parts.engine()
    started = await asked(parts)
    await parts.fail(one, "r", ErrorCode.OVERLOADED, retry_after_s=2.0)
    await asyncio.sleep(1.9)
    assert len(parts.engine_wire.of(Embed)) == 1
    await asyncio.sleep(0.2)
    assert len(parts.engine_wire.of(Embed)) == 2
    await answer(parts, one)
    assert await started.error() is None


async def test_a_lost_engine_makes_room_for_another_one() -> None:
    parts = Parts()
    first = parts.engine("a")
    started = await asked(parts)
    second = parts.engine("b")
    parts.lose(first)
    await idle()
    assert engine_of_last_question(parts) is second
    assert parts.handle(second).num_tokens == BOUND + 1
    await answer(parts, second)
    assert await started.error() is None
    assert_settled(parts, 9, is_unused=False, outcome="finished")


async def test_a_question_beside_the_steps_needs_no_credit_at_the_next_engine_either() -> None:
    parts = Parts()
    first = parts.engine("a")
    started = await asked(parts, detokenizing())
    second = parts.engine("b", max_requests=1)
    parts.handle(second).num_requests = 1
    parts.lose(first)
    await idle()
    assert [one for one, _ in parts.engine_wire.sent] == [first, second]
    assert (parts.handle(second).num_requests, parts.handle(second).num_questions) == (1, 1)
    parts.link.on_event(second, Detokenized(request_id="r", text="ab"))
    await idle()
    assert await started.error() is None
    parts.handle(second).num_requests = 0
    assert parts.num_slots == 0


async def test_after_two_deaths_a_question_runs_alone_and_a_third_one_convicts_it() -> None:
    parts = Parts()
    engines = [parts.engine(name) for name in "abcd"]
    started = await asked(parts, tenant="guilty")
    for expected in (False, True):
        one = engine_of_last_question(parts)
        engines.remove(one)
        parts.lose(one)
        await idle()
        assert parts.handle(engine_of_last_question(parts)).is_reserved is expected
    last = engine_of_last_question(parts)
    engines.remove(last)
    parts.lose(last)
    error = await started.error()
    assert isinstance(error, PoisonRequestError)
    assert len(engines) == 1
    assert parts.num_slots == 0
    assert len(parts.engine_wire.of(Embed)) == 3
    (settle,) = parts.outbox.settles
    assert (settle.outcome, settle.is_unused) == ("failed", False)
    assert parts.quarantine._until.keys() == {
        question_fingerprint(embedding().message, "m", "guilty")
    }
    # Refused now, with nothing sent; another tenant, or another text, is served.
    again = await asked(parts, tenant="guilty")
    assert isinstance(await again.error(), PoisonRequestError)
    assert len(parts.engine_wire.of(Embed)) == 3
    for question, tenant in ((embedding(), "innocent"), (embedding(("hi",)), "guilty")):
        other = await asked(parts, question, tenant=tenant)
        await answer(parts, engines[0])
        assert await other.error() is None
    assert parts.num_slots == 0


async def test_an_engine_that_leaves_in_good_order_speaks_against_nobody() -> None:
    parts = Parts()
    for name in "abcd":
        parts.engine(name)
    started = await asked(parts)
    for _ in range(3):
        parts.lose(engine_of_last_question(parts), "goodbye")
        await idle()
    last = engine_of_last_question(parts)
    assert not parts.handle(last).is_reserved
    await answer(parts, last)
    assert await started.error() is None


async def test_what_the_model_does_not_do_is_refused_after_the_grant() -> None:
    told: list[tuple[EngineOffer, ProtocolVersion]] = []

    def check(offer: EngineOffer, version: ProtocolVersion) -> None:
        told.append((offer, version))
        raise UnsupportedFieldError("not here")

    parts = Parts()
    one = parts.engine(version=(1, 1))
    started = Asked(parts, embedding(check=check))
    await idle()
    assert told == []
    await parts.grant()
    assert isinstance(await started.error(), UnsupportedFieldError)
    assert told == [(one.engine, ProtocolVersion(1, 1))]
    assert_settled(parts, 0, is_unused=False, outcome="failed")


async def test_a_model_that_nobody_serves_is_named() -> None:
    parts = Parts()
    started = await asked(parts, detokenizing("nope"))
    assert isinstance(await started.error(), ModelNotFoundError)
    later = await asked(parts, detokenizing("later"))
    assert isinstance(await later.error(), WorkerUnavailableError)
    assert [settle.is_unused for settle in parts.outbox.settles] == [False, True]
    # A name that no engine serves must not become a label.
    assert "nope" not in parts.metrics.render().decode()


async def test_without_an_engine_the_bound_is_what_the_question_says_of_itself() -> None:
    parts = Parts()
    started = Asked(parts, embedding())
    await idle()
    assert parts.auth_wire.of(Authorize)[-1].prompt_tokens == BOUND
    started.request.end("aborted")
    await started.error()


async def test_questions_wait_in_turn_and_are_refused_when_too_many_do() -> None:
    parts = Parts(max_queue=1)
    one = parts.engine(max_requests=1)
    parts.handle(one).num_requests = 1
    waiting = await asked(parts)
    second = Asked(parts, embedding(), "second")
    await idle()
    await parts.grant("second")
    assert isinstance(await second.error(), OverloadedError)
    assert [settle.is_unused for settle in parts.outbox.settles] == [True]
    parts.handle(one).num_requests = 0
    parts.admission.pump("m")
    await idle()
    assert len(parts.engine_wire.of(Embed)) == 1
    await answer(parts, one)
    assert await waiting.error() is None


@pytest.mark.parametrize("kind", ["work", "question"])
async def test_the_priority_of_the_caller_orders_its_questions(kind: SlotKind) -> None:
    parts = Parts()
    one = parts.engine(max_requests=1)
    parts.handle(one).num_requests = 1
    parts.handle(one).num_questions = 16
    order = []
    for name, priority in (("late", 5), ("early", 1)):
        question = embedding() if kind == "work" else detokenizing()
        Asked(parts, question, name)
        await idle()
        await parts.grant(name, priority=priority)
    parts.handle(one).num_requests = 0
    parts.handle(one).num_questions = 15
    parts.admission.pump("m")
    await idle()
    order = [getattr(message, "request_id", "") for _, message in parts.engine_wire.sent]
    assert order == ["early"]
    parts.sessions.fail_all(OverloadedError("enough"))
    await idle()


async def test_a_death_before_a_refusal_does_not_make_the_refusal_a_use() -> None:
    parts = Parts()
    first, second = parts.engine("a"), parts.engine("b")
    started = await asked(parts)
    one = engine_of_last_question(parts)
    parts.lose(one)
    await idle()
    other = second if one is first else first
    await parts.fail(other, "r", ErrorCode.INVALID_REQUEST)
    await started.error()
    assert_settled(parts, 0, is_unused=False, outcome="failed")


async def test_suspicion_is_kept_from_engine_to_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second suspicion would forget the first death."""
    made: list[Suspicion] = []
    original = Suspicion.__init__

    def noting(self: Suspicion, *arguments: Any) -> None:
        made.append(self)
        original(self, *arguments)

    monkeypatch.setattr(Suspicion, "__init__", noting)
    parts = Parts()
    one = parts.engine()
    started = await asked(parts)
    await answer(parts, one)
    await started.error()
    assert len(made) == 1


async def test_questions_are_fair_between_tenants_and_pay_what_they_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paid: list[int | None] = []
    parts = Parts()
    one = parts.engine(max_requests=1)
    release = parts.admission.release

    def noting(slot: Slot, used_tokens: int | None = None) -> None:
        paid.append(used_tokens)
        release(slot, used_tokens)

    monkeypatch.setattr(parts.admission, "release", noting)
    parts.handle(one).num_requests = 1
    for name, tenant in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        Asked(parts, embedding(), name)
        await idle()
        await parts.grant(name, tenant=tenant)
    parts.handle(one).num_requests = 0
    parts.admission.pump("m")
    order = []
    for _ in range(3):
        await idle()
        order.append(parts.engine_wire.of(Embed)[-1].request_id)
        parts.link.on_event(
            one,
            Embedded(request_id=order[-1], num_dimensions=1, vectors=b"", num_tokens=(6,)),
        )
    await idle()
    assert order == ["a1", "b1", "a2"]
    assert paid == [6, 6, 6]


async def test_a_question_that_was_left_is_paid_by_its_tenants_share() -> None:
    parts = Parts()
    parts.engine(max_requests=1)
    line = parts.admission._model("m").lines["work"]
    corrected: list[int] = []
    charge = line.charge

    def charged(share: Share, tokens: int) -> None:
        corrected.append(tokens)
        charge(share, tokens)

    line.charge = charged  # type: ignore[method-assign]
    first = await asked(parts)
    second = Asked(parts, embedding(), "s")
    await idle()
    await parts.grant(lease_id="another")
    first.request.on_client_gone()
    await idle()
    assert len(parts.engine_wire.of(Embed)) == 2
    second.request.on_client_gone()
    await idle()
    assert parts.outbox.settles[-1].prompt_tokens == LEAST
    assert corrected[-1] == LEAST - (BOUND + 1)
    await asyncio.gather(first.task, second.task, return_exceptions=True)

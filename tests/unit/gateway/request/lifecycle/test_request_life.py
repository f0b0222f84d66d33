"""The life of a request: its states, and what an end at each stage leaves behind."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.errors import (
    ClientDisconnectedError,
    DeadlineExceededError,
    GatewayError,
    OverloadedError,
    ShuttingDownError,
    WorkerUnavailableError,
)
from gateway.request.callers.identity import Identity
from gateway.request.jobs.answer_options import AnswerOptions
from gateway.request.lifecycle.request import ABORT_PATIENCE_S, Request, State
from protocol.wire.messages import (
    Abort,
    Authorize,
    Cancel,
    LeaseReport,
    LimitState,
    Prepare,
    Settle,
    Usage,
)
from tests.fakes.request_parts import DIGEST, Generation, Parts, generation_job
from tests.fakes.request_stages import (
    waits_for_a_slot,
    waits_for_its_grant,
    waits_for_its_grant_with_prompts_ahead,
    waits_for_its_lease,
    waits_for_its_parser,
    waits_for_its_prompt,
)

STAGES: dict[Callable[[Parts], Awaitable[Generation]], State] = {
    waits_for_its_grant: State.IDENTIFIED,
    waits_for_its_grant_with_prompts_ahead: State.IDENTIFIED,
    waits_for_a_slot: State.RESERVED,
    waits_for_its_prompt: State.RESERVED,
    waits_for_its_lease: State.PREPARED,
    waits_for_its_parser: State.RUNNING,
}
stages = pytest.mark.parametrize("begin", list(STAGES), ids=lambda stage: stage.__name__)


def assert_nothing_is_left(parts: Parts, started: Generation) -> None:
    taken = sum(one.num_requests for one in parts.directory.engines("m"))
    held_by_the_test = 1 if parts.directory.engines("m")[0].offer.credits.max_requests == 1 else 0
    assert taken == held_by_the_test
    assert parts.admission.num_waiting("m") == 0
    assert len(parts.sessions) == 0
    assert len(parts.link._questions) == 0
    assert len(parts.auth._questions) == 0
    assert started.request.state is State.SETTLED
    assert parts.generates() == []


@stages
async def test_an_end_cancels_the_start_whatever_it_waits_for(
    begin: Callable[[Parts], Awaitable[Generation]],
) -> None:
    parts = Parts()
    started = await begin(parts)
    assert started.request.state is STAGES[begin]
    assert len(parts.sessions) == 1
    error = GatewayError("the end")
    started.request.end("failed", error)
    assert await started.error() is error
    assert_nothing_is_left(parts, started)
    assert started.request.outcome == "failed"
    # A lease that was granted is given back whole; nothing was begun.
    has_lease = STAGES[begin] is not State.IDENTIFIED
    assert [settle.is_unused for settle in parts.outbox.settles] == [True] * has_lease
    # Nobody else's cancellation: the task that started it goes on.
    assert started.task.cancelling() == 0


@stages
async def test_a_client_that_leaves_while_it_starts_is_told_nothing_and_pays_nothing(
    begin: Callable[[Parts], Awaitable[Generation]],
) -> None:
    parts = Parts()
    started = await begin(parts)
    started.request.on_client_gone()
    error = await started.error()
    assert isinstance(error, ClientDisconnectedError)
    assert str(error) == "The client disconnected."
    assert_nothing_is_left(parts, started)
    assert all(settle.is_unused for settle in parts.outbox.settles)
    assert all(settle.outcome == "aborted" for settle in parts.outbox.settles)


@stages
async def test_a_task_that_is_cancelled_takes_its_request_along(
    begin: Callable[[Parts], Awaitable[Generation]],
) -> None:
    parts = Parts()
    started = await begin(parts)
    started.task.cancel()
    assert isinstance(await started.error(), asyncio.CancelledError)
    assert started.task.cancelled()
    assert started.request.outcome == "aborted"
    assert_nothing_is_left(parts, started)
    assert all(settle.is_unused for settle in parts.outbox.settles)


@stages
async def test_a_deadline_while_it_starts_is_a_504(
    begin: Callable[[Parts], Awaitable[Generation]],
) -> None:
    parts = Parts(timeout_s=2.0)
    started = await begin(parts)
    loop = asyncio.get_running_loop()
    error = await started.error()
    assert loop.time() == 2.0
    assert isinstance(error, DeadlineExceededError)
    assert str(error) == "The request took longer than 2 seconds."
    assert_nothing_is_left(parts, started)
    assert all(settle.is_unused for settle in parts.outbox.settles)


@stages
async def test_the_end_of_a_drain_ends_what_starts(
    begin: Callable[[Parts], Awaitable[Generation]],
) -> None:
    parts = Parts()
    started = await begin(parts)
    parts.sessions.fail_all(ShuttingDownError())
    assert isinstance(await started.error(), ShuttingDownError)
    # A second signal changes nothing, and settles nothing twice.
    parts.sessions.fail_all(ShuttingDownError())
    assert_nothing_is_left(parts, started)
    assert len(parts.outbox.settles) <= 1


@pytest.mark.parametrize(("version", "num_cancels"), [((1, 2), 1), ((1, 1), 0)])
@pytest.mark.parametrize("is_known", [False, True])
async def test_a_prompt_on_its_way_is_cancelled_at_an_engine_that_understands(
    version: tuple[int, int], num_cancels: int, is_known: bool
) -> None:
    parts = Parts()
    parts.engine(version=version)
    if is_known:
        parts.know_caller()
        started = await parts.generation()
    else:
        started = await parts.prepared_generation()
    assert len(parts.engine_wire.of(Prepare)) == 1
    started.request.on_client_gone()
    await started.error()
    assert [cancel.request_id for cancel in parts.engine_wire.of(Cancel)] == ["r"] * num_cancels


async def test_a_grant_that_comes_after_the_end_is_given_back_whole() -> None:
    parts = Parts()
    started = await waits_for_its_grant(parts)
    started.request.on_client_gone()
    await started.error()
    assert parts.auth_wire.of(Settle) == []
    await parts.grant("late")
    (settle,) = parts.auth_wire.of(Settle)
    assert (settle.lease_id, settle.is_unused) == ("late", True)
    assert parts.outbox.settles == []


async def test_a_grant_that_comes_in_the_moment_of_the_end_is_given_back_whole() -> None:
    parts = Parts()
    started = await waits_for_its_grant(parts)
    answer = parts.auth_wire.of(Authorize)[-1]
    granting = asyncio.create_task(parts.grant("late"))
    asyncio.get_running_loop().call_soon(started.request.on_client_gone)
    await granting
    assert isinstance(await started.error(), ClientDisconnectedError)
    settles = [*parts.auth_wire.of(Settle), *parts.outbox.settles]
    assert [(settle.request_id, settle.is_unused) for settle in settles] == [
        (answer.request_id, True)
    ]
    assert parts.generates() == []


async def test_nobody_who_grants_is_a_503_and_the_grant_that_comes_later_is_given_back() -> None:
    parts = Parts()
    started = await waits_for_its_grant(parts)
    error = await started.error()
    assert asyncio.get_running_loop().time() == 5.0
    assert isinstance(error, WorkerUnavailableError)
    assert parts.outbox.settles == []
    await parts.grant("late")
    assert [settle.lease_id for settle in parts.auth_wire.of(Settle)] == ["late"]


async def test_without_an_auth_worker_nothing_starts() -> None:
    parts = Parts()
    parts.engine()
    parts.know_caller()
    parts.auth.on_peer_lost(parts.auth_peer)
    started = await parts.generation()
    assert isinstance(await started.error(), WorkerUnavailableError)
    assert parts.engine_wire.sent == []
    assert len(parts.sessions) == 0


async def test_a_gateway_that_drains_takes_nothing_new() -> None:
    parts = Parts()
    parts.engine()
    parts.factory.is_draining = True
    started = await parts.generation()
    assert isinstance(await started.error(), ShuttingDownError)
    assert parts.auth_wire.sent == []
    assert len(parts.sessions) == 0


async def test_without_room_for_its_settlement_nothing_starts() -> None:
    parts = Parts()
    parts.engine()
    parts.outbox.refusal = OverloadedError("full")
    started = await parts.generation()
    assert await started.error() is parts.outbox.refusal
    assert parts.auth_wire.sent == []


async def test_what_auth_is_asked() -> None:
    parts = Parts()
    parts.engine()
    await parts.generation(generation_job("hello", "you", max_tokens=7))
    assert parts.auth_wire.of(Authorize) == [
        Authorize(
            request_id="r",
            key_digest=DIGEST,
            endpoint="/v1/completions",
            model="m",
            address="192.0.2.1",
            prompt_tokens=8,
            completion_tokens=14,
            is_metered=True,
            wait_s=5.0,
            trace_id="trace",
            scope="chat.completions",
            asked_tokens=14,
        )
    ]


async def test_auth_hears_who_streams_who_offers_tools_and_for_whom() -> None:
    parts = Parts()
    parts.engine()
    options = AnswerOptions(is_streaming=True)
    await parts.generation(generation_job(tools_json="[]", options=options, end_user="u"))
    asked = parts.auth_wire.of(Authorize)[-1]
    assert (asked.is_streaming, asked.uses_tools, asked.end_user) == (True, True, "u")


async def test_a_whole_life_goes_through_all_states_and_settles_once() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.generation()
    states = [started.request.state]
    assert parts.engine_wire.sent == []
    assert started.request.lease_report() is None
    await parts.grant(tenant="tenant", priority=3)
    states.append(started.request.state)
    (prepare,) = parts.engine_wire.of(Prepare)
    assert (prepare.request_id, prepare.tenant, prepare.trace_id) == ("r", "tenant", "trace")
    assert prepare.deadline_s == 60.0
    await parts.prepare_next()
    await started.task
    assert parts.num_slots == 1
    await parts.output(one, 2)
    assert started.request.lease_report() == LeaseReport(
        lease_id="lease",
        prompt_tokens=5,
        completion_tokens=2,
        max_prompt_tokens=5,
        max_completion_tokens=8,
        endpoint="/v1/completions",
    )
    assert started.request.usage() == Usage(prompt_tokens=5, completion_tokens=2)
    states.append(started.request.state)
    await parts.finish(one, usage=Usage(prompt_tokens=5, completion_tokens=3, cached_tokens=4))
    states.append(started.request.state)
    assert states == [State.IDENTIFIED, State.RESERVED, State.RUNNING, State.SETTLED]
    assert parts.outbox.settles == [
        Settle(
            lease_id="lease",
            request_id="r",
            prompt_tokens=5,
            completion_tokens=3,
            cached_tokens=4,
            outcome="finished",
            endpoint="/v1/completions",
            has_begun=True,
        )
    ]
    assert (parts.num_slots, len(parts.sessions)) == (0, 0)
    # Whoever calls it once more, as every exit path does, changes nothing.
    started.request.end("aborted")
    started.request.on_idle()
    assert started.request.outcome == "finished"
    assert len(parts.outbox.settles) == 1


@stages
async def test_a_request_never_goes_back_to_an_earlier_state(
    begin: Callable[[Parts], Awaitable[Generation]], monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[State] = []

    def note(request: Request, name: str, value: object) -> None:
        object.__setattr__(request, name, value)
        if name == "state":
            assert isinstance(value, State)
            states.append(value)

    monkeypatch.setattr(Request, "__setattr__", note)
    started = await begin(Parts())
    started.request.end("aborted")
    started.request.end("failed", GatewayError("too late"))
    started.request.on_idle()
    await started.error()
    assert states == [*list(State)[: STAGES[begin] + 1], State.ENDING, State.SETTLED]


@pytest.mark.parametrize("state", State)
def test_only_a_later_state_follows(state: State) -> None:
    for other in State:
        if other > state:
            assert state.then(other) is other
        else:
            with pytest.raises(AssertionError, match="doesn't become"):
                state.then(other)


async def test_where_the_caller_stands_is_what_auth_said_last() -> None:
    parts = Parts()
    parts.engine()
    started = await parts.generation()
    assert started.request.lease.limits == LimitState()
    identities = [started.request.identity]
    await parts.grant(limits=LimitState(remaining_tokens=7), priority=2)
    assert started.request.lease.limits == LimitState(remaining_tokens=7)
    identities.append(started.request.identity)
    assert identities == [None, Identity("t", 2, "k")]
    await parts.prepare_next(num_tokens=50)
    await parts.adjust(LimitState(remaining_tokens=3))
    assert started.request.lease.limits == LimitState(remaining_tokens=3)


async def test_the_settlement_of_an_aborted_request_waits_for_the_engines_count() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running()
    await parts.output(one, 2)
    started.request.on_client_gone()
    assert [abort.choice for abort in parts.engine_wire.of(Abort)] == [0]
    assert started.request.state is State.ENDING
    assert (parts.outbox.settles, parts.num_slots, len(parts.sessions)) == ([], 1, 1)
    await parts.finish(one, "abort", Usage(prompt_tokens=5, completion_tokens=4))
    (settle,) = parts.outbox.settles
    assert (settle.completion_tokens, settle.outcome, settle.is_unused) == (4, "aborted", False)
    assert (parts.num_slots, len(parts.sessions)) == (0, 0)
    await asyncio.sleep(2 * ABORT_PATIENCE_S)
    assert len(parts.outbox.settles) == 1


async def test_an_engine_that_never_says_what_it_used_is_waited_for_ten_seconds() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running()
    await parts.output(one, 2)
    started.request.on_client_gone()
    await asyncio.sleep(ABORT_PATIENCE_S - 0.1)
    assert parts.outbox.settles == []
    await asyncio.sleep(0.2)
    (settle,) = parts.outbox.settles
    assert (settle.prompt_tokens, settle.completion_tokens) == (5, 2)
    assert (parts.num_slots, len(parts.sessions)) == (0, 0)
    await parts.finish(one, "abort", Usage(prompt_tokens=5, completion_tokens=4))
    assert len(parts.outbox.settles) == 1


async def test_the_deadline_of_a_running_request_comes_after_what_was_made_before() -> None:
    parts = Parts(timeout_s=30.0)
    one = parts.engine()
    started = await parts.running()
    await parts.output(one, text="a")
    await asyncio.sleep(30.0)
    assert [event.text for event in await started.events()] == ["a"]
    with pytest.raises(DeadlineExceededError):
        await started.work.next_events(None)


async def test_while_no_engine_is_there_the_deadline_is_a_503_that_says_so() -> None:
    parts = Parts(timeout_s=30.0)
    one = parts.engine()
    started = await parts.running()
    parts.lose(one)
    await asyncio.sleep(30.0)
    with pytest.raises(WorkerUnavailableError) as raised:
        await started.work.next_events(None)
    assert str(raised.value) == (
        "No engine of the model `m` came back within the 30 seconds that a request may take; "
        "please try again."
    )


async def test_the_time_left_is_never_negative() -> None:
    parts = Parts(timeout_s=3.0)
    parts.engine()
    await asyncio.sleep(100.0)
    started = await parts.generation()
    await asyncio.sleep(1.0)
    assert started.request.remaining_s() == 2.0
    await asyncio.sleep(5.0)
    assert started.request.remaining_s() == 0.0
    await started.error()


async def test_a_finished_request_is_not_told_that_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Request] = []
    monkeypatch.setattr(Request, "_on_deadline", lambda request: told.append(request))
    parts = Parts(timeout_s=30.0)
    one = parts.engine()
    await parts.running()
    await parts.finish(one)
    await asyncio.sleep(100.0)
    assert told == []


async def test_a_start_that_was_ended_without_a_reason_says_that_nobody_is_left() -> None:
    parts = Parts()
    started = await waits_for_its_prompt(parts)
    started.request.end("aborted")
    error = await started.error()
    assert isinstance(error, ClientDisconnectedError)
    assert str(error) == "The client disconnected."


async def test_who_still_reads_after_the_client_left_learns_of_it() -> None:
    parts = Parts()
    parts.engine()
    started = await parts.running()
    started.request.on_client_gone()
    with pytest.raises(ClientDisconnectedError, match="^The client disconnected.$"):
        await started.work.next_events(None)


async def test_work_that_can_not_be_stopped_is_settled_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It stayed among the requests under way: never settled, its lease renewed for ever."""
    parts = Parts()
    one = parts.engine()
    started = await parts.running()
    await parts.output(one, 2)

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(started.work, "abort", broken)
    started.request.on_client_gone()
    assert caplog.messages == ["request r could not be stopped"]
    caplog.clear()
    await asyncio.sleep(ABORT_PATIENCE_S + 0.1)
    assert [settle.completion_tokens for settle in parts.outbox.settles] == [2]
    assert (parts.num_slots, len(parts.sessions)) == (0, 0)


@pytest.mark.parametrize("is_settled", [True, False])
async def test_whoever_asked_lets_go_of_the_work_once_it_is_settled(is_settled: bool) -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running()
    await parts.output(one, 2)
    started.request.on_client_gone()
    usage = Usage(prompt_tokens=5, completion_tokens=3)
    if is_settled:
        await parts.finish(one, "abort", usage)
    started.request.release()
    assert (started.request.work is started.work) is not is_settled
    assert started.request._error is None
    if not is_settled:
        await parts.finish(one, "abort", usage)
    assert started.request.work is not started.work
    assert started.request.usage() == usage
    # What is left says nothing, and what still calls it does nothing.
    assert (started.request.model, started.request.first_output_s) == ("", None)
    started.request.on_client_gone()
    assert len(parts.outbox.settles) == 1

"""A request's reservation: corrected, grown, reported and settled."""

import asyncio
import logging

import pytest
from msgspec import structs

from gateway.errors import DeniedError, WorkerUnavailableError
from gateway.request.leases.lease import RequestLease
from gateway.request.leases.work_bound import Bound
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Adjust,
    Authorize,
    Denied,
    Granted,
    LeaseReport,
    LimitState,
    Settle,
    StreamUsage,
    Usage,
)
from tests.fakes.request_parts import Parts
from tests.fakes.virtual_time import idle

LIMITED = LimitState(limit_tokens=100)
ASKED = Authorize(request_id="r", key_digest=None, endpoint="/v1/chat/completions", end_user="ada")


def leased(parts: Parts, limits: LimitState = LIMITED, lease_id: str = "lease") -> RequestLease:
    """A lease of 10 prompt and 20 output tokens."""
    lease = RequestLease(parts.auth, "r")
    granted = Granted(
        request_id="r", lease_id=lease_id, tenant="t", key_id="k", role="user", limits=limits
    )
    lease.on_granted(granted, Bound(10, 20), ASKED)
    return lease


async def test_before_the_grant_there_is_nothing_to_report_or_to_book() -> None:
    parts = Parts()
    lease = RequestLease(parts.auth, "r")
    assert (lease.limits, lease.lease_id) == (LimitState(), "")
    assert lease.report(Usage(prompt_tokens=1)) is None
    lease.settle(parts.outbox, Usage(), "finished")
    await lease.correct(1000, 1000)
    assert await lease.grow(1000)
    assert (parts.outbox.settles, parts.auth_wire.sent) == ([], [])


async def test_what_a_budget_holds_is_given_back_without_a_limit_of_tokens() -> None:
    parts = Parts()
    lease = RequestLease(parts.auth, "r")
    granted = Granted(
        request_id="r", lease_id="lease", tenant="t", key_id="k", role="user", gives_back=True
    )
    lease.on_granted(granted, Bound(10, 20), ASKED)
    await lease.correct(3, 20)
    assert [adjust.prompt_tokens for adjust in parts.auth_wire.of(Adjust)] == [3]


async def test_a_smaller_bound_waits_for_nobody() -> None:
    parts = Parts()
    await leased(parts).correct(3, 20)
    (adjust,) = parts.auth_wire.of(Adjust)
    assert (adjust.lease_id, adjust.prompt_tokens, adjust.completion_tokens) == ("lease", 3, 20)
    assert adjust.request_id.startswith("r:")


@pytest.mark.parametrize(
    ("corrected", "limits"),
    [((10, 20), LIMITED), ((3, 2), LimitState(limit_requests=5))],
    ids=["the same", "smaller, of a caller without a token limit"],
)
async def test_what_nobody_counts_is_not_sent(
    corrected: tuple[int, int], limits: LimitState
) -> None:
    parts = Parts()
    await leased(parts, limits).correct(*corrected)
    assert parts.auth_wire.sent == []


@pytest.mark.parametrize("limits", [LIMITED, LimitState()])
@pytest.mark.parametrize("corrected", [(11, 20), (10, 21), (11, 1), (1, 21)])
async def test_a_larger_bound_waits_for_the_answer(
    corrected: tuple[int, int], limits: LimitState
) -> None:
    parts = Parts()
    lease = leased(parts, limits)
    correcting = asyncio.create_task(lease.correct(*corrected))
    await idle()
    assert not correcting.done()
    (adjust,) = parts.auth_wire.of(Adjust)
    assert (adjust.prompt_tokens, adjust.completion_tokens) == corrected
    assert (adjust.lease_id, adjust.request_id) == ("lease", "r:1")
    await parts.adjust(LimitState(remaining_tokens=1))
    await correcting
    assert lease.limits == LimitState(remaining_tokens=1)
    # It was remembered: the same again is no news.
    await lease.correct(*corrected)
    assert len(parts.auth_wire.of(Adjust)) == 1


async def test_a_correction_beyond_the_limits_is_refused() -> None:
    parts = Parts()
    correcting = asyncio.create_task(leased(parts).correct(11, 20))
    await idle()
    await parts.refuse_adjust(ErrorCode.INSUFFICIENT_QUOTA)
    with pytest.raises(DeniedError):
        await correcting


async def test_growing_asks_for_all_that_is_held_and_the_rest() -> None:
    parts = Parts()
    lease = leased(parts)
    await lease.correct(7, 15)
    growing = asyncio.create_task(lease.grow(5))
    await idle()
    adjust = parts.auth_wire.of(Adjust)[-1]
    assert (adjust.lease_id, adjust.prompt_tokens, adjust.completion_tokens) == ("lease", 7, 20)
    assert adjust.request_id == "r:2"
    await parts.adjust()
    assert await growing


async def test_two_choices_that_grow_at_once_ask_one_after_the_other() -> None:
    parts = Parts()
    lease = leased(parts)
    first, second = (asyncio.create_task(lease.grow(5)) for _ in range(2))
    await idle()
    await parts.adjust()
    assert (first.done(), second.done()) == (True, False)
    await parts.adjust()
    assert await second
    assert [adjust.completion_tokens for adjust in parts.auth_wire.of(Adjust)] == [25, 30]


@pytest.mark.parametrize(
    "code",
    [
        ErrorCode.RATE_LIMIT_EXCEEDED,
        ErrorCode.INSUFFICIENT_QUOTA,
        ErrorCode.BUDGET_EXCEEDED,
        ErrorCode.INVALID_API_KEY,
        ErrorCode.PERMISSION_DENIED,
        ErrorCode.UNKNOWN_LEASE,
        ErrorCode.INVALID_REQUEST,
    ],
)
@pytest.mark.parametrize("is_denied", [True, False])
async def test_the_callers_own_limits_end_the_growth(
    code: ErrorCode, is_denied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock.gateway.lease")
    parts = Parts()
    lease = leased(parts)
    growing = asyncio.create_task(lease.grow(5))
    await idle()
    await parts.refuse_adjust(code, is_denied=is_denied)
    assert growing.done()
    assert not await growing
    assert f"request r gets no more tokens: {code}" in caplog.messages
    # Nothing was gained, so the next try asks for as much.
    again = asyncio.create_task(lease.grow(5))
    await idle()
    assert parts.auth_wire.of(Adjust)[-1].completion_tokens == 25
    await parts.adjust()
    assert await again


@pytest.mark.parametrize(
    ("code", "is_denied"),
    [
        (ErrorCode.WORKER_UNAVAILABLE, True),
        (ErrorCode.INTERNAL_ERROR, False),
        (ErrorCode.OVERLOADED, False),
    ],
)
async def test_a_failure_that_may_pass_is_waited_out(code: ErrorCode, is_denied: bool) -> None:
    """The old lease took it for the caller's limit and cut the answer."""
    parts = Parts()
    growing = asyncio.create_task(leased(parts).grow(5))
    await idle()
    for number in range(1, 4):
        await parts.refuse_adjust(code, is_denied=is_denied)
        await asyncio.sleep(0.49)
        assert len(parts.auth_wire.of(Adjust)) == number
        await asyncio.sleep(0.02)
        assert len(parts.auth_wire.of(Adjust)) == number + 1
    await parts.adjust()
    assert await growing
    assert {adjust.completion_tokens for adjust in parts.auth_wire.of(Adjust)} == {25}


async def test_an_auth_worker_that_is_away_is_waited_for() -> None:
    parts = Parts()
    parts.auth.on_peer_lost(parts.auth_peer)
    growing = asyncio.create_task(leased(parts).grow(5))
    await asyncio.sleep(20.0)
    assert parts.auth_wire.sent == []
    parts.auth.on_peer_ready(parts.auth_peer)
    await asyncio.sleep(2.1)
    await parts.adjust()
    assert await growing


@pytest.mark.parametrize(("retry_after_s", "pause_s"), [(0.1, 0.5), (2.0, 2.0), (60.0, 5.0)])
async def test_the_pause_is_what_auth_asks_for_within_bounds(
    retry_after_s: float, pause_s: float
) -> None:
    parts = Parts()
    growing = asyncio.create_task(leased(parts).grow(5))
    await idle()
    asked = parts.auth_wire.of(Adjust)[-1]
    parts.auth.on_event(
        parts.auth_peer,
        Denied(
            request_id=asked.request_id,
            code=ErrorCode.WORKER_UNAVAILABLE,
            message="",
            retry_after_s=retry_after_s,
        ),
    )
    await asyncio.sleep(pause_s - 0.01)
    assert len(parts.auth_wire.of(Adjust)) == 1
    await asyncio.sleep(0.02)
    assert len(parts.auth_wire.of(Adjust)) == 2
    growing.cancel()
    await asyncio.gather(growing, return_exceptions=True)


async def test_a_correction_while_auth_is_away_is_a_503() -> None:
    parts = Parts()
    parts.auth.on_peer_lost(parts.auth_peer)
    with pytest.raises(WorkerUnavailableError):
        await leased(parts).correct(11, 20)
    # One that shrinks is given back with the settlement at the latest.
    await leased(parts).correct(9, 20)


async def test_a_lease_that_auth_does_not_know_is_worth_another_try() -> None:
    """Another auth worker took over between the grant and this: it was a 500."""
    parts = Parts()
    correcting = asyncio.create_task(leased(parts).correct(11, 20))
    await idle()
    await parts.refuse_adjust(ErrorCode.UNKNOWN_LEASE, is_denied=False)
    with pytest.raises(WorkerUnavailableError):
        await correcting


async def test_what_is_reported_and_settled() -> None:
    parts = Parts()
    lease = leased(parts)
    usage = Usage(prompt_tokens=1, completion_tokens=2, cached_tokens=3, reasoning_tokens=4)
    streams = (StreamUsage(stream="r/0", completion_tokens=2),)
    assert lease.report(usage) == LeaseReport(
        lease_id="lease",
        prompt_tokens=1,
        completion_tokens=2,
        max_prompt_tokens=10,
        max_completion_tokens=20,
        endpoint="/v1/chat/completions",
        end_user="ada",
    )
    report = lease.report(usage, streams)
    assert report is not None
    assert report.streams == streams
    lease.settle(parts.outbox, usage, "failed")
    lease.settle(parts.outbox, usage, "aborted", is_unused=True)
    expected = Settle(
        lease_id="lease",
        request_id="r",
        prompt_tokens=1,
        completion_tokens=2,
        cached_tokens=3,
        reasoning_tokens=4,
        outcome="failed",
        is_unused=False,
        endpoint="/v1/chat/completions",
        end_user="ada",
    )
    first, second = parts.outbox.settles
    assert first == expected
    assert (second.outcome, second.is_unused) == ("aborted", True)


async def test_work_without_tokens_has_no_lease() -> None:
    parts = Parts()
    lease = leased(parts, lease_id="")
    assert lease.limits == LIMITED
    lease.settle(parts.outbox, Usage(), "finished")
    assert parts.outbox.settles == []


async def test_what_an_earlier_attempt_s_lease_is_booked_for_is_the_model_of_this_one() -> None:
    parts = Parts()
    lease = RequestLease(parts.auth, "r")
    granted = Granted(request_id="r", lease_id="second", tenant="t", key_id="k", role="user")
    lease.on_granted(granted, Bound(10, 20), structs.replace(ASKED, model="fallback"))
    lease.settle(parts.outbox, Usage(prompt_tokens=1), "finished", earlier=("first",))
    booked, taken_back = parts.outbox.settles
    assert (booked.lease_id, booked.model, booked.is_unused) == ("first", "fallback", False)
    assert (taken_back.lease_id, taken_back.model, taken_back.is_unused) == ("second", "", True)
    lease.settle(parts.outbox, Usage(prompt_tokens=1), "finished")
    assert parts.outbox.settles[-1].model == ""  # its own


async def test_what_earlier_attempts_held_is_taken_back_as_aborted() -> None:
    parts = Parts()
    leased(parts).settle(parts.outbox, Usage(1, 2), "finished", earlier=("first", "second"))
    booked = [(one.lease_id, one.outcome, one.is_unused) for one in parts.outbox.settles]
    assert booked == [
        ("first", "finished", False),
        ("second", "aborted", True),
        ("lease", "aborted", True),
    ]

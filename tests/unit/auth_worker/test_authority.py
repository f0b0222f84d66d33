"""Decisions in memory: who passes, what is reserved, what is charged."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auth_worker.decisions.authority import Rules
from auth_worker.principals.keys import digest_of
from auth_worker.records.lease_names import LeaseName
from auth_worker.records.operations import (
    AppendAudit,
    BookUsage,
    LeaseRow,
    RecentUse,
    SaveLease,
    Snapshot,
    TouchKey,
)
from protocol.errors import NO_API_KEY, ErrorCode
from protocol.wire.messages import (
    Adjust,
    Adjusted,
    Authorize,
    Denied,
    Failure,
    Granted,
    LeaseReport,
    Renew,
    Settle,
)
from tests.fakes.auth_parts import (
    ADMIN_SECRET,
    START_S,
    USER_SECRET,
    AuthorityBench,
    FakeClock,
    admin_key,
    authority_bench,
    authorize,
    revoke,
    stored_key,
)


def granted(bench: AuthorityBench, **fields: Any) -> Granted:
    answer = bench.authority.authorize(authorize(**fields))
    assert isinstance(answer, Granted), answer
    return answer


def denied(bench: AuthorityBench, secret: str | None = None, **fields: Any) -> Denied:
    command = authorize(**fields) if secret is None else authorize(secret, **fields)
    answer = bench.authority.authorize(command)
    assert isinstance(answer, Denied), answer
    return answer


def settle(lease_id: str, **fields: Any) -> Settle:
    defaults: dict[str, Any] = {
        "request_id": "req-1",
        "prompt_tokens": 10,
        "completion_tokens": 20,
    }
    return Settle(lease_id=lease_id, **{**defaults, **fields})


def adjust(lease_id: str, prompt_tokens: int, completion_tokens: int) -> Adjust:
    return Adjust(
        request_id="req-1",
        lease_id=lease_id,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


def report(lease_id: str, prompt_tokens: int, completion_tokens: int) -> Renew:
    return Renew(
        leases=(
            LeaseReport(
                lease_id=lease_id,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
            ),
        )
    )


def test_a_known_key_gets_a_lease_that_is_remembered_in_the_background() -> None:
    bench = authority_bench(stored_key())
    answer = granted(bench)
    assert (answer.tenant, answer.key_id, answer.role) == ("acme", "key_user", "user")
    assert answer.expires_s == 600.0
    (saved,) = bench.emitted
    assert isinstance(saved, SaveLease)
    assert saved.row.lease_id == answer.lease_id
    assert (saved.row.prompt_tokens, saved.row.completion_tokens) == (10, 90)


def test_a_route_that_generates_nothing_gets_an_empty_lease_and_no_request_is_counted() -> None:
    bench = authority_bench(stored_key(requests_per_minute=1))
    for _ in range(5):
        answer = granted(bench, prompt_tokens=0, completion_tokens=0)
        assert answer.lease_id == ""
        assert answer.limits.remaining_requests == 1
    assert bench.emitted == [TouchKey("key_user", int(START_S))]


@pytest.mark.parametrize("secret", [None, "psk-unknown"])
def test_without_a_known_key_the_answer_is_invalid_api_key(secret: str | None) -> None:
    answer = authority_bench(stored_key()).authority.authorize(authorize(secret))
    assert isinstance(answer, Denied)
    assert answer.code is ErrorCode.INVALID_API_KEY


@pytest.mark.parametrize("digest", [b"", digest_of(USER_SECRET)[:8], b"x" * 4096])
def test_a_digest_of_another_length_is_unknown(digest: bytes) -> None:
    command = Authorize(request_id="r", key_digest=digest, endpoint="/v1/models")
    assert isinstance(authority_bench(stored_key()).authority.authorize(command), Denied)


@pytest.mark.parametrize(
    ("fields", "word"),
    [({"revoked_at": 1}, "revoked"), ({"expires_at": int(START_S)}, "expired")],
)
def test_an_ended_key_is_denied_and_says_so(fields: dict[str, Any], word: str) -> None:
    bench = authority_bench(stored_key(**fields), rules=Rules(allow_anonymous=False))
    answer = denied(bench)
    assert answer.code is ErrorCode.INVALID_API_KEY
    assert word in answer.message


def test_each_cause_of_a_401_has_one_text_that_says_the_way_out() -> None:
    bench = authority_bench(stored_key(revoked_at=1), rules=Rules(allow_anonymous=False))

    def message(secret: str | None) -> str:
        answer = bench.authority.authorize(authorize(secret))
        assert isinstance(answer, Denied)
        assert answer.code is ErrorCode.INVALID_API_KEY
        return answer.message

    assert message(None) == NO_API_KEY
    assert "penstock keys create" in message("psk-nobodys")
    assert message(USER_SECRET) == "This API key was revoked; use another."
    # A token that expired while it was known reads as one that came too late (tokens/verifier.py).
    token = stored_key("token_1", "eyJ-one", expires_at=int(START_S))
    bench.authority.keys.put_token(token, START_S - 1)
    assert message("eyJ-one") == "This token is not accepted: it has expired; use another."


def test_where_no_key_is_needed_an_ended_one_is_as_good_as_none_but_opens_no_admin_route() -> None:
    bench = authority_bench(stored_key(revoked_at=1), rules=Rules(allow_anonymous=True))
    assert granted(bench).key_id == "anonymous"
    assert denied(bench, required_role="admin").code is ErrorCode.INVALID_API_KEY


def test_a_key_expires_at_its_second() -> None:
    bench = authority_bench(stored_key(expires_at=int(START_S) + 10))
    granted(bench)
    bench.clock.advance(10)
    assert "expired" in denied(bench).message


def test_a_user_key_is_denied_at_admin_routes_and_put_on_record() -> None:
    bench = authority_bench(stored_key(), admin_key())
    answer = denied(bench, required_role="admin", prompt_tokens=0, completion_tokens=0)
    assert answer.code is ErrorCode.PERMISSION_DENIED
    (entry,) = bench.emitted
    assert isinstance(entry, AppendAudit)
    assert (entry.entry.action, entry.entry.outcome) == ("request_refused", "refused")
    assert entry.entry.actor_key_id == "key_user"


def test_an_admin_key_passes_user_and_admin_routes() -> None:
    bench = authority_bench(admin_key())
    for role in ("user", "admin"):
        answer = bench.authority.authorize(authorize(ADMIN_SECRET, required_role=role))
        assert isinstance(answer, Granted)
        assert answer.role == "admin"


@pytest.mark.parametrize("secret", [None, "anything at all"])
def test_where_no_key_is_needed_anybody_is_a_local_user_but_never_an_admin(
    secret: str | None,
) -> None:
    bench = authority_bench(admin_key(), rules=Rules(allow_anonymous=True))
    answer = bench.authority.authorize(authorize(secret))
    assert isinstance(answer, Granted)
    assert (answer.tenant, answer.key_id, answer.role) == ("local", "anonymous", "user")
    refused = bench.authority.authorize(authorize(secret, required_role="admin"))
    assert isinstance(refused, Denied)
    assert refused.code is ErrorCode.INVALID_API_KEY


def test_requests_over_the_limit_are_told_when_to_come_back() -> None:
    bench = authority_bench(stored_key(requests_per_minute=2))
    granted(bench)
    assert granted(bench).limits.remaining_requests == 0
    answer = denied(bench)
    assert answer.code is ErrorCode.RATE_LIMIT_EXCEEDED
    assert answer.limits.limit_requests == 2
    assert answer.retry_after_s is not None
    bench.clock.advance(answer.retry_after_s)
    granted(bench)


def test_keys_do_not_share_their_limits() -> None:
    bench = authority_bench(stored_key(requests_per_minute=1), admin_key(requests_per_minute=1))
    granted(bench)
    granted(bench, secret=ADMIN_SECRET)
    denied(bench)


def test_a_thousand_concurrent_requests_get_exactly_what_the_limit_holds() -> None:
    bench = authority_bench(stored_key(tokens_per_minute=5000))
    answers = [bench.authority.authorize(authorize()) for _ in range(1000)]
    assert sum(isinstance(answer, Granted) for answer in answers) == 50


def test_a_request_that_can_never_fit_says_both_numbers_and_no_time() -> None:
    bench = authority_bench(stored_key(tokens_per_minute=1000))
    answer = denied(bench, completion_tokens=5000)
    assert answer.code is ErrorCode.RATE_LIMIT_EXCEEDED
    assert answer.retry_after_s is None
    assert "5010" in answer.message
    assert "1000" in answer.message


@pytest.mark.parametrize("fields", [{"prompt_tokens": -1}, {"completion_tokens": 2**62}])
def test_token_bounds_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    assert denied(authority_bench(stored_key()), **fields).code is ErrorCode.INVALID_REQUEST


def test_a_model_name_of_a_megabyte_is_refused() -> None:
    answer = denied(authority_bench(stored_key()), model="m" * 2**20)
    assert answer.code is ErrorCode.INVALID_REQUEST


def test_settling_frees_the_reservation_and_books_what_was_used() -> None:
    bench = authority_bench(stored_key(tokens_per_minute=100))
    lease_id = granted(bench).lease_id
    denied(bench, completion_tokens=0)
    booking = bench.authority.settle(settle(lease_id, cached_tokens=3, reasoning_tokens=7))
    assert isinstance(booking, BookUsage)
    assert (booking.key_id, booking.model) == ("key_user", "demo")
    assert (booking.prompt_tokens, booking.completion_tokens) == (10, 20)
    assert (booking.cached_tokens, booking.reasoning_tokens) == (3, 7)
    assert booking.granted_at_ms == int(START_S * 1000)
    assert granted(bench, completion_tokens=60).limits.remaining_tokens == 0
    assert bench.authority.num_leases == 1


def test_settling_twice_frees_once() -> None:
    bench = authority_bench(stored_key(tokens_per_minute=1000))
    first, second = granted(bench), granted(bench)
    bench.authority.settle(settle(first.lease_id))
    again = bench.authority.settle(settle(first.lease_id))
    assert isinstance(again, BookUsage)
    assert again.key_id == "key_user"
    assert bench.authority.num_leases == 1
    answer = bench.authority.adjust(adjust(second.lease_id, 10, 90))
    assert isinstance(answer, Adjusted)
    assert answer.limits.remaining_tokens == 1000 - 30 - 100


def test_a_lease_that_a_kill_forgot_is_booked_on_the_key_and_model_of_its_id() -> None:
    lost = str(LeaseName(2, 9, "key_user", "org/model:7b"))
    booking = authority_bench(stored_key()).authority.settle(settle(lost))
    assert isinstance(booking, BookUsage)
    assert (booking.key_id, booking.model) == ("key_user", "org/model:7b")
    assert booking.granted_at_ms is None


@pytest.mark.parametrize("lease_id", ["", "nonsense", "lease:zz:1:k:m", "lease:1:2::m"])
def test_an_id_that_is_none_of_ours_is_booked_on_nobody(lease_id: str) -> None:
    booking = authority_bench(stored_key()).authority.settle(settle(lease_id))
    assert isinstance(booking, BookUsage)
    assert (booking.key_id, booking.model) == ("", "")


@pytest.mark.parametrize(
    "command",
    [settle("x" * 5000), settle("lease", completion_tokens=-1), settle("", prompt_tokens=2**50)],
)
def test_a_settlement_out_of_range_fails(command: Settle) -> None:
    answer = authority_bench().authority.settle(command)
    assert isinstance(answer, Failure)
    assert answer.code is ErrorCode.INVALID_REQUEST


def test_adjusting_replaces_the_bound() -> None:
    bench = authority_bench(stored_key(tokens_per_minute=1000))
    lease_id = granted(bench).lease_id
    answer = bench.authority.adjust(adjust(lease_id, 5, 45))
    assert isinstance(answer, Adjusted)
    assert answer.limits.remaining_tokens == 950
    saved = bench.emitted[-1]
    assert isinstance(saved, SaveLease)
    assert (saved.row.prompt_tokens, saved.row.completion_tokens) == (5, 45)


def test_growth_without_room_is_denied_and_changes_nothing() -> None:
    bench = authority_bench(stored_key(tokens_per_minute=150))
    lease_id = granted(bench).lease_id
    answer = bench.authority.adjust(adjust(lease_id, 10, 141))
    assert isinstance(answer, Denied)
    assert answer.code is ErrorCode.RATE_LIMIT_EXCEEDED
    assert answer.limits.remaining_tokens == 50


def test_a_revoked_key_can_not_extend_a_running_request_but_may_shrink_it() -> None:
    bench = authority_bench(stored_key())
    lease_id = granted(bench).lease_id
    revoke(bench, "key_user")
    answer = bench.authority.adjust(adjust(lease_id, 10, 91))
    assert isinstance(answer, Denied)
    assert answer.code is ErrorCode.INVALID_API_KEY
    assert isinstance(bench.authority.adjust(adjust(lease_id, 10, 89)), Adjusted)


def test_adjusting_a_settled_lease_fails_as_unknown() -> None:
    bench = authority_bench(stored_key())
    lease_id = granted(bench).lease_id
    bench.authority.settle(settle(lease_id))
    answer = bench.authority.adjust(adjust(lease_id, 1, 1))
    assert isinstance(answer, Failure)
    assert answer.code is ErrorCode.UNKNOWN_LEASE


def test_an_unsettled_lease_is_charged_its_last_report_when_it_expires() -> None:
    bench = authority_bench(stored_key(tokens_per_minute=100))
    lease_id = granted(bench).lease_id
    bench.authority.renew(report(lease_id, 10, 30))
    bench.authority.renew(report(lease_id, 10, 20))
    bench.clock.advance(599.9)
    assert bench.authority.expire() == 0
    bench.clock.advance(0.1)
    assert bench.authority.expire() == 1
    booking = bench.emitted[-1]
    assert isinstance(booking, BookUsage)
    assert booking.outcome == "expired"
    assert (booking.prompt_tokens, booking.completion_tokens) == (10, 30)
    assert bench.authority.num_leases == 0
    assert granted(bench, completion_tokens=50).limits.remaining_tokens == 0


def test_a_renewed_lease_lives_on_and_others_expire_in_order() -> None:
    bench = authority_bench(stored_key())
    first, second = granted(bench).lease_id, granted(bench).lease_id
    bench.clock.advance(400)
    bench.authority.renew(report(first, 1, 1))
    bench.clock.advance(300)
    assert bench.authority.expire() == 1
    booking = bench.emitted[-1]
    assert isinstance(booking, BookUsage)
    assert booking.lease_id == second
    assert bench.authority.num_leases == 1


def test_reports_about_unknown_leases_or_with_wild_numbers_are_passed_over() -> None:
    bench = authority_bench(stored_key())
    lease_id = granted(bench).lease_id
    for some in (report("?", 1, 1), report(lease_id, -1, 2**62), report("x" * 9999, 1, 1)):
        bench.authority.renew(some)
    assert len(bench.emitted) == 1


def test_a_report_about_a_lease_of_an_earlier_epoch_takes_it_up_again() -> None:
    bench = authority_bench(stored_key(), epoch=3)
    lost = str(LeaseName(2, 9, "key_user", "demo"))
    bench.authority.renew(report(lost, 10, 5))
    assert bench.authority.num_leases == 1
    saved = bench.emitted[-1]
    assert isinstance(saved, SaveLease)
    assert saved.row.reported_completion_tokens == 5
    of_this_epoch = str(LeaseName(3, 9, "key_user", "demo"))
    of_nobody = str(LeaseName(2, 9, "key_gone", "demo"))
    for lease_id in (of_this_epoch, of_nobody):
        bench.authority.renew(report(lease_id, 1, 1))
    assert bench.authority.num_leases == 1


def test_a_restart_keeps_reservations_and_counts_the_last_minute() -> None:
    clock = FakeClock()
    now_ms = int(clock.wall * 1000)
    key = stored_key(requests_per_minute=3, tokens_per_minute=1000)
    lease = LeaseRow("lease:1:1:key_user:demo", "r", "key_user", "demo", now_ms, 100, 200, 10, 5)
    recent = RecentUse("key_user", now_ms - 30_000, now_ms - 10_000, 250, 50)
    long_run = RecentUse("key_user", now_ms - 90_000, now_ms - 20_000, 60, 40)
    of_nobody = RecentUse("", None, now_ms, 7, 0)
    bench = authority_bench(
        clock=clock, snapshot=Snapshot((key,), (lease,), (recent, long_run, of_nobody))
    )
    answer = granted(bench, completion_tokens=290)
    assert answer.limits.remaining_requests == 0
    assert answer.limits.remaining_tokens == 0
    clock.advance(61.0)
    assert granted(bench, completion_tokens=390).limits.remaining_tokens == 0
    clock.advance(539.0)
    assert bench.authority.expire() == 2


def test_a_wall_clock_that_was_set_back_does_not_reach_into_the_future() -> None:
    clock = FakeClock()
    later_ms = int(clock.wall * 1000) + 3_600_000
    key = stored_key(tokens_per_minute=100)
    snapshot = Snapshot((key,), (), (RecentUse("key_user", later_ms, later_ms, 100, 0),))
    bench = authority_bench(clock=clock, snapshot=snapshot)
    denied(bench)
    clock.advance(61.0)
    granted(bench)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["authorize", "adjust", "renew", "settle", "settle twice", "wait"]),
            st.integers(0, 30),
            st.integers(0, 400),
        ),
        max_size=80,
    )
)
def test_every_lease_is_charged_exactly_once_and_nothing_stays_reserved(
    actions: list[tuple[str, int, int]],
) -> None:
    bench = authority_bench(stored_key(tokens_per_minute=2000), rules=Rules(lease_duration_s=60))
    authority = bench.authority
    lease_ids: list[str] = []
    charged: list[str] = []

    def settle_lease(lease_id: str, num_tokens: int) -> None:
        was_open = authority.num_leases
        booking = authority.settle(settle(lease_id, prompt_tokens=0, completion_tokens=num_tokens))
        assert isinstance(booking, BookUsage)
        if authority.num_leases < was_open:
            charged.append(lease_id)

    for action, which, amount in actions:
        lease_id = lease_ids[which % len(lease_ids)] if lease_ids else "none"
        match action:
            case "authorize":
                answer = authority.authorize(authorize(completion_tokens=amount))
                if isinstance(answer, Granted):
                    lease_ids.append(answer.lease_id)
            case "adjust":
                authority.adjust(adjust(lease_id, 0, amount))
            case "renew":
                authority.renew(report(lease_id, 0, amount))
            case "wait":
                bench.clock.advance(which)
                authority.expire()
            case _:
                for _ in range(2 if action == "settle twice" else 1):
                    settle_lease(lease_id, amount)
    for lease_id in lease_ids:
        settle_lease(lease_id, 0)
    charged += [item.lease_id for item in bench.emitted if isinstance(item, BookUsage)]
    assert sorted(charged) == sorted(lease_ids)
    assert authority.num_leases == 0
    bench.clock.advance(61.0)
    assert granted(bench, prompt_tokens=0, completion_tokens=2000).limits.remaining_tokens == 0

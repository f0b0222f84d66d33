"""Requests that count without using tokens, and denied ones: counted nowhere, but not nameless."""

from pathlib import Path
from typing import Any

import pytest

from auth_worker.decisions.authority import MAX_MODEL_CHARS, Rules
from auth_worker.records.operations import AddKey, AuditEntry, BookUsage, KeyPage, ReadKeys
from auth_worker.storage.sqlite_store import SqliteStore
from protocol.errors import ErrorCode
from protocol.wire.messages import Adjust, Denied, Granted
from tests.fakes.auth_parts import (
    ADMIN_SECRET,
    START_S,
    AuthorityBench,
    FakeClock,
    admin_key,
    authority_bench,
    authorize,
    revoke,
    stored_key,
)

AUDIT = AuditEntry(0, "", "key_created", "key_user")


def metered(**fields: Any) -> Any:
    defaults: dict[str, Any] = {"prompt_tokens": 0, "completion_tokens": 0, "is_metered": True}
    return authorize(**{"endpoint": "/tokenize", **defaults, **fields})


def denied(bench: AuthorityBench, command: Any) -> Denied:
    answer = bench.authority.authorize(command)
    assert isinstance(answer, Denied), answer
    return answer


def test_a_metered_request_without_tokens_counts_and_gets_no_lease() -> None:
    bench = authority_bench(stored_key(requests_per_minute=2))
    for remaining in (1, 0):
        answer = bench.authority.authorize(metered())
        assert isinstance(answer, Granted)
        assert (answer.lease_id, answer.limits.remaining_requests) == ("", remaining)
    refused = denied(bench, metered())
    assert refused.code is ErrorCode.RATE_LIMIT_EXCEEDED
    assert bench.authority.num_leases == 0
    assert denied(bench, authorize()).code is ErrorCode.RATE_LIMIT_EXCEEDED


def test_metered_requests_stand_in_the_ledger_each_with_a_line_of_its_own() -> None:
    bench = authority_bench(stored_key())
    for _ in range(2):
        bench.authority.authorize(metered(model="demo"))
    first, second = bench.emitted
    assert isinstance(first, BookUsage)
    assert isinstance(second, BookUsage)
    assert first.lease_id != second.lease_id
    # Nothing was served by that name so far, so it may be made up.
    assert (first.key_id, first.model, first.outcome) == ("key_user", "", "finished")
    assert (first.prompt_tokens, first.completion_tokens) == (0, 0)
    assert first.granted_at_ms == first.settled_at_ms == int(START_S * 1000)


def test_metered_requests_count_in_the_totals_and_again_in_the_window_after_a_restart(
    tmp_path: Path,
) -> None:
    clock = FakeClock()
    store = SqliteStore(tmp_path, clock=clock)
    bench = authority_bench(stored_key(requests_per_minute=3), clock=clock)
    store.apply([AddKey(stored_key(requests_per_minute=3), AUDIT)])
    for _ in range(3):
        bench.authority.authorize(metered())
    store.apply(bench.emitted)
    (page,) = store.apply([ReadKeys("", 10)])
    assert isinstance(page, KeyPage)
    record = page.records[0]
    assert (record.total_requests, record.total_prompt_tokens) == (3, 0)
    assert record.last_used_at == int(START_S)
    clock.advance(30)
    snapshot = store.load(recent_since_ms=int((clock.wall - 60) * 1000))
    store.close()
    again = authority_bench(clock=clock, epoch=4, snapshot=snapshot)
    assert denied(again, metered()).code is ErrorCode.RATE_LIMIT_EXCEEDED


def test_a_metered_request_needs_no_room_for_tokens() -> None:
    bench = authority_bench(stored_key(tokens_per_minute=100))
    assert isinstance(bench.authority.authorize(authorize()), Granted)
    denied(bench, authorize())
    assert isinstance(bench.authority.authorize(metered()), Granted)


@pytest.mark.parametrize(
    ("command", "limits"),
    [
        (authorize(completion_tokens=5000), {"tokens_per_minute": 1000}),
        (metered(required_role="admin"), {}),
        (authorize(required_role="admin"), {}),
        (metered(model="m" * (MAX_MODEL_CHARS + 1)), {}),
        (metered(prompt_tokens=-1), {}),
    ],
)
def test_a_denied_request_consumes_nothing(command: Any, limits: dict[str, Any]) -> None:
    bench = authority_bench(stored_key(requests_per_minute=1, **limits))
    denied(bench, command)
    assert not any(isinstance(item, BookUsage) for item in bench.emitted)
    assert bench.authority.num_leases == 0
    answer = bench.authority.authorize(authorize())
    assert isinstance(answer, Granted)
    assert answer.limits.remaining_requests == 0


@pytest.mark.parametrize(
    ("fields", "command"),
    [
        ({"revoked_at": 1}, authorize()),
        ({"expires_at": int(START_S)}, authorize()),
        ({}, authorize(required_role="admin")),
        ({}, authorize(model="m" * (MAX_MODEL_CHARS + 1))),
        ({}, authorize(prompt_tokens=-1)),
        ({"tokens_per_minute": 1}, authorize()),
    ],
)
def test_a_denial_says_whose_request_it_was(fields: dict[str, Any], command: Any) -> None:
    assert denied(authority_bench(stored_key(**fields)), command).key_id == "key_user"


def test_a_denied_growth_says_whose_request_it_was() -> None:
    bench = authority_bench(stored_key(tokens_per_minute=100))
    granted = bench.authority.authorize(authorize())
    assert isinstance(granted, Granted)
    growth = Adjust(
        request_id="r", lease_id=granted.lease_id, prompt_tokens=50, completion_tokens=100
    )
    for reason in (ErrorCode.RATE_LIMIT_EXCEEDED, ErrorCode.INVALID_API_KEY):
        answer = bench.authority.adjust(growth)
        assert isinstance(answer, Denied)
        assert (answer.code, answer.key_id) == (reason, "key_user")
        revoke(bench, "key_user")


@pytest.mark.parametrize("secret", [None, "psk-unknown"])
def test_a_stranger_stays_nameless_and_learns_nothing_about_bounds(secret: str | None) -> None:
    answer = denied(authority_bench(stored_key()), authorize(secret, prompt_tokens=-1))
    assert (answer.code, answer.key_id) == (ErrorCode.INVALID_API_KEY, "")


def test_where_no_key_is_needed_a_denied_caller_is_anonymous() -> None:
    bench = authority_bench(admin_key(), rules=Rules(allow_anonymous=True))
    assert denied(bench, authorize(None, prompt_tokens=-1)).key_id == "anonymous"
    assert denied(bench, authorize(None, required_role="admin")).key_id == ""
    assert bench.authority.key_id_of(authorize(ADMIN_SECRET)) == "key_admin"

"""What a key may be used for: models, routes, addresses, sizes, how many requests at a time."""

from typing import Any

import pytest

from auth_worker.principals.key_definition import checked, stored
from auth_worker.principals.keys import digest_of
from protocol.errors import ErrorCode
from protocol.wire.messages import Adjust, Adjusted, Denied, Granted, KeySettings, Settle
from tests.fakes.auth_parts import (
    START_S,
    USER_SECRET,
    AuthorityBench,
    authority_bench,
    authorize,
)


def bench_of(**settings: Any) -> AuthorityBench:
    """An authority that knows one key with these settings."""
    key = stored(
        checked(KeySettings(name="k", **settings), wall_s=START_S),
        key_id="key_user",
        digest=digest_of(USER_SECRET),
        hint="",
        created_at=int(START_S),
    )
    return authority_bench(key)


def ask(bench: AuthorityBench, **fields: Any) -> Granted | Denied:
    answer = bench.authority.authorize(authorize(scope="chat.completions", **fields))
    assert isinstance(answer, Granted | Denied)
    return answer


def is_refused(bench: AuthorityBench, **fields: Any) -> bool:
    answer = ask(bench, **fields)
    if isinstance(answer, Denied):
        assert answer.code is ErrorCode.PERMISSION_DENIED
        assert answer.key_id == "key_user"
    return isinstance(answer, Denied)


def granted(bench: AuthorityBench, **fields: Any) -> Granted:
    answer = ask(bench, **fields)
    assert isinstance(answer, Granted), answer
    return answer


@pytest.mark.parametrize(
    ("allowed", "blocked", "address", "refused"),
    [
        (None, (), "203.0.113.9", False),
        (("10.0.0.0/8",), (), "10.200.0.1", False),
        (("10.0.0.0/8",), (), "11.0.0.1", True),
        (("10.0.0.0/8",), (), "::ffff:10.0.0.1", False),
        (("::ffff:10.0.0.0/104",), (), "10.0.0.1", False),
        (("10.0.0.0/8",), ("10.1.2.3",), "10.1.2.3", True),
        (None, ("10.1.0.0/16",), "::ffff:10.1.2.3", True),
        (None, ("10.1.0.0/16",), "10.2.0.1", False),
        (("2001:db8::/32",), (), "2001:db8::7", False),
        (("2001:db8::/32",), (), "2001:db9::7", True),
        (("fe80::/10",), (), "fe80::1%eth0", False),
        ((), (), "10.0.0.1", True),
        (("0.0.0.0/0", "::/0"), (), "", True),
        (None, ("10.0.0.1",), "no address", True),
        (("10.0.0.7/8",), (), "10.9.9.9", False),
    ],
)
def test_addresses_are_allowed_and_blocked_by_network(
    allowed: tuple[str, ...] | None, blocked: tuple[str, ...], address: str, refused: bool
) -> None:
    bench = bench_of(allowed_ip_addresses=allowed, blocked_ip_addresses=blocked)
    assert is_refused(bench, address=address) is refused


@pytest.mark.parametrize(
    ("globs", "model", "refused"),
    [
        (None, "anything", False),
        (("demo",), "demo", False),
        (("demo",), "Demo", True),
        (("demo",), "demo-2", True),
        (("qwen*", "llama-?"), "llama-3", False),
        (("qwen*",), "", False),
        ((), "demo", True),
    ],
)
def test_models_are_allowed_by_globs(
    globs: tuple[str, ...] | None, model: str, refused: bool
) -> None:
    bench = bench_of(allowed_models=globs)
    assert is_refused(bench, model=model) is refused
    if not refused:
        assert granted(bench, model=model).allowed_models == globs


@pytest.mark.parametrize(
    ("globs", "refused"),
    [(None, False), (("/v1/chat/*",), False), (("/v1/completions",), True), ((), True)],
)
def test_routes_are_allowed_by_globs_of_their_templates(
    globs: tuple[str, ...] | None, refused: bool
) -> None:
    assert is_refused(bench_of(allowed_endpoints=globs)) is refused


def test_streaming_and_tools_can_be_kept_from_a_key() -> None:
    bench = bench_of(enable_streaming=False)
    assert is_refused(bench, is_streaming=True)
    assert not is_refused(bench, uses_tools=True)
    bench = bench_of(enable_function_calling=False)
    assert is_refused(bench, uses_tools=True)
    assert not is_refused(bench, is_streaming=True)


def test_a_request_asks_for_no_more_tokens_than_the_key_may_have() -> None:
    bench = bench_of(max_tokens_per_request=100)
    assert is_refused(bench, asked_tokens=101)
    assert granted(bench, asked_tokens=100).max_completion_tokens == 100


def test_what_was_not_asked_for_is_cut_to_what_the_key_may_have() -> None:
    bench = bench_of(max_tokens_per_request=100, tokens_per_minute=1000)
    answer = granted(bench, asked_tokens=1, completion_tokens=512)
    assert answer.limits.remaining_tokens == 1000 - 10 - 100
    lease: dict[str, Any] = {
        "request_id": "r",
        "lease_id": answer.lease_id,
        "prompt_tokens": 10,
    }
    refused = bench.authority.adjust(Adjust(completion_tokens=101, **lease))
    assert isinstance(refused, Denied)
    assert refused.code is ErrorCode.PERMISSION_DENIED
    assert isinstance(bench.authority.adjust(Adjust(completion_tokens=100, **lease)), Adjusted)


def test_a_gateway_that_says_nothing_of_what_was_asked_gets_no_more_either() -> None:
    bench = bench_of(max_tokens_per_request=50)
    assert isinstance(bench.authority.authorize(authorize()), Denied)


@pytest.mark.parametrize(
    "field", ["requests_per_minute", "max_parallel_requests", "max_tokens_per_request"]
)
def test_zero_lets_nothing_through_and_no_wait_would_help(field: str) -> None:
    answer = ask(bench_of(**{field: 0}), asked_tokens=1)
    assert isinstance(answer, Denied)
    assert answer.retry_after_s is None


def test_no_more_requests_run_at_a_time_than_the_key_may_have() -> None:
    bench = bench_of(max_parallel_requests=2)
    first, _ = granted(bench), granted(bench)
    refused = ask(bench)
    assert isinstance(refused, Denied)
    assert (refused.code, refused.retry_after_s) == (ErrorCode.RATE_LIMIT_EXCEEDED, 5.0)
    assert "2 requests running" in refused.message
    settle = Settle(lease_id=first.lease_id, request_id="r", prompt_tokens=1, completion_tokens=1)
    bench.authority.settle(settle)
    bench.authority.settle(settle)  # its acknowledgement was lost
    granted(bench)
    assert isinstance(ask(bench), Denied)
    bench.clock.advance(601)
    bench.authority.expire()
    granted(bench)


def test_a_class_of_priority_is_a_place_in_the_queue() -> None:
    levels = [granted(bench_of(priority=name)).priority for name in ("high", "normal", "low")]
    assert levels == [-1, 0, 1]


def test_more_output_is_growth_also_when_the_prompt_turned_out_shorter() -> None:
    bench = bench_of(max_tokens_per_request=50)
    granted = ask(bench, prompt_tokens=100, completion_tokens=10)
    assert isinstance(granted, Granted)
    more = Adjust(
        request_id="req-1", lease_id=granted.lease_id, prompt_tokens=10, completion_tokens=90
    )
    denied = bench.authority.adjust(more)
    assert isinstance(denied, Denied)
    assert denied.code is ErrorCode.PERMISSION_DENIED

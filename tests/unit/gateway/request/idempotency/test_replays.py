"""Answers under an `Idempotency-Key`: one for one request, for a while, within bounds."""

import pytest

from gateway.errors import IdempotencyKeyReusedError, OverloadedError, RequestInProgressError
from gateway.request.idempotency import replays
from gateway.request.idempotency.replays import Asked, KeptAnswer, ReplayName, ReplayTable


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def answer(body: bytes = b"{}") -> KeptAnswer:
    return KeptAnswer(200, {"content-type": "application/json"}, body)


def name(key: int, tenant: str = "t") -> ReplayName:
    return ReplayName(tenant, key.to_bytes(32, "big"))


def put(table: ReplayTable, key: int, tenant: str = "t", size: int = 0) -> bool:
    assert table.claim(name(key, tenant), b"f") is None
    return table.keep(name(key, tenant), answer(b"x" * size))


def table(max_bytes: int = 1 << 20, clock: Clock | None = None) -> ReplayTable:
    return ReplayTable(max_bytes, 60.0, clock or Clock())


def test_an_answer_is_repeated_to_the_same_request_of_the_same_tenant() -> None:
    kept = table()
    assert kept.claim(name(1), b"f") is None
    assert kept.keep(name(1), answer(b"first"))
    assert kept.claim(name(1), b"f") == answer(b"first")
    assert kept.num_replayed == 1
    assert kept.claim(name(1, "another"), b"f") is None
    assert kept.claim(name(2), b"f") is None


def test_another_request_under_the_same_key_is_refused_running_or_done() -> None:
    kept = table()
    assert kept.claim(name(1), b"f") is None
    with pytest.raises(IdempotencyKeyReusedError):
        kept.claim(name(1), b"g")
    with pytest.raises(RequestInProgressError):
        kept.claim(name(1), b"f")
    kept.keep(name(1), answer())
    with pytest.raises(IdempotencyKeyReusedError):
        kept.claim(name(1), b"g")


def test_a_request_that_came_to_nothing_may_be_made_again_also_with_another_body() -> None:
    kept = table()
    assert kept.claim(name(1), b"f") is None
    kept.drop(name(1))
    kept.drop(name(1))
    assert kept.claim(name(1), b"g") is None


def test_answers_are_kept_for_their_time_and_no_longer() -> None:
    clock = Clock()
    kept = table(clock=clock)
    put(kept, 1)
    clock.now += 59.9
    assert kept.claim(name(1), b"f") is not None
    clock.now += 0.2
    assert kept.claim(name(1), b"f") is None
    assert (len(kept), kept.num_bytes) == (0, 0)


def test_one_tenant_pushes_out_its_own_answers_and_not_those_of_others() -> None:
    kept = table(1 << 20)
    put(kept, 1, "quiet", 1000)
    for number in range(40):
        put(kept, number, "loud", 50_000)
    assert kept.claim(name(1, "quiet"), b"f") is not None
    num_kept = sum(one.tenant == "loud" for one in kept._kept)
    assert num_kept == (1 << 18) // 50_512
    assert kept.num_bytes == sum(one.answer.num_bytes for one in kept._kept.values())


def test_all_together_never_take_more_than_their_bytes_and_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replays, "MAX_KEPT", 40)
    kept = table(1 << 20)
    for number in range(200):
        put(kept, number, f"tenant-{number % 9}", 1000 * (number % 50))
        assert kept.num_bytes <= 1 << 20
        assert len(kept) <= 40
        assert all(len(shelf.names) <= 10 for shelf in kept._of_tenant.values())
    assert len(kept._of_tenant) <= 9


def test_an_answer_that_is_too_large_is_not_kept_and_pushes_out_nothing() -> None:
    kept = table(1 << 20)
    put(kept, 1)
    assert not put(kept, 2, size=1 << 18)
    assert len(kept) == 1
    assert kept.claim(name(2), b"f") is None


def test_running_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "MAX_RUNNING", 2)
    kept = table()
    for number in range(2):
        assert kept.claim(name(number), b"f") is None
    with pytest.raises(OverloadedError):
        kept.claim(name(3), b"f")
    kept.drop(name(0))
    assert kept.claim(name(3), b"f") is None


def test_an_answer_counts_with_what_is_kept_beside_its_body() -> None:
    kept = table()
    put(kept, 1, size=100)
    put(kept, 2, size=50)
    assert kept.num_bytes == 100 + 512 + 50 + 512
    assert (kept.claim(name(1), b"f"), kept.num_replayed) == (answer(b"x" * 100), 1)
    assert (kept.claim(name(2), b"f"), kept.num_replayed) == (answer(b"x" * 50), 2)


def test_bounds_of_bytes_are_reached_before_anything_is_forgotten() -> None:
    # An eighth of all at most is one answer, a quarter a tenant's.
    kept = table(8 * 1000)
    assert put(kept, 1, size=1000 - 512)
    assert not put(kept, 2, size=1001 - 512)
    assert put(kept, 3, size=1000 - 512)
    assert {one.key[-1] for one in kept._kept} == {1, 3}
    assert put(kept, 4, size=0)
    assert {one.key[-1] for one in kept._kept} == {3, 4}
    for tenant in ("a", "b", "c"):
        for number in (5, 6):
            assert put(kept, number, tenant, size=1000 - 512)
    assert kept.num_bytes == 7512
    assert len(kept) == 8
    assert put(kept, 7, "d", size=1000 - 512 - 12)
    assert [one.key[-1] for one in kept._kept] == [4, 5, 6, 5, 6, 5, 6, 7]
    assert kept.num_bytes == 512 + 6 * 1000 + 988


def test_all_bytes_may_be_used() -> None:
    kept = table(8 * 1000)
    for tenant in ("a", "b", "c", "d"):
        for number in (1, 2):
            assert put(kept, number, tenant, size=1000 - 512)
    assert (len(kept), kept.num_bytes) == (8, 8000)


def test_a_tenant_keeps_a_quarter_of_the_number_the_newest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replays, "MAX_KEPT", 8)
    kept = table()
    for number in range(5):
        put(kept, number, "loud")
    assert [one.key[-1] for one in kept._kept] == [3, 4]
    for tenant in ("a", "b", "c", "d"):
        for number in (10, 11):
            put(kept, number, tenant)
    # The oldest of all made room.
    assert [one.tenant for one in kept._kept] == ["a", "a", "b", "b", "c", "c", "d", "d"]
    assert set(kept._of_tenant) == {"a", "b", "c", "d"}


def test_an_answer_is_forgotten_when_its_time_is_over_and_its_tenant_with_it() -> None:
    clock = Clock()
    kept = table(clock=clock)
    put(kept, 1, "a")
    clock.now += 30.0
    put(kept, 2, "b")
    clock.now += 30.0
    assert kept.claim(name(9), b"f") is None
    assert [one.tenant for one in kept._kept] == ["b"]
    assert set(kept._of_tenant) == {"b"}
    assert kept.num_bytes == 512


def test_a_kept_answer_is_given_while_no_further_request_may_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replays, "MAX_RUNNING", 1)
    kept = table()
    put(kept, 1)
    assert kept.claim(name(2), b"f") is None
    assert kept.claim(name(1), b"f") == answer(b"")
    with pytest.raises(OverloadedError, match="1 requests with an Idempotency-Key are running"):
        kept.claim(name(3), b"f")


def test_a_database_gives_back_what_it_was_given() -> None:
    asked = (Asked("m", 3, True, False), Asked("n", 0, False, True))
    for kept in (
        KeptAnswer(201, {"content-type": "a", "x": "b"}, b'{"a": "\xff\x00"}', asked),
        # Nothing was asked of an engine, and nothing was answered.
        KeptAnswer(204, {}, b""),
        # A head of more than 256 bytes: its length takes two.
        KeptAnswer(200, {"x": "y" * 300}, b"body"),
    ):
        decoded = KeptAnswer.decoded(kept.encoded())
        assert decoded == kept
        assert all(type(one) is Asked for one in decoded.asked)
    head = b'[200,{"x":"y"},[]]'
    assert KeptAnswer(200, {"x": "y"}, b"!").encoded() == len(head).to_bytes(4, "big") + head + b"!"

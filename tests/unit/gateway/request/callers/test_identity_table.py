"""Who callers were a moment ago: for how long, for how many, and when it is forgotten."""

import pytest
from msgspec import structs

from gateway.errors import DeniedError
from gateway.request.callers import identity as module
from gateway.request.callers.caller import Caller
from gateway.request.callers.identity import BAD_S, GOOD_S, LIMITED_S, Identity, IdentityTable
from protocol.errors import ErrorCode
from protocol.wire.messages import Granted, Scope

SCOPE: Scope = "chat.completions"
HERE = ("/v1/chat/completions", "192.0.2.1")

STRANGER = DeniedError("who?", code=ErrorCode.INVALID_API_KEY)
LIMITED = DeniedError("slower", code=ErrorCode.RATE_LIMIT_EXCEEDED)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def is_strangers(error: DeniedError | None) -> bool:
    """Whether it says what `STRANGER` says, without the frames that it went through."""
    return (
        error is not None
        and error is not STRANGER
        and (error.message, error.code) == (STRANGER.message, STRANGER.code)
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> IdentityTable:
    return IdentityTable(clock)


def granted(tenant: str = "t") -> Granted:
    return Granted(request_id="r", lease_id="", tenant=tenant, key_id="k", role="user", priority=3)


def test_nobody_is_known_to_begin_with(table: IdentityTable) -> None:
    assert table.find(b"a", SCOPE, *HERE) is None
    assert table.may_begin(b"a", SCOPE, *HERE) is None
    assert table.refusal(b"a") is None


@pytest.mark.parametrize("digest", [b"a", None])
def test_a_good_key_is_known_for_ten_seconds(
    table: IdentityTable, clock: Clock, digest: bytes | None
) -> None:
    identity = table.note_granted(digest, granted(), SCOPE, *HERE)
    assert identity == Identity("t", 3, "k")
    clock.now += GOOD_S - 0.1
    assert table.find(digest, SCOPE, *HERE) is identity
    assert table.may_begin(digest, SCOPE, *HERE) is identity
    clock.now += 0.1
    assert table.find(digest, SCOPE, *HERE) is None
    assert table.may_begin(digest, SCOPE, *HERE) is None


def test_each_grant_makes_a_key_known_anew_without_another_copy(
    table: IdentityTable, clock: Clock
) -> None:
    first = table.note_granted(b"a", granted(), SCOPE, *HERE)
    clock.now += GOOD_S - 1
    assert table.note_granted(b"a", granted(), SCOPE, *HERE) is first
    clock.now += GOOD_S - 1
    assert table.find(b"a", SCOPE, *HERE) is first
    changed = table.note_granted(b"a", granted("u"), SCOPE, *HERE)
    assert changed.tenant == "u"
    assert table.find(b"a", SCOPE, *HERE) is changed


def test_an_unknown_key_is_refused_for_two_seconds(table: IdentityTable, clock: Clock) -> None:
    table.note_denied(b"a", STRANGER)
    clock.now += BAD_S - 0.1
    assert is_strangers(table.refusal(b"a"))
    assert table.refusal(b"b") is None
    clock.now += 0.1
    assert table.refusal(b"a") is None


def test_a_key_that_was_revoked_is_good_no_more(table: IdentityTable) -> None:
    table.note_granted(b"a", granted(), SCOPE, *HERE)
    table.note_denied(b"a", STRANGER)
    assert table.find(b"a", SCOPE, *HERE) is None
    assert is_strangers(table.refusal(b"a"))
    table.note_granted(b"a", granted(), SCOPE, *HERE)
    assert table.refusal(b"a") is None


def test_who_was_limited_begins_nothing_for_five_seconds(
    table: IdentityTable, clock: Clock
) -> None:
    identity = table.note_granted(b"a", granted(), SCOPE, *HERE)
    table.note_granted(b"b", granted(), SCOPE, *HERE)
    table.note_denied(b"a", LIMITED)
    assert table.refusal(b"a") is None
    assert table.find(b"a", SCOPE, *HERE) is identity
    assert table.may_begin(b"b", SCOPE, *HERE) is not None
    clock.now += LIMITED_S - 0.1
    assert table.may_begin(b"a", SCOPE, *HERE) is None
    clock.now += 0.1
    assert table.may_begin(b"a", SCOPE, *HERE) is identity


def test_a_grant_lifts_the_caution_at_once(table: IdentityTable) -> None:
    table.note_granted(b"a", granted(), SCOPE, *HERE)
    table.note_denied(b"a", LIMITED)
    table.note_granted(b"a", granted(), SCOPE, *HERE)
    assert table.may_begin(b"a", SCOPE, *HERE) is not None


def test_the_table_is_bounded_and_the_oldest_goes_first(
    table: IdentityTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_GOOD", 2)
    monkeypatch.setattr(module, "MAX_BAD", 2)
    for digest in (b"a", b"b", b"a", b"c"):
        table.note_granted(digest, granted(), SCOPE, *HERE)
    assert [table.find(digest, SCOPE, *HERE) is not None for digest in (b"a", b"b", b"c")] == [
        True,
        False,
        True,
    ]
    for digest in (b"x", b"y", b"x", b"z"):
        table.note_denied(digest, STRANGER)
    refused = [table.refusal(digest) is not None for digest in (b"x", b"y", b"z")]
    assert refused == [True, False, True]


def test_the_table_of_limited_callers_is_bounded_and_the_oldest_goes_first(
    table: IdentityTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who was limited again kept its old place, and was forgotten before the others."""
    monkeypatch.setattr(module, "MAX_GOOD", 2)
    for digest in (b"a", b"c"):
        table.note_granted(digest, granted(), SCOPE, *HERE)
    for digest in (b"a", b"b", b"a", b"c"):
        table.note_denied(digest, LIMITED)
    assert [table.may_begin(digest, SCOPE, *HERE) for digest in (b"a", b"c")] == [None, None]


def test_after_a_change_of_keys_nothing_is_known(table: IdentityTable) -> None:
    table.note_granted(b"a", granted(), SCOPE, *HERE)
    table.note_denied(b"b", STRANGER)
    table.clear()
    assert table.find(b"a", SCOPE, *HERE) is None
    assert table.refusal(b"b") is None


def test_a_caller_without_a_key_is_bounded_by_its_address() -> None:
    assert Caller(b"digest", "192.0.2.1").name == b"digest"
    assert Caller(None, "192.0.2.1").name == b"192.0.2.1"


def test_a_caller_is_known_only_for_what_it_was_let_in_for() -> None:
    table = IdentityTable(clock=lambda: 0.0)
    first = table.note_granted(b"a", granted(), "chat.completions", *HERE)
    assert table.find(b"a", "tokenize", *HERE) is None
    assert table.may_begin(b"a", "tokenize", *HERE) is None
    both = table.note_granted(b"a", granted(), "tokenize", *HERE)
    assert both == first  # what was begun for it may go on
    assert table.find(b"a", "tokenize", *HERE) is both
    assert table.find(b"a", "chat.completions", *HERE) is both


def test_a_caller_is_known_only_on_the_route_and_from_the_address_of_before() -> None:
    """Its key may be bound to both, which the auth worker alone knows."""
    table = IdentityTable(clock=lambda: 0.0)
    route, address = HERE
    table.note_granted(b"a", granted(), SCOPE, route, address)
    assert table.find(b"a", SCOPE, route, address) is not None
    for elsewhere in (("/v1/messages", address), (route, "203.0.113.9")):
        assert table.find(b"a", SCOPE, *elsewhere) is None
        assert table.may_begin(b"a", SCOPE, *elsewhere) is None
    table.note_granted(None, granted(), SCOPE, route, address)
    assert table.find(None, SCOPE, route, "203.0.113.9") is not None  # who needs no key


def test_what_a_key_does_elsewhere_makes_nothing_known_for_longer(
    table: IdentityTable, clock: Clock
) -> None:
    table.note_granted(b"a", granted(), SCOPE, *HERE)
    clock.now += GOOD_S - 1
    table.note_granted(b"a", granted(), "tokenize", "/tokenize", "192.0.2.1")
    assert table.find(b"a", SCOPE, *HERE) is not None
    clock.now += 1
    assert table.find(b"a", SCOPE, *HERE) is None
    assert table.known(b"a") is not None


def test_of_a_key_that_comes_from_everywhere_the_newest_ways_are_known() -> None:
    table = IdentityTable(clock=lambda: 0.0)
    for number in range(module.MAX_WAYS + 1):
        table.note_granted(b"a", granted(), SCOPE, "/x", f"10.0.0.{number}")
    known = [
        table.find(b"a", SCOPE, "/x", f"10.0.0.{number}") is not None
        for number in (0, 1, module.MAX_WAYS)
    ]
    assert known == [False, True, True]


def test_whose_key_it_was_is_known_whatever_it_might_do(table: IdentityTable, clock: Clock) -> None:
    assert (table.known(b"a"), table.key_id(b"a")) == (None, "")
    identity = table.note_granted(b"a", granted(), SCOPE, *HERE)
    assert table.known(b"a") is identity
    assert table.key_id(b"a") == "k"
    assert (table.known(b"b"), table.key_id(b"b")) == (None, "")
    clock.now += GOOD_S
    assert (table.known(b"a"), table.key_id(b"a")) == (None, "")


def test_nobody_is_known_or_refused_while_the_clock_is_young(clock: Clock) -> None:
    clock.now = 0.5
    table = IdentityTable(clock)
    assert table.known(b"a") is None
    assert table.refusal(b"a") is None
    assert table.find(b"a", SCOPE, *HERE) is None


def test_a_caller_sees_the_models_of_its_key_and_of_its_team(table: IdentityTable) -> None:
    limited = structs.replace(granted(), allowed_models=("m*",), team_allowed_models=("*2",))
    for _ in range(2):  # also the second time, when it is known
        identity = table.note_granted(b"a", limited, SCOPE, *HERE)
        assert [name for name in ("m1", "m2", "n2") if identity.may_see(name)] == ["m2"]
    assert table.find(b"a", SCOPE, *HERE) is identity

"""What is administered costs the deciding thread the same however many keys there are."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from auth_worker.principals.keys import KeyDirectory, StoredKey
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.principals.tokens import TokenTable
from auth_worker.records.limit_usage import SaveCounter
from auth_worker.records.operations import AddKey, AuditEntry, BookUsage
from auth_worker.serving.handler import EXPIRED_A_TURN
from protocol.wire.messages import (
    ChangeKeyStatus,
    CountKeys,
    FindKeys,
    Granted,
    KeyAction,
    KeysCounted,
    KeysFound,
    LimitSettings,
    PrincipalRole,
    Settle,
    TeamSettings,
    UserSettings,
)
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import admin_key, authority_bench, authorize, stored_key
from tests.fakes.executors import WhenTold
from tests.fakes.limit_parts import limit
from tests.unit.auth_worker.test_resources import ADMIN, asked, change, found, make, member, update

_AUDIT = AuditEntry(0, "", "key_created", "key")
_ACTIONS: tuple[KeyAction, ...] = ("suspend", "reactivate", "revoke", "delete")
_FOUR = ("key_1", "key_2", "key_3", "key_4")


class _Looks:
    """How many entries of tables somebody has looked at one after another."""

    def __init__(self) -> None:
        self.num = 0

    def count(self, entries: Any) -> Iterator[Any]:
        for entry in entries:
            self.num += 1
            yield entry


def _counting(kind: type[dict[Any, Any]], looks: _Looks) -> type[dict[Any, Any]]:
    class Counting(kind):  # type: ignore[valid-type, misc]
        def __iter__(self) -> Iterator[Any]:
            return looks.count(super().__iter__())

        def keys(self) -> Any:
            return looks.count(super().keys())

        def values(self) -> Any:
            return looks.count(super().values())

        def items(self) -> Any:
            return looks.count(super().items())

    return Counting


def _watch(looks: _Looks, *owners: object) -> None:
    """Count from now on what is looked at in the tables of these objects and of their parts."""
    kinds: dict[type[Any], type[Any]] = {
        kind: _counting(kind, looks) for kind in (dict, OrderedDict)
    }
    for owner in owners:
        for name, table in list(vars(owner).items()):
            if type(table) in kinds:
                inner = {
                    key: kinds[type(value)](value) if type(value) in kinds else value
                    for key, value in table.items()
                }
                setattr(owner, name, kinds[type(table)](inner))
            elif type(table).__module__.startswith("auth_worker.principals."):
                _watch(looks, table)


def _looked_at_by_administration(directory: Path, num_keys: int) -> int:
    """What is looked at while keys, users, teams and limits are changed and ended."""
    each = [
        limit("tokens", 10**9, "total", "key", f"key_{n}", limit_id=f"lim_key_{n}", is_hard=False)
        for n in range(8)
    ]
    more = [
        limit("tokens", 10**9, "hour", "key", f"key_{n}", limit_id=f"lim_key_{n}")
        for n in range(8, num_keys)
    ]
    bench = AuthHandlerBench(directory, limits=(*each, *more))
    authority, keys = bench.authority, bench.authority.keys
    user = found(make(bench, "user", UserSettings(name="Ada"))).resource_id
    team = found(make(bench, "team", TeamSettings(name="search"))).resource_id
    found(member(bench, team, user, "member"))
    belongings: tuple[dict[str, str], ...] = (
        {},
        {"user_id": user},
        {"team_id": team},
        {"user_id": user, "team_id": team},
    )
    for number in range(num_keys):
        one = stored_key(
            f"key_{number}",
            f"psk-{number}",
            role="service" if number % 3 else "user",
            tokens_per_minute=10**6,
            **belongings[number % 4],
        )
        if number < 8:
            bench.store.apply([AddKey(one, _AUDIT)])
        keys.put(one)
        keys.teams[f"team_{number}x"] = StoredTeam(f"team_{number}x", "another")
        assert isinstance(bench.ask(authorize(f"psk-{number}", scope="chat.completions")), Granted)
        bench.write()
    authority.expire()
    looks = _Looks()
    _watch(looks, keys, authority._meters, authority._leases, authority.limits, bench.resources)
    for action in _ACTIONS:
        for key_id in ("key_0", "key_1"):
            command = ChangeKeyStatus(request_id="r", actor=ADMIN, key_id=key_id, action=action)
            assert isinstance(asked(bench, command), KeysFound)
    holders: tuple[tuple[Literal["user", "team"], str], ...] = (("user", user), ("team", team))
    for kind, holder_id in holders:
        found(change(bench, kind, holder_id, "suspend"))
        found(change(bench, kind, holder_id, "reactivate"))
        settings = LimitSettings(
            name="n", holder=kind, holder_id=holder_id, measure="tokens", amount=1, window="total"
        )
        made = found(make(bench, "limit", settings)).resource_id
        found(change(bench, "limit", made, "delete"))
    found(update(bench, "user", user, role="service"))
    found(member(bench, team, user, ""))
    found(member(bench, team, user, "owner"))
    found(change(bench, "user", user, "delete"))
    found(change(bench, "team", team, "delete"))
    authority.expire()
    authority.expire()
    bench.store.close()
    return looks.num


def test_administration_looks_at_no_more_where_there_are_more_keys(tmp_path: Path) -> None:
    few = _looked_at_by_administration(tmp_path / "few", 12)
    assert _looked_at_by_administration(tmp_path / "many", 120) == few


def test_what_counts_in_a_limit_that_is_gone_is_let_go_of_once_nothing_counts() -> None:
    hour = limit("tokens", 1000, "hour")
    bench = authority_bench(stored_key(), limits=(hour,))
    authority = bench.authority
    granted = authority.authorize(authorize())
    assert isinstance(granted, Granted)
    settle = Settle(lease_id=granted.lease_id, request_id="r", prompt_tokens=5, completion_tokens=0)
    authority.settle(settle)
    authority.limits.remove(hour.limit_id)
    for _ in range(3):
        authority.expire()
        assert len(authority._meters) == 1  # it may still be asked for by what it counts
    bench.clock.advance(3700)
    authority.expire()
    assert len(authority._meters) == 0


def test_what_ran_when_its_limit_was_removed_opens_nothing_that_nobody_closes() -> None:
    hour = limit("tokens", 1000, "hour", is_hard=False)
    bench = authority_bench(stored_key(), limits=(hour,))
    authority = bench.authority
    granted = authority.authorize(authorize())
    assert isinstance(granted, Granted)
    authority.limits.remove(hour.limit_id)
    authority.expire()
    assert len(authority._meters) == 0
    settle = Settle(lease_id=granted.lease_id, request_id="r", prompt_tokens=5, completion_tokens=0)
    booking = authority.settle(settle)
    assert isinstance(booking, BookUsage)
    assert (booking.charges, authority._meters._of_slot) == ("", {})
    assert not [one for one in bench.emitted if isinstance(one, SaveCounter)]


def test_leases_that_expire_together_are_charged_some_at_a_time() -> None:
    bench = authority_bench(stored_key())
    for _ in range(5):
        assert isinstance(bench.authority.authorize(authorize()), Granted)
    bench.clock.advance(10_000)
    assert [bench.authority.expire(2) for _ in range(4)] == [2, 2, 1, 0]
    booked = [one for one in bench.emitted if isinstance(one, BookUsage)]
    assert [one.outcome for one in booked] == ["expired"] * 5


def test_every_lease_that_is_due_is_charged_before_the_next_second(tmp_path: Path) -> None:
    bench = AuthHandlerBench(tmp_path)
    asked_for: list[tuple[Callable[..., object], tuple[object, ...]]] = []
    bench.handler._call_soon = lambda function, *args: asked_for.append((function, args))
    for _ in range(2 * EXPIRED_A_TURN + 1):
        bench.authority.authorize(authorize())
    bench.clock.advance(10_000)
    bench.handler.expire()
    turns = 1
    while asked_for:
        function, args = asked_for.pop()
        function(*args)
        turns += 1
    assert (turns, bench.handler.num_leases) == (3, 0)
    bench.store.close()


def test_pages_and_counts_of_keys_are_read_beside_the_commits(tmp_path: Path) -> None:
    thread = WhenTold()
    bench = AuthHandlerBench(tmp_path, lists_thread=thread)
    for command, kind in (
        (FindKeys(request_id="r", actor=ADMIN, role="user"), KeysFound),
        (CountKeys(request_id="r", actor=ADMIN), KeysCounted),
    ):
        assert bench.ask(command) is None
        assert bench.write() == []
        thread.run()
        ((_, answer),) = bench.sent
        assert isinstance(answer, kind)
    one = FindKeys(request_id="r", actor=ADMIN, key_id="key_user")
    assert isinstance(asked(bench, one), KeysFound)
    bench.store.close()


def test_a_deleted_user_or_team_revokes_its_keys_in_memory_and_for_good() -> None:
    ada, search = StoredUser("user_1", "Ada"), StoredTeam("team_1", "search")
    search.members["user_1"] = "member"
    keys = KeyDirectory(
        [
            stored_key("key_1", "psk-1", user_id="user_1"),
            stored_key("key_2", "psk-2", user_id="user_1", team_id="team_1"),
            stored_key("key_3", "psk-3", team_id="team_1"),
            stored_key("key_4", "psk-4", team_id="team_1", revoked_at=5),
        ],
        [ada],
        [search],
    )
    assert keys.end_user("user_1", 70) == 2
    assert search.members == {}
    assert keys.end_team("team_1", 90) == 1
    told = [(one.status(50.0), one.ended_at) for one in map(keys.get, _FOUR) if one is not None]
    assert told == [("revoked", 70), ("revoked", 70), ("revoked", 90), ("revoked", 5)]
    assert [one.is_active(50.0) for one in map(keys.get, _FOUR) if one is not None] == [False] * 4


def test_who_administers_by_the_keys_of_a_team_is_found_by_how_far_they_reach() -> None:
    search = StoredTeam("team_1", "search")
    keys = KeyDirectory((), (), [search])
    for number in range(60):
        role: PrincipalRole = "service" if number % 2 else "user"
        keys.put(stored_key(f"key_{number}", f"psk-{number}", role=role, team_id="team_1"))
    (alike,) = keys.administering(team_id="team_1")
    assert (alike.widest.role, len(list(alike.keys))) == ("service", 30)
    keys.put(replace(admin_key(), team_id="team_1"))
    assert len(list(keys.administering(team_id="team_1"))) == 2
    for number in range(60):
        keys.remove(f"key_{number}")
    (alike,) = keys.administering(team_id="team_1")
    assert [one.key_id for one in alike.keys] == ["key_admin"]
    keys.remove("key_admin")
    assert not list(keys.administering(team_id="team_1"))


@pytest.mark.parametrize("what", ["user", "team"])
def test_keys_that_ended_with_their_user_or_team_keep_nobody_from_changing_the_other(
    what: str,
) -> None:
    team = StoredTeam("team_1", "search", members={"user_1": "member"})
    key = admin_key(user_id="user_1", team_id="team_1")
    keys = KeyDirectory([key], [StoredUser("user_1", "Ada")], [team])
    assert len(list(keys.administering(user_id="user_1"))) == 1
    if what == "user":
        keys.end_user("user_1", 70)
        left = keys.administering(team_id="team_1")
    else:
        keys.end_team("team_1", 70)
        left = keys.administering(user_id="user_1")
    assert [key for alike in left for key in alike.keys] == []


def test_tokens_of_a_withdrawn_key_end_at_once_and_stay_so_when_it_comes_back() -> None:
    table = TokenTable(max_tokens=100)

    def token(number: int, signed_by: str) -> StoredKey:
        return stored_key(f"token_{number % 3}", f"t-{number}", signed_by=signed_by, expires_at=9)

    first = [token(number, "a" if number % 2 else "b") for number in range(12)]
    for one in first:
        table.put(one)
    looks = _Looks()
    _watch(looks, table)
    assert table.end_others({"b"}) == 6
    assert looks.num <= 2 + 6  # signing keys, and what was ended
    assert table.end_others({"b"}) == 0
    left = [table.find(one.digest) for one in first]
    assert left == [None if number % 2 else first[number] for number in range(12)]
    assert all(table.get(f"token_{number}") in first[::2] for number in range(3))
    table.put(token(50, "a"))
    assert table.find(first[1].digest) is None
    table.put(first[1])
    assert table.find(first[1].digest) is first[1]
    for number in range(60, 70):
        table.put(token(number, "b"))
    assert len(table) == 6 + 1 + 1 + 10  # nothing is left of the others

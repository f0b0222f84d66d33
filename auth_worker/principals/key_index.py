"""Finds what administration asks about the keys of users and teams without looking at all keys."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from auth_worker.principals.key_rules import Network
from auth_worker.principals.roles import powers_of, scopes_of
from protocol.wire.messages import PrincipalRole

if TYPE_CHECKING:
    from auth_worker.principals.keys import StoredKey

_Holder = tuple[str, str]
"""`user` or `team`, and its id."""


class Reach(NamedTuple):
    """All that says how far a key reaches when it administers, but for the role of its user."""

    role: PrincipalRole
    scopes: frozenset[str] | None
    endpoints: tuple[str, ...] | None
    allowed_networks: tuple[Network, ...] | None
    blocked_networks: tuple[Network, ...]


class Alike(NamedTuple):
    """Keys of one reach.

    Attributes:
        widest: One of them, without what its user takes from it: who reaches as far as this one
            reaches as far as any of them.
        keys: All of them; to be looked at only where that isn't enough.
    """

    widest: "StoredKey"
    keys: Iterable["StoredKey"]


class AdministeringKeys:
    """The keys, or principals of tokens, of users and teams that do more than use models."""

    def __init__(self) -> None:
        self._of: dict[_Holder, dict[Reach, dict[bytes, StoredKey]]] = {}

    def put(self, key: "StoredKey") -> None:
        """Take one in; one of nobody in particular, or that administers nothing, is left out."""
        for holder in _holders(key):
            self._of.setdefault(holder, {}).setdefault(_reach(key), {})[key.digest] = key

    def remove(self, key: "StoredKey") -> None:
        """Leave one out from now on; one that isn't there is no error."""
        for holder in _holders(key):
            by_reach = self._of.get(holder, {})
            alike = by_reach.get(_reach(key), {})
            alike.pop(key.digest, None)
            if by_reach and not alike:
                by_reach.pop(_reach(key), None)
                if not by_reach:
                    del self._of[holder]

    def held_by(self, *, user_id: str = "", team_id: str = "") -> Iterator[Alike]:
        """Those of a user, of a team, or of a user in a team."""
        holder = ("user", user_id) if user_id else ("team", team_id)
        for alike in self._of.get(holder, {}).values():
            keys = (key for key in alike.values() if team_id in ("", key.team_id))
            yield Alike(replace(next(iter(alike.values())), user=None), keys)


class LiveCounts:
    """How many keys that aren't revoked each user and each team has."""

    def __init__(self) -> None:
        self._of_user: dict[str, dict[str, int]] = {}  # by team
        self._of_team: dict[str, dict[str, int]] = {}  # by user

    def add(self, key: "StoredKey", num: int) -> None:
        """One more, or with -1 one less."""
        if key.user_id:
            _add(self._of_user, key.user_id, key.team_id, num)
        if key.team_id:
            _add(self._of_team, key.team_id, key.user_id, num)

    def end_user(self, user_id: str) -> int:
        """A user is gone, and its keys are revoked: how many."""
        return _end(self._of_user, self._of_team, user_id)

    def end_team(self, team_id: str) -> int:
        """A team is gone, and its keys are revoked: how many."""
        return _end(self._of_team, self._of_user, team_id)


class LastingAdmins:
    """Which keys would always be able to make others, if their users and teams let them.

    Those of one user and team can or can't all together, so that one of each tells.
    """

    def __init__(self) -> None:
        self._alike: dict[tuple[str, str], dict[str, None]] = {}

    def add(self, key: "StoredKey") -> None:
        """One more of them."""
        self._alike.setdefault((key.user_id, key.team_id), {})[key.key_id] = None

    def remove(self, key: "StoredKey") -> None:
        """One less; one that isn't there is no error."""
        alike = self._alike.get((key.user_id, key.team_id))
        if alike is not None:
            alike.pop(key.key_id, None)
            if not alike:
                del self._alike[key.user_id, key.team_id]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """The id of one of each user and team, and how many there are of them."""
        for alike in self._alike.values():
            yield next(iter(alike)), len(alike)


def _holders(key: "StoredKey") -> list[_Holder]:
    if not (key.user_id or key.team_id) or not _administers(key.role, key.rules.scopes):
        return []
    holders = (("user", key.user_id), ("team", key.team_id))
    return [(kind, holder_id) for kind, holder_id in holders if holder_id]


@lru_cache(maxsize=4096)
def _administers(role: PrincipalRole, narrowed_to: frozenset[str] | None) -> bool:
    return bool(powers_of(scopes_of(role, narrowed_to), is_of_admin=role == "admin"))


def _reach(key: "StoredKey") -> Reach:
    rules = key.rules
    return Reach(
        key.role,
        rules.scopes,
        rules.allowed_endpoints,
        rules.allowed_networks,
        rules.blocked_networks,
    )


def _add(counts: dict[str, dict[str, int]], holder_id: str, other_id: str, num: int) -> None:
    of_holder = counts.setdefault(holder_id, {})
    left = of_holder.get(other_id, 0) + num
    if left:
        of_holder[other_id] = left
        return
    of_holder.pop(other_id, None)
    if not of_holder:
        del counts[holder_id]


def _end(
    counts: dict[str, dict[str, int]], others: dict[str, dict[str, int]], holder_id: str
) -> int:
    ended = counts.pop(holder_id, {})
    for other_id, num in ended.items():
        if other_id:
            _add(others, other_id, holder_id, -num)
    return sum(ended.values())

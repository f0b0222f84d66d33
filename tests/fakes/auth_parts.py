"""A clock under control and small builders for the tests of the auth worker."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from auth_worker.decisions.authority import Authority, Rules
from auth_worker.decisions.slices import Commit
from auth_worker.principals.keys import StoredKey, digest_of, hint_of
from auth_worker.principals.limit_rules import Limit
from auth_worker.principals.prices import Price
from auth_worker.records.operations import BookUsage, Operation, Snapshot
from protocol.wire.messages import Authorize

START_S = 1_750_000_000.0
ADMIN_SECRET = "psk-admin-0123456789abcdefghijklmnopqrstuvwxyz"
USER_SECRET = "psk-user-9876543210zyxwvutsrqponmlkjihgfedcba"


@dataclass
class FakeClock:
    """Both clocks, moved by hand."""

    wall: float = START_S
    monotonic: float = 1000.0

    def wall_s(self) -> float:
        return self.wall

    def monotonic_s(self) -> float:
        return self.monotonic

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def stored_key(key_id: str = "key_user", secret: str = USER_SECRET, **fields: Any) -> StoredKey:
    defaults: dict[str, Any] = {
        "digest": digest_of(secret),
        "hint": hint_of(secret),
        "name": key_id,
        "role": "user",
        "tenant": "acme",
        "created_at": int(START_S),
    }
    return StoredKey(key_id=key_id, **{**defaults, **fields})


def admin_key(**fields: Any) -> StoredKey:
    return stored_key("key_admin", ADMIN_SECRET, **{"role": "admin", **fields})


def authorize(secret: str | None = USER_SECRET, **fields: Any) -> Authorize:
    defaults: dict[str, Any] = {
        "request_id": "req-1",
        "endpoint": "/v1/chat/completions",
        "model": "demo",
        "prompt_tokens": 10,
        "completion_tokens": 90,
    }
    digest = None if secret is None else digest_of(secret)
    return Authorize(key_digest=digest, **{**defaults, **fields})


def booking(lease_id: str, **fields: Any) -> BookUsage:
    defaults: dict[str, Any] = {
        "request_id": "req-1",
        "key_id": "key_user",
        "model": "demo",
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "cached_tokens": 4,
        "reasoning_tokens": 5,
        "outcome": "finished",
        "granted_at_ms": int(START_S * 1000),
        "settled_at_ms": int(START_S * 1000) + 500,
    }
    return BookUsage(lease_id=lease_id, **{**defaults, **fields})


@dataclass
class AuthorityBench:
    """An authority with its clock and everything it emitted."""

    authority: Authority
    clock: FakeClock
    emitted: list[Operation]


def revoke(bench: AuthorityBench, key_id: str) -> None:
    """As an administrator's command would, at this moment."""
    key = bench.authority.keys.get(key_id)
    assert key is not None
    bench.authority.keys.put(replace(key, revoked_at=int(bench.clock.wall)))


def authority_bench(
    *keys: StoredKey,
    rules: Rules | None = None,
    epoch: int = 3,
    clock: FakeClock | None = None,
    snapshot: Snapshot | None = None,
    limits: Iterable[Limit] = (),
    prices: Iterable[Price] = (),
    commit: Commit | None = None,
) -> AuthorityBench:
    clock = clock or FakeClock()
    emitted: list[Operation] = []
    authority = Authority(
        epoch=epoch,
        snapshot=snapshot
        or Snapshot(keys=keys, leases=(), recent=(), limits=tuple(limits), prices=tuple(prices)),
        rules=rules or Rules(),
        clock=clock,
        emit=emitted.append,
        commit=commit,
    )
    return AuthorityBench(authority, clock, emitted)

"""Callers that were identified a moment ago, so that strangers are refused at no cost."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from gateway.errors import DeniedError
from gateway.request.callers.guesses import GuessGuard
from protocol.errors import ErrorCode
from protocol.wire.messages import Granted, Scope

GOOD_S = 10.0
"""How long a key counts as known. It saves a question before the body; the reservation that follows
is decided by the auth worker anyway, so a key that was revoked meanwhile gets nothing."""
BAD_S = 2.0
"""How long an unknown key is refused without asking again."""
LIMITED_S = 5.0
"""After a refusal by its limits nothing is begun for a caller before its reservation is granted."""
MAX_GOOD = 65_536
MAX_BAD = 16_384
MAX_WAYS: Final = 256
"""Ways that are known of one key: it may be used from any number of addresses."""

Way = tuple[Scope, str, str]
"""For what somebody was let in: a scope, a route and from which address."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose key it is.

    Attributes:
        tenant: Salts prompt caches, and shares the queue.
        priority: Lower goes first.
        key_id: For the access log.
        allowed_models, team_allowed_models: Globs of the models that it may see; None means all.
    """

    tenant: str
    priority: int
    key_id: str
    allowed_models: tuple[str, ...] | None = None
    team_allowed_models: tuple[str, ...] | None = None

    def is_of(self, granted: Granted) -> bool:
        """Whether a grant says the same of its caller."""
        return (
            self.tenant == granted.tenant
            and self.priority == granted.priority
            and self.key_id == granted.key_id
            and self.allowed_models == granted.allowed_models
            and self.team_allowed_models == granted.team_allowed_models
        )

    def may_see(self, model: str) -> bool:
        """Whether a model's name, not an alias, fits the globs of the key and of its team."""
        return all(
            globs is None or any(fnmatchcase(model, glob) for glob in globs)
            for globs in (self.allowed_models, self.team_allowed_models)
        )


@dataclass(slots=True)
class _Known:
    """A key that was good a moment ago, and until when that counts: at all, and for each way."""

    identity: Identity
    until_s: float = 0.0
    ways: dict[Way, float] = field(default_factory=dict)  # the one that was used last is the last


class IdentityTable:
    """Digests of keys that were good or bad a moment ago; bounded, the oldest goes first.

    Args:
        clock: Monotonic seconds.
        max_wrong_keys: Wrong keys of one address that are looked up; see `GuessGuard`.

    Attributes:
        guesses: Slows down who tries one key after another.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, max_wrong_keys: int = 0
    ) -> None:
        self._clock = clock
        self.guesses = GuessGuard(max_wrong_keys, clock)
        self._good: OrderedDict[bytes | None, _Known] = OrderedDict()
        self._bad: OrderedDict[bytes | None, tuple[float, DeniedError]] = OrderedDict()
        self._limited: OrderedDict[bytes | None, float] = OrderedDict()

    def find(
        self, key_digest: bytes | None, scope: Scope, endpoint: str, address: str
    ) -> Identity | None:
        """Who a caller was a moment ago that might do this, there and from there.

        None when nobody knows.
        """
        known = self._good.get(key_digest)
        if known is None:
            return None
        until_s = known.ways.get(_way(key_digest, scope, endpoint, address), 0.0)
        return None if until_s <= self._clock() else known.identity

    def may_begin(
        self, key_digest: bytes | None, scope: Scope, endpoint: str, address: str
    ) -> Identity | None:
        """Who a caller was, if work may begin before its reservation is granted."""
        identity = self.find(key_digest, scope, endpoint, address)
        if identity is None or self._limited.get(key_digest, 0.0) > self._clock():
            return None
        return identity

    def refusal(self, key_digest: bytes | None, address: str = "") -> DeniedError | None:
        """Why a caller is refused without asking: it was a moment ago, or its address guesses.

        None when nobody knows.
        """
        until, error = self._bad.get(key_digest, (0.0, None))
        if until > self._clock():
            return error
        return self.guesses.refusal(key_digest, address)

    def key_id(self, key_digest: bytes | None) -> str:
        """Whose key it was a moment ago; empty where nobody knows."""
        identity = self.known(key_digest)
        return "" if identity is None else identity.key_id

    def known(self, key_digest: bytes | None) -> Identity | None:
        """Who a caller was a moment ago, whatever it might do; None where nobody knows."""
        known = self._good.get(key_digest)
        return None if known is None or known.until_s <= self._clock() else known.identity

    def note_granted(
        self,
        key_digest: bytes | None,
        granted: Granted,
        scope: Scope,
        endpoint: str,
        address: str,
    ) -> Identity:
        """A caller was let in, to do this, there and from there."""
        self.guesses.note_good(key_digest)
        self._bad.pop(key_digest, None)
        self._limited.pop(key_digest, None)
        known = self._good.pop(key_digest, None)
        if known is None or not known.identity.is_of(granted):
            identity = Identity(
                granted.tenant,
                granted.priority,
                granted.key_id,
                granted.allowed_models,
                granted.team_allowed_models,
            )
            known = _Known(identity)
        known.until_s = self._clock() + GOOD_S
        way = _way(key_digest, scope, endpoint, address)
        known.ways.pop(way, None)
        if len(known.ways) >= MAX_WAYS:
            del known.ways[next(iter(known.ways))]
        known.ways[way] = known.until_s
        self._good[key_digest] = known
        if len(self._good) > MAX_GOOD:
            self._good.popitem(last=False)
        return known.identity

    def note_denied(self, key_digest: bytes | None, error: DeniedError, address: str = "") -> None:
        """A caller was refused: as a stranger, or by its limits."""
        if error.code is ErrorCode.INVALID_API_KEY:
            self.guesses.note_wrong(key_digest, address)
            self._good.pop(key_digest, None)
            self._bad.pop(key_digest, None)
            # Not the one that was raised: it would keep the frames, and a body, for as long.
            kept = DeniedError(error.message, code=error.code)
            self._bad[key_digest] = (self._clock() + BAD_S, kept)
            if len(self._bad) > MAX_BAD:
                self._bad.popitem(last=False)
        else:
            self._limited[key_digest] = self._clock() + LIMITED_S
            self._limited.move_to_end(key_digest)
            if len(self._limited) > MAX_GOOD:
                self._limited.popitem(last=False)

    def clear(self) -> None:
        """Keys were created or revoked here: nothing that was known counts any more."""
        self._good.clear()
        self._bad.clear()


def _way(key_digest: bytes | None, scope: Scope, endpoint: str, address: str) -> Way:
    # Whoever needs no key may come from anywhere.
    return scope, endpoint, "" if key_digest is None else address

"""Callers that were identified a moment ago, so that strangers are refused at no cost."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

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


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose key it is.

    Attributes:
        tenant: Salts prompt caches, and shares the queue.
        priority: Lower goes first.
        key_id: For the access log.
        scopes: What its key turned out to be good for.
        allowed_models, team_allowed_models: Globs of the models that it may see; None means all.
    """

    tenant: str
    priority: int
    key_id: str
    scopes: frozenset[str] = field(default=frozenset(), compare=False)
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
        self._good: OrderedDict[bytes | None, tuple[float, Identity]] = OrderedDict()
        self._bad: OrderedDict[bytes | None, tuple[float, DeniedError]] = OrderedDict()
        self._limited: OrderedDict[bytes | None, float] = OrderedDict()

    def find(self, key_digest: bytes | None, scope: Scope) -> Identity | None:
        """Who a caller was a moment ago that might do this; None when nobody knows."""
        until, identity = self._good.get(key_digest, (0.0, None))
        if identity is None or until <= self._clock() or scope not in identity.scopes:
            return None
        return identity

    def may_begin(self, key_digest: bytes | None, scope: Scope) -> Identity | None:
        """Who a caller was, if work may begin before its reservation is granted."""
        identity = self.find(key_digest, scope)
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
        until, identity = self._good.get(key_digest, (0.0, None))
        return None if until <= self._clock() else identity

    def note_granted(self, key_digest: bytes | None, granted: Granted, scope: Scope) -> Identity:
        """A caller was let in, to do this."""
        self.guesses.note_good(key_digest)
        self._bad.pop(key_digest, None)
        self._limited.pop(key_digest, None)
        _, identity = self._good.pop(key_digest, (0.0, None))
        if identity is None or not identity.is_of(granted):
            identity = Identity(
                granted.tenant,
                granted.priority,
                granted.key_id,
                frozenset((scope,)),
                granted.allowed_models,
                granted.team_allowed_models,
            )
        elif scope not in identity.scopes:
            identity = replace(identity, scopes=identity.scopes | {scope})
        self._good[key_digest] = (self._clock() + GOOD_S, identity)
        if len(self._good) > MAX_GOOD:
            self._good.popitem(last=False)
        return identity

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

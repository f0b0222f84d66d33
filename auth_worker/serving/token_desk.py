"""Requests that come with a bearer token: asked for it, held while it is verified, then decided."""

import hashlib
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass

from msgspec import structs

from auth_worker.clock import Clock
from auth_worker.decisions.refusals import RefusalLog
from auth_worker.errors import AuthError, TokenRefusedError
from auth_worker.principals.keys import KeyDirectory, StoredKey
from auth_worker.records.operations import AuditEntry, Operation
from auth_worker.tokens.checker import Outcome, TokenChecker, busy
from protocol.wire.messages import Authorize, Message, TokenWanted

_logger = logging.getLogger("penstock.auth")

Decide = Callable[[str, Authorize, AuthError | None], None]
"""Decides a request and answers its gateway; the error says why its token opens nothing."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    gateway_id: str
    command: Authorize
    since_s: float


class TokenDesk:
    """What stands before the authority when a request shows a token; in the I/O thread.

    Each token is verified once, however many requests bring it, and is a principal of the key
    directory until it expires.

    Args:
        checker: Verifies, in its own thread.
        keys: Takes the principals.
        clock: Both clocks.
        call_soon: Runs a function in the I/O thread.
        send: Answers a gateway.
        decide: Called when it is known whose token it is, or that it is nobody's.
        emit: Takes audit entries that nobody waits for.
    """

    def __init__(
        self,
        checker: TokenChecker,
        keys: KeyDirectory,
        *,
        clock: Clock,
        call_soon: Callable[..., None],
        send: Callable[[str, Message], None],
        decide: Decide,
        emit: Callable[[Operation], None],
    ) -> None:
        self._checker = checker
        self._keys = keys
        self._clock = clock
        self._call_soon = call_soon
        self._send = send
        self._decide = decide
        self._logins = RefusalLog(clock, emit)
        self._waiting: dict[bytes, list[_Waiting]] = {}
        checker.on_withdrawn = lambda: call_soon(self._end_withdrawn)

    def take(self, gateway_id: str, command: Authorize) -> bool:
        """Whether the request waits here; False when it can be decided at once."""
        digest = command.key_digest
        if not command.is_token or digest is None or self._keys.find(digest) is not None:
            return False
        if not command.token:
            self._send(gateway_id, TokenWanted(request_id=command.request_id))
            return True
        if not hmac.compare_digest(hashlib.sha256(command.token.encode()).digest(), digest):
            return False  # the digest of something else, which nobody has; refused as unknown
        known = structs.replace(command, token="")
        waiting = _Waiting(gateway_id, known, self._clock.monotonic_s())
        if digest in self._waiting:
            self._waiting[digest].append(waiting)
            return True
        self._waiting[digest] = [waiting]
        if not self._checker.submit(
            command.token, lambda outcome: self._call_soon(self._on_checked, digest, outcome)
        ):
            self._on_checked(digest, busy())
        return True

    def _on_checked(self, digest: bytes, outcome: Outcome) -> None:
        waiting = self._waiting.pop(digest, [])
        error = outcome if isinstance(outcome, AuthError) else self._put(outcome)
        if waiting and isinstance(outcome, StoredKey) and error is None:
            self._note_login(outcome, waiting[0].command)
        now_s = self._clock.monotonic_s()
        for one in waiting:
            # Whoever left meanwhile must be granted nothing.
            if 0.0 < one.command.wait_s <= now_s - one.since_s:
                continue
            self._decide(one.gateway_id, one.command, error)

    def _put(self, principal: StoredKey) -> AuthError | None:
        """Let a principal in; why not, when it may not."""
        if principal.signed_by not in self._checker.key_names:
            # It was verified just before the key was withdrawn.
            return TokenRefusedError("This token is not accepted: its signing key was withdrawn.")
        return self._keys.put_token(principal, self._clock.wall_s())

    def _end_withdrawn(self) -> None:
        """Tokens of keys that the issuer publishes no more open nothing any more."""
        num_ended = self._keys.end_tokens(self._checker.key_names)
        if num_ended:
            _logger.warning(
                "the token issuer has withdrawn a signing key: %d tokens were ended", num_ended
            )

    def _note_login(self, principal: StoredKey, command: Authorize) -> None:
        self._logins.note(
            AuditEntry(
                at_ms=int(self._clock.wall_s() * 1000),
                actor_key_id=principal.key_id,
                action="token_accepted",
                subject=principal.key_id,
                detail={"role": principal.role, "expires_at": principal.expires_at},
                address=command.address[:64],
                request_id=command.request_id[:64],
            )
        )

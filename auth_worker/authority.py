"""Decides in memory who may do what; pure: no disk, no socket, no thread, time is injected."""

from collections.abc import Callable
from dataclasses import dataclass

from auth_worker.clock import Clock
from auth_worker.keys import ANONYMOUS, KeyDirectory, StoredKey
from auth_worker.leases import MAX_LEASE_ID_CHARS, Lease
from auth_worker.limits import KeyLimits, Refusal
from auth_worker.open_leases import OpenLeases
from auth_worker.operations import (
    AppendAudit,
    AuditEntry,
    BookUsage,
    Operation,
    SaveLease,
    Snapshot,
    TouchKey,
)
from protocol.errors import ErrorCode
from protocol.runtime.settings import number, setting, switch
from protocol.wire.messages import (
    Adjust,
    Adjusted,
    Authorize,
    Denied,
    Failure,
    Granted,
    LimitState,
    OrphanUsage,
    Renew,
    Settle,
    StreamUsage,
)

MAX_TOKENS = 2**40
MAX_MODEL_CHARS = 512
NOTE_INTERVAL_S = 60.0
"""A key's last use and its knocking at admin routes are noted at most once in so long."""

_UNLIMITED = LimitState()


@dataclass(frozen=True, slots=True)
class Rules:
    """What the authority was told at its start."""

    allow_anonymous: bool = setting(
        switch(
            "PENSTOCK_ALLOW_ANONYMOUS",
            False,
            meaning=(
                "requests without a key, or with an unknown one, act as role user; set when the "
                "gateway requires none"
            ),
        )
    )
    lease_duration_s: float = setting(
        number(
            "PENSTOCK_LEASE_DURATION_S",
            600.0,
            minimum=1,
            maximum=86_400,
            meaning=(
                "a lease that is neither renewed nor settled for so long expires, charged its "
                "last report"
            ),
        )
    )


class Authority:
    """One epoch's decisions. Nothing here waits for the database.

    Args:
        epoch: Of the store.
        snapshot: What the store remembered.
        rules: See `Rules`.
        clock: Both clocks.
        emit: Takes operations that nobody waits for.
    """

    def __init__(
        self,
        *,
        epoch: int,
        snapshot: Snapshot,
        rules: Rules,
        clock: Clock,
        emit: Callable[[Operation], None],
    ) -> None:
        self.keys = KeyDirectory(snapshot.keys)
        self._rules = rules
        self._clock = clock
        self._emit = emit
        self._used_s: dict[str, float] = {}
        self._knocked_s: dict[str, float] = {}
        self._leases = OpenLeases(
            epoch=epoch,
            keys=self.keys,
            snapshot=snapshot,
            duration_s=rules.lease_duration_s,
            clock=clock,
            emit=emit,
        )

    @property
    def num_leases(self) -> int:
        """Open leases."""
        return len(self._leases)

    def authorize(self, command: Authorize) -> Granted | Denied:
        """May this caller do this; reserves the upper bound when the request uses tokens.

        Such requests count as requests, and so do metered ones without tokens, which get no lease;
        listing models costs nothing. A denied request consumes nothing.
        """
        key = self._identify(command)
        if isinstance(key, Denied):
            return key
        denied = self._deny_command(key, command)
        if denied is not None:
            return denied
        num_tokens = command.prompt_tokens + command.completion_tokens
        if num_tokens == 0 and not command.is_metered:
            self._note_use(key)
            return self._granted(key, command.request_id, None)
        granted = (
            self._leases.grant(key, command) if num_tokens else self._leases.count(key, command)
        )
        if isinstance(granted, Refusal):
            return self._deny_limit(command.request_id, key, self._leases.limits_of(key), granted)
        return self._granted(key, command.request_id, granted)

    def key_id_of(self, command: Authorize) -> str:
        """Whose request it is; empty when nobody's."""
        return self._identify(command).key_id

    def adjust(self, command: Adjust) -> Adjusted | Denied | Failure:
        """Replace a lease's bound; growth needs room in the windows and a key that still works."""
        request_id = command.request_id
        if not _are_token_counts(command.prompt_tokens, command.completion_tokens):
            return _fail(request_id, ErrorCode.INVALID_REQUEST, "The token bound is out of range.")
        lease = self._leases.find(command.lease_id, request_id)
        if lease is None:
            return _fail(
                request_id,
                ErrorCode.UNKNOWN_LEASE,
                "This lease is not open: it expired or was settled.",
            )
        if command.prompt_tokens + command.completion_tokens > lease.reserved_tokens:
            key = self.keys.get(lease.key_id)
            if key is not None and not key.is_active(self._clock.wall_s()):
                return _deny_ended(request_id, key)
        refusal = self._leases.resize(lease, command.prompt_tokens, command.completion_tokens)
        if refusal is not None:
            return self._deny_limit(request_id, lease, lease.limits, refusal)
        return Adjusted(
            request_id=request_id, lease_id=lease.lease_id, limits=self._state(lease.limits)
        )

    def renew(self, command: Renew) -> None:
        """Give leases a new term and note what they used; reports out of range are passed over."""
        for report in command.leases:
            if _are_token_counts(report.prompt_tokens, report.completion_tokens) and all(
                _is_countable(usage) for usage in report.streams
            ):
                self._leases.renew(report)

    def note_orphans(self, command: OrphanUsage) -> list[SaveLease]:
        """What to remember of an engine's report; to be acknowledged once that is durable.

        See `OpenLeases.note_orphans`. Counts out of range are passed over.
        """
        return self._leases.note_orphans(usage for usage in command.streams if _is_countable(usage))

    def settle(self, command: Settle) -> BookUsage | Failure:
        """What to book for a settlement; to be acknowledged once that is durable.

        See `OpenLeases.settle` for leases that aren't open.
        """
        if (
            not _are_token_counts(command.prompt_tokens, command.completion_tokens)
            or not _are_token_counts(command.cached_tokens, command.reasoning_tokens)
            or len(command.lease_id) > MAX_LEASE_ID_CHARS
        ):
            return _fail(
                command.request_id,
                ErrorCode.INVALID_REQUEST,
                "The settlement's lease id or token counts are out of range.",
            )
        return self._leases.settle(command)

    def expire(self) -> int:
        """Charge the leases whose term is over with their last report; how many there were."""
        return self._leases.expire()

    def _identify(self, command: Authorize) -> StoredKey | Denied:
        """Whose request it is. Anonymous callers never pass where an admin is needed."""
        digest = command.key_digest
        key = None if digest is None else self.keys.find(digest)
        if key is not None and key.is_active(self._clock.wall_s()):
            return key
        if self._rules.allow_anonymous and command.required_role == "user":
            return ANONYMOUS
        if key is not None:
            return _deny_ended(command.request_id, key)
        missing = "No API key was given. Send it as 'Authorization: Bearer psk-…'."
        message = missing if digest is None else "This API key is not known."
        return _deny(command.request_id, ErrorCode.INVALID_API_KEY, message)

    def _deny_command(self, key: StoredKey, command: Authorize) -> Denied | None:
        """Why this key may not ask for this at all."""
        code, message = ErrorCode.INVALID_REQUEST, ""
        if not _are_token_counts(command.prompt_tokens, command.completion_tokens):
            message = "The token bound is out of range."
        elif len(command.model) > MAX_MODEL_CHARS:
            message = "The model name is too long."
        elif command.required_role == "admin" and key.role != "admin":
            self._note_knock(key, command)
            code, message = ErrorCode.PERMISSION_DENIED, "This route needs a key of role admin."
        if not message:
            return None
        return _deny(command.request_id, code, message, key.key_id)

    def _granted(self, key: StoredKey, request_id: str, lease: Lease | None) -> Granted:
        return Granted(
            request_id=request_id,
            lease_id="" if lease is None else lease.lease_id,
            tenant=key.tenant_id,
            key_id=key.key_id,
            role=key.role,
            limits=self._state(self._leases.limits_of(key) if lease is None else lease.limits),
            expires_s=0.0 if lease is None else self._rules.lease_duration_s,
        )

    def _state(self, limits: KeyLimits | None) -> LimitState:
        return _UNLIMITED if limits is None else limits.state(self._clock.monotonic_s())

    def _deny_limit(
        self, request_id: str, owner: StoredKey | Lease, limits: KeyLimits | None, refusal: Refusal
    ) -> Denied:
        return Denied(
            request_id=request_id,
            code=ErrorCode.RATE_LIMIT_EXCEEDED,
            message=refusal.message,
            retry_after_s=refusal.retry_after_s,
            limits=self._state(limits),
            key_id=owner.key_id,
        )

    def _note_use(self, key: StoredKey) -> None:
        """Remember the last use of a key that takes no lease; settlements note it themselves."""
        if self._is_due(self._used_s, key.key_id):
            self._emit(TouchKey(key.key_id, int(self._clock.wall_s())))

    def _note_knock(self, key: StoredKey, command: Authorize) -> None:
        """Put a user key that knocks at an admin route on record."""
        if self._is_due(self._knocked_s, key.key_id):
            entry = AuditEntry(
                at_ms=int(self._clock.wall_s() * 1000),
                actor_key_id=key.key_id,
                action="admin_access_denied",
                subject=command.endpoint[:200],
                detail={"address": command.address[:64]},
            )
            self._emit(AppendAudit(entry))

    def _is_due(self, noted_s: dict[str, float], key_id: str) -> bool:
        now_s = self._clock.monotonic_s()
        if now_s - noted_s.get(key_id, -NOTE_INTERVAL_S) < NOTE_INTERVAL_S:
            return False
        noted_s[key_id] = now_s
        return True


def _are_token_counts(one: int, other: int) -> bool:
    return 0 <= one <= MAX_TOKENS and 0 <= other <= MAX_TOKENS


def _is_countable(usage: StreamUsage) -> bool:
    return _are_token_counts(usage.prompt_tokens, usage.completion_tokens)


def _deny(request_id: str, code: ErrorCode, message: str, key_id: str = "") -> Denied:
    return Denied(request_id=request_id, code=code, message=message, key_id=key_id)


def _deny_ended(request_id: str, key: StoredKey) -> Denied:
    """Only who holds the whole key learns that it was once good."""
    why = "was revoked" if key.revoked_at is not None else "has expired"
    return _deny(request_id, ErrorCode.INVALID_API_KEY, f"This API key {why}.", key.key_id)


def _fail(request_id: str, code: ErrorCode, message: str) -> Failure:
    return Failure(request_id=request_id, code=code, message=message)

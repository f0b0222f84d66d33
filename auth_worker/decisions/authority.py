"""Decides in memory who may do what; pure: no disk, no socket, no thread, time is injected."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from auth_worker.clock import Clock
from auth_worker.decisions.leases import Lease
from auth_worker.decisions.limit_refusals import Refusal
from auth_worker.decisions.limit_warnings import LimitEvent, event_of, warning_of
from auth_worker.decisions.meter_table import MeterTable
from auth_worker.decisions.meters import Meter
from auth_worker.decisions.open_leases import OpenLeases
from auth_worker.decisions.plans import UNLIMITED, Plan
from auth_worker.decisions.refusals import RefusalLog
from auth_worker.decisions.served_models import ServedModels
from auth_worker.decisions.slices import Commit, Postponed, Slices
from auth_worker.principals.keys import ANONYMOUS, ANONYMOUS_KEY_ID, KeyDirectory, StoredKey
from auth_worker.principals.limit_directory import LimitDirectory
from auth_worker.principals.limit_rules import Limit
from auth_worker.principals.prices import PriceTable
from auth_worker.principals.roles import OF_OLD_GATEWAYS
from auth_worker.principals.tokens import TOKEN_ID_PREFIX
from auth_worker.records.lease_names import MAX_LEASE_ID_CHARS
from auth_worker.records.operations import (
    AppendAudit,
    AuditAction,
    AuditEntry,
    BookUsage,
    Operation,
    Result,
    SaveLease,
    Snapshot,
    TouchKey,
)
from auth_worker.records.stored_names import storable, with_stored_names
from protocol.errors import NO_API_KEY, ErrorCode
from protocol.runtime.settings import number, setting, switch
from protocol.wire.messages import (
    Adjust,
    Adjusted,
    Authorize,
    Denied,
    Failure,
    Granted,
    LimitState,
    LimitWarning,
    OrphanUsage,
    Renew,
    Settle,
    StreamUsage,
)

MAX_TOKENS = 2**40
MAX_MODEL_CHARS = 512
_UNKNOWN_KEY: Final = (
    "This API key is not known here. Check that it is complete and a key of this server; whoever "
    "runs the server makes another with `penstock keys create`."
)
NOTE_INTERVAL_S = 60.0
"""A key's last use is noted at most once in so long."""

_RECORDED_SCOPES: Final[Mapping[str, AuditAction]] = {
    "admin.profile": "engine_profiled",
    "admin.workers": "worker_drained",
    "admin.cache": "caches_cleared",
}
"""Administration that isn't carried out here; each grant is an entry of the audit log."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the authority was told at its start."""

    allow_anonymous: bool = setting(
        switch(
            "PENSTOCK_ALLOW_ANONYMOUS",
            False,
            meaning=(
                "requests without a key, or with an unknown one, are let in, but not where an "
                "administrator is asked for; set when the gateway requires none"
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

    It has many methods because each message of a gateway is one, over one state; what they decide
    by is in the parts that it is made of.

    Args:
        epoch: Of the store.
        snapshot: What the store remembered.
        rules: See `Rules`.
        clock: Both clocks.
        emit: Takes operations that nobody waits for.
        commit: Makes an operation durable and calls back with its result; without it, as tests
            want it, whatever is emitted counts as durable at once.

    Attributes:
        keys: All of them, with users and teams; administration changes it.
        limits: All limits and budgets that are durable; likewise.
        prices: All prices that are durable; likewise.
        refusals: Puts refusals on record.
    """

    def __init__(
        self,
        *,
        epoch: int,
        snapshot: Snapshot,
        rules: Rules,
        clock: Clock,
        emit: Callable[[Operation], None],
        commit: Commit | None = None,
    ) -> None:
        self.keys = KeyDirectory(snapshot.keys, snapshot.users, snapshot.teams)
        self.limits = LimitDirectory(snapshot.limits)
        self.prices = PriceTable(snapshot.prices)
        self._rules = rules
        self._clock = clock
        self._emit = emit
        self._used_s: dict[str, float] = {}
        self.refusals = RefusalLog(clock, emit)
        self.keys.tell_gone_principals(self.forget)
        commit = commit or self._emit_as_durable
        slices = Slices(commit)
        served = ServedModels(use.model for use in snapshot.recent if use.num_tokens)
        self._meters = MeterTable(
            limits=self.limits,
            counters=snapshot.counters,
            epoch=epoch,
            clock=clock,
            emit=emit,
            slices=slices,
            served=served,
        )
        self._leases = OpenLeases(
            epoch=epoch,
            keys=self.keys,
            meters=self._meters,
            prices=self.prices,
            served=served,
            slices=slices,
            snapshot=snapshot,
            duration_s=rules.lease_duration_s,
            clock=clock,
            emit=emit,
            commit=commit,
        )

    @property
    def num_leases(self) -> int:
        """Open leases."""
        return len(self._leases)

    def authorize(self, command: Authorize) -> Granted | Denied | Postponed:
        """May this caller do this; reserves the upper bound when the request uses tokens.

        Such requests count as requests, and so do metered ones without tokens, which get no lease;
        listing models costs nothing. A denied request consumes nothing.

        Returns:
            Postponed when a hard budget or quota has room, but its slice of it must be committed
            first: to be asked again then.
        """
        answer = self._decide(command)
        if isinstance(answer, Denied):
            self._note_refusal(command, answer)
        if command.num_refused_guesses > 0 and not isinstance(answer, Postponed):
            self._note_guesses(command)
        return answer

    def forget(self, key_id: str) -> None:
        """A key was deleted, or whoever showed tokens shows none any more."""
        self._used_s.pop(key_id, None)
        self._leases.forget(key_id)

    def limits_of(self, key: StoredKey) -> tuple[Limit, ...]:
        """Every limit that holds for a key, those of its own row and templates among them."""
        return self._meters.limits_of(key)

    def meter_of(self, limit: Limit, end_user: str = "") -> Meter:
        """How far a limit is used at this moment; to be read only."""
        meter = self._meters.window_of(limit, end_user, self._clock.wall_s())
        # Only when it is due: what a killed process may have granted is held until then.
        meter.refresh_due(self._clock.monotonic_s())
        return meter

    def close(self) -> None:
        """This process ends cleanly: release what slices keep back beyond open leases."""
        self._meters.release_slices()

    def _decide(self, command: Authorize) -> Granted | Denied | Postponed:
        wall_s = self._clock.wall_s()
        key = self._identify(command, wall_s)
        if isinstance(key, Denied):
            return key
        denied = self._deny_command(key, command)
        if denied is not None:
            return denied
        num_tokens = command.prompt_tokens + command.completion_tokens
        command = with_stored_names(command)
        plan = self._leases.plan_of(key, command, wall_s)
        if isinstance(plan, Refusal):
            return self._deny_limit(command.request_id, key.key_id, None, plan)
        if num_tokens == 0 and not command.is_metered:
            self._note_use(key)
            self._note_action(key, command)
            return self._granted(key, command.request_id, None, plan, wall_s)
        granted = (
            self._leases.grant(key, command, plan, wall_s)
            if num_tokens
            else self._leases.count(key, command, plan, wall_s)
        )
        if isinstance(granted, Refusal):
            self._note_exceeded(granted)
            return self._deny_limit(command.request_id, key.key_id, plan, granted)
        if isinstance(granted, Postponed):
            return granted
        return self._granted(key, command.request_id, granted, plan, wall_s)

    def key_id_of(self, command: Authorize) -> str:
        """Whose request it is; empty when nobody's."""
        return self._identify(command, self._clock.wall_s()).key_id

    def adjust(self, command: Adjust) -> Adjusted | Denied | Failure | Postponed:
        """Replace a lease's bound; growth needs room in the windows and a key that still works.

        Returns:
            Postponed as `authorize`.
        """
        request_id = command.request_id
        if not _are_token_counts(command.prompt_tokens, command.completion_tokens):
            return _fail(request_id, ErrorCode.INVALID_REQUEST, "The token bound is out of range.")
        lease = self._leases.find(storable(command.lease_id), request_id)
        if lease is None:
            return _fail(
                request_id,
                ErrorCode.UNKNOWN_LEASE,
                "This lease is not open: it expired or was settled.",
            )
        num_tokens = command.prompt_tokens + command.completion_tokens
        grows = command.completion_tokens > lease.completion_tokens
        if grows or num_tokens > lease.reserved_tokens:
            denied = self._deny_growth(lease, command)
            if denied is not None:
                return denied
        unfit = self._leases.resize(lease, command.prompt_tokens, command.completion_tokens)
        if isinstance(unfit, Refusal):
            return self._deny_limit(request_id, lease.key_id, lease.plan, unfit)
        if isinstance(unfit, Postponed):
            return unfit
        return Adjusted(
            request_id=request_id, lease_id=command.lease_id, limits=self._state(lease.plan)
        )

    def renew(self, command: Renew) -> None:
        """Give leases a new term and note what they used; reports out of range are passed over."""
        for report in command.leases:
            if (
                _are_token_counts(report.prompt_tokens, report.completion_tokens)
                and _are_token_counts(report.max_prompt_tokens, report.max_completion_tokens)
                and all(_is_countable(usage) for usage in report.streams)
            ):
                self._leases.renew(with_stored_names(report))

    def note_orphans(self, command: OrphanUsage) -> list[SaveLease]:
        """What to remember of an engine's report; to be acknowledged once that is durable.

        See `OpenLeases.note_orphans`. Counts out of range are passed over.
        """
        return self._leases.note_orphans(
            with_stored_names(usage) for usage in command.streams if _is_countable(usage)
        )

    def settle(self, command: Settle) -> BookUsage | Failure:
        """What to book for a settlement; to be acknowledged once that is durable.

        See `OpenLeases.settle` for leases that aren't open.
        """
        if (
            not _are_token_counts(command.prompt_tokens, command.completion_tokens)
            or not _are_token_counts(command.cached_tokens, command.reasoning_tokens)
            or len(command.lease_id) > MAX_LEASE_ID_CHARS
            or len(command.model) > MAX_MODEL_CHARS
        ):
            return _fail(
                command.request_id,
                ErrorCode.INVALID_REQUEST,
                "The settlement's lease id, model or token counts are out of range.",
            )
        return self._leases.settle(with_stored_names(command))

    def booked(self, booking: BookUsage, result: Result) -> None:
        """A booking of `settle` is durable; to be called with what the store says of it."""
        self._leases.booked(booking, result)
        self._tell_crossed()

    def expire(self, at_most: int | None = None) -> int:
        """Charge leases whose term is over with their last report; how many there were."""
        self._meters.sweep()
        num_expired = self._leases.expire(at_most)
        self._tell_crossed()
        return num_expired

    def _identify(self, command: Authorize, wall_s: float) -> StoredKey | Denied:
        """Whose request it is. Anonymous callers never pass where an admin is needed."""
        digest, key = command.key_digest, None
        if digest is not None:
            key = self.keys.find(digest)
            if (
                key is not None
                and key.is_active(wall_s)
                # Found by its only digest, it takes that.
                and (key.previous_digest is None or key.takes(digest, wall_s))
            ):
                return key
        if self._rules.allow_anonymous and command.required_role == "user":
            return ANONYMOUS
        if key is not None:
            return _deny_ended(command.request_id, key, wall_s)
        message = NO_API_KEY if digest is None else _UNKNOWN_KEY
        return _deny(command.request_id, ErrorCode.INVALID_API_KEY, message)

    def _deny_command(self, key: StoredKey, command: Authorize) -> Denied | None:
        """Why this key may not ask for this at all."""
        code, message = ErrorCode.INVALID_REQUEST, ""
        if not _are_token_counts(command.prompt_tokens, command.completion_tokens):
            message = "The token bound is out of range."
        elif len(command.model) > MAX_MODEL_CHARS:
            message = "The model name is too long."
        else:
            code = ErrorCode.PERMISSION_DENIED
            message = _missing_scope(key, command) or key.refusal(command) or ""
        if not message:
            return None
        return _deny(command.request_id, code, message, key.key_id)

    def _deny_growth(self, lease: Lease, command: Adjust) -> Denied | None:
        """Why a lease may not grow, whatever room the windows have."""
        key = ANONYMOUS if lease.key_id == ANONYMOUS_KEY_ID else self.keys.principal(lease.key_id)
        request_id, wall_s = command.request_id, self._clock.wall_s()
        if key is None:
            message = "This API key was deleted while the request ran; use another."
            return _deny(request_id, ErrorCode.INVALID_API_KEY, message, lease.key_id)
        if not key.is_active(wall_s):
            return _deny_ended(request_id, key, wall_s)
        limit = key.rules.max_tokens_per_request
        if limit is not None and command.completion_tokens > max(limit, lease.completion_tokens):
            message = f"This key may generate {limit} tokens a request, all choices together."
            return _deny(request_id, ErrorCode.PERMISSION_DENIED, message, key.key_id)
        return None

    def _granted(
        self,
        key: StoredKey,
        request_id: str,
        lease: Lease | None,
        plan: Plan | None,
        wall_s: float,
    ) -> Granted:
        limits = UNLIMITED
        if plan is not None:
            limits = plan.state(self._clock.monotonic_s(), wall_s)
        return Granted(
            request_id=request_id,
            lease_id="" if lease is None else lease.lease_id,
            tenant=key.tenant_id,
            key_id=key.key_id,
            role="admin" if key.is_of_admin else "user",
            priority=key.rules.priority,
            limits=limits,
            expires_s=0.0 if lease is None else self._rules.lease_duration_s,
            allowed_models=key.rules.allowed_models,
            team_allowed_models=None if key.team is None else key.team.allowed_models,
            max_completion_tokens=key.rules.max_tokens_per_request,
            warnings=() if plan is None or not plan.warns else self._warnings(plan),
            gives_back=plan is not None and plan.gives_back,
        )

    def _state(self, plan: Plan | None) -> LimitState:
        if plan is None:
            return UNLIMITED
        return plan.state(self._clock.monotonic_s(), self._clock.wall_s())

    def _warnings(self, plan: Plan) -> tuple[LimitWarning, ...]:
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        return tuple(warning_of(meter, now_s, wall_s) for meter in plan.warned())

    def _deny_limit(
        self, request_id: str, key_id: str, plan: Plan | None, refusal: Refusal
    ) -> Denied:
        return Denied(
            request_id=request_id,
            code=refusal.code,
            message=refusal.message,
            retry_after_s=refusal.retry_after_s,
            limits=self._state(plan),
            key_id=key_id,
            limit=refusal.limit,
            is_unpriced=refusal.is_unpriced,
        )

    def _tell_crossed(self) -> None:
        crossed = self._meters.crossed
        if crossed:
            events = [event_of(meter, used) for meter, used in crossed]
            crossed.clear()
            for event in events:
                self._tell(event, "warned")

    def _note_exceeded(self, refusal: Refusal) -> None:
        """Put the first refusal of a window on record; the others are samples."""
        meter = refusal.meter
        if meter is None or not refusal.is_used_up:
            return
        if meter.is_first_refusal(self._clock.monotonic_s()):
            self._tell(event_of(meter, meter.total), "exceeded")

    def _tell(self, event: LimitEvent, what: Literal["warned", "exceeded"]) -> None:
        limit = event.limit
        is_budget = limit.measure == "money"
        warned: AuditAction = "budget_warned" if is_budget else "limit_warned"
        exceeded: AuditAction = "budget_exceeded" if is_budget else "limit_exceeded"
        whose: dict[str, str] = {}
        if event.end_user:
            # An entry stays for good: it must not hold what may be somebody's address.
            name = event.end_user.encode("utf-8", "surrogatepass")
            whose["end_user_sha256"] = hashlib.sha256(name).hexdigest()
        entry = AuditEntry(
            at_ms=int(self._clock.wall_s() * 1000),
            actor_key_id="",
            action=warned if what == "warned" else exceeded,
            subject=limit.limit_id,
            detail={
                "percent": event.percent,
                "used": event.used,
                "amount": event.amount,
                "measure": limit.measure,
                "window": limit.window.kind,
                "holder": limit.holder,
                "holder_id": limit.holder_id,
                **whose,
            },
        )
        self._emit(AppendAudit(entry))

    def _emit_as_durable(self, operation: Operation, on_done: Callable[[Result], None]) -> None:
        self._emit(operation)
        on_done(None)

    def _note_use(self, key: StoredKey) -> None:
        """Remember the last use of a key that takes no lease; settlements note it themselves."""
        if self._is_due(self._used_s, key.key_id):
            self._emit(TouchKey(key.key_id, int(self._clock.wall_s())))

    def _note_refusal(self, command: Authorize, denied: Denied) -> None:
        self.refusals.note(
            AuditEntry(
                at_ms=int(self._clock.wall_s() * 1000),
                actor_key_id=denied.key_id,
                action="request_refused",
                subject=command.endpoint[:200],
                detail={
                    "code": str(denied.code),
                    "model": command.model[:200],
                    "scope": command.scope[:64],
                },
                outcome="refused",
                address=command.address[:64],
                request_id=command.request_id[:64],
            )
        )

    def _note_guesses(self, command: Authorize) -> None:
        """Put on record what a gateway refused without asking, as one entry."""
        entry = AuditEntry(
            at_ms=int(self._clock.wall_s() * 1000),
            actor_key_id="",
            action="request_refused",
            subject="",
            detail={
                "code": str(ErrorCode.TOO_MANY_WRONG_KEYS),
                "num_refused": command.num_refused_guesses,
            },
            outcome="refused",
            address=command.address[:64],
        )
        self.refusals.note(entry, command.num_refused_guesses)

    def _note_action(self, key: StoredKey, command: Authorize) -> None:
        """Put on record what an administrator does elsewhere than here."""
        action = _RECORDED_SCOPES.get(command.scope)
        if action is not None:
            entry = AuditEntry(
                at_ms=int(self._clock.wall_s() * 1000),
                actor_key_id=key.key_id,
                action=action,
                subject=command.endpoint[:200],
                address=command.address[:64],
                request_id=command.request_id[:64],
            )
            self._emit(AppendAudit(entry))

    def _is_due(self, noted_s: dict[str, float], key_id: str) -> bool:
        now_s = self._clock.monotonic_s()
        if now_s - noted_s.get(key_id, -NOTE_INTERVAL_S) < NOTE_INTERVAL_S:
            return False
        noted_s[key_id] = now_s
        return True


def _missing_scope(key: StoredKey, command: Authorize) -> str | None:
    """Why a key may not use a route; None when it may."""
    if command.scope:
        if command.scope in key.scopes:
            return None
        return (
            f"This needs the scope {command.scope[:64]}, which this key of role {key.role} does"
            " not have."
        )
    if key is ANONYMOUS:
        return None  # never where an admin is asked for
    if command.required_role == "admin" and not key.is_of_admin:
        return "This route needs a key of role admin."
    if key.role not in OF_OLD_GATEWAYS or key.rules.scopes is not None:
        return "This gateway is too old to know what this key may do; use a newer one."
    return None


def _are_token_counts(one: int, other: int) -> bool:
    return 0 <= one <= MAX_TOKENS and 0 <= other <= MAX_TOKENS


def _is_countable(usage: StreamUsage) -> bool:
    return _are_token_counts(usage.prompt_tokens, usage.completion_tokens)


def _deny(request_id: str, code: ErrorCode, message: str, key_id: str = "") -> Denied:
    return Denied(request_id=request_id, code=code, message=message, key_id=key_id)


def _deny_ended(request_id: str, key: StoredKey, wall_s: float) -> Denied:
    """Only who holds the whole key learns that it was once good."""
    is_token = key.key_id.startswith(TOKEN_ID_PREFIX)
    subject = "This token is not accepted: it" if is_token else "This API key"
    message = f"{subject} {key.ending(wall_s)}."
    return _deny(request_id, ErrorCode.INVALID_API_KEY, message, key.key_id)


def _fail(request_id: str, code: ErrorCode, message: str) -> Failure:
    return Failure(request_id=request_id, code=code, message=message)

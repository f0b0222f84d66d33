"""What running requests hold and what is charged when they end; pure, time is injected."""

from collections import OrderedDict
from collections.abc import Callable, Iterable

from auth_worker.clock import Clock
from auth_worker.decisions.leases import (
    MAX_LEASE_ID_CHARS,
    Lease,
    LeaseName,
    LeaseTable,
    lease_id_of,
)
from auth_worker.decisions.limits import SETTLEMENT_RETRY_S, SPAN_S, KeyLimits, Refusal
from auth_worker.principals.keys import ANONYMOUS, ANONYMOUS_KEY_ID, KeyDirectory, StoredKey
from auth_worker.records.operations import BookUsage, LeaseRow, Operation, SaveLease, Snapshot
from protocol.wire.messages import Authorize, LeaseReport, Settle, StreamUsage

ORPHAN_TERM_S = 30.0
"""Time for every engine, and for the outbox of a gateway that restarts, to say what they know."""
MAX_SETTLED_REMEMBERED = 4096
"""Settled leases about which engines may still report; beyond it a report reads the ledger."""


class OpenLeases:
    """The open leases and the windows they draw on.

    Restarts err on the safe side: open leases come back with their reservations and a full new
    term, and what was granted and settled within the last minute counts in the windows again.

    Args:
        epoch: Of the store; makes the lease ids of this process unlike any other's.
        keys: All keys; looked at, never changed.
        snapshot: What the store remembered.
        duration_s: The term of a lease.
        clock: Both clocks.
        emit: Takes operations that nobody waits for.
    """

    def __init__(
        self,
        *,
        epoch: int,
        keys: KeyDirectory,
        snapshot: Snapshot,
        duration_s: float,
        clock: Clock,
        emit: Callable[[Operation], None],
    ) -> None:
        self._epoch = epoch
        self._keys = keys
        self._clock = clock
        self._emit = emit
        self._leases = LeaseTable(duration_s, min(duration_s, ORPHAN_TERM_S))
        self._settled: OrderedDict[str, None] = OrderedDict()
        self._limits: dict[str, KeyLimits] = {}
        self._num_open: dict[str, int] = {}
        self._num_granted = 0
        self._restore(snapshot)

    def __len__(self) -> int:
        return len(self._leases)

    def limits_of(self, key: StoredKey) -> KeyLimits | None:
        """The windows of a key; None when it has no limits."""
        limits = self._limits.get(key.key_id)
        has_limits = key.requests_per_minute is not None or key.tokens_per_minute is not None
        if limits is not None:
            # An administrator may have changed them; what was counted stays.
            limits.requests_per_minute = key.requests_per_minute
            limits.tokens_per_minute = key.tokens_per_minute
        elif has_limits:
            limits = KeyLimits(key.requests_per_minute, key.tokens_per_minute)
            self._limits[key.key_id] = limits
        return limits if has_limits else None

    def num_open(self, key_id: str) -> int:
        """Open leases of a key."""
        return self._num_open.get(key_id, 0)

    def forget(self, key_id: str) -> None:
        """A key was deleted; its open leases end by themselves."""
        self._limits.pop(key_id, None)

    def grant(self, key: StoredKey, command: Authorize) -> Lease | Refusal:
        """A lease over the command's bound, if the key's windows have room."""
        now_s = self._clock.monotonic_s()
        limits, rules = self.limits_of(key), key.rules
        most_parallel = rules.max_parallel_requests
        if most_parallel is not None and self.num_open(key.key_id) >= most_parallel:
            return _refuse_parallel(most_parallel)
        completion_tokens = command.completion_tokens
        if rules.max_tokens_per_request is not None:
            completion_tokens = min(completion_tokens, rules.max_tokens_per_request)
        if limits is not None:
            refusal = limits.reserve(now_s, command.prompt_tokens + completion_tokens)
            if refusal is not None:
                return refusal
        lease = Lease(
            lease_id=self._new_lease_id(key, command.model),
            request_id=command.request_id,
            key_id=key.key_id,
            model=command.model,
            granted_at_ms=self._wall_ms(),
            prompt_tokens=command.prompt_tokens,
            completion_tokens=completion_tokens,
            expires_s=now_s + self._leases.duration_s,
            limits=limits,
            counted_s=now_s,
        )
        self._open(lease)
        self._emit(SaveLease(lease.row()))
        return lease

    def count(self, key: StoredKey, command: Authorize) -> Refusal | None:
        """Count a request that uses no tokens, if the key's windows have room.

        Its line in the ledger is under a lease id that nobody ever gets, so that totals and the
        windows after a restart follow from the ledger alone.
        """
        limits = self.limits_of(key)
        refusal = None if limits is None else limits.reserve(self._clock.monotonic_s(), 0)
        if refusal is None:
            now_ms = self._wall_ms()
            self._emit(
                BookUsage(
                    lease_id=self._new_lease_id(key, command.model),
                    request_id=command.request_id,
                    key_id=key.key_id,
                    model=command.model,
                    prompt_tokens=0,
                    completion_tokens=0,
                    cached_tokens=0,
                    reasoning_tokens=0,
                    outcome="finished",
                    granted_at_ms=now_ms,
                    settled_at_ms=now_ms,
                )
            )
        return refusal

    def find(self, lease_id: str, request_id: str = "") -> Lease | None:
        """An open lease, or one of an earlier epoch that a kill forgot right after its grant.

        If that lease was in fact settled, the ledger ignores whatever comes of it here.
        """
        return self._leases.get(lease_id) or self._find_forgotten(lease_id, request_id)

    def _find_forgotten(
        self, lease_id: str, request_id: str, *, of_this_epoch: bool = False
    ) -> Lease | None:
        if len(lease_id) > MAX_LEASE_ID_CHARS:
            return None
        name = LeaseName.parse(lease_id)
        if name is None or name.epoch >= self._epoch + of_this_epoch:
            return None
        key = ANONYMOUS if name.key_id == ANONYMOUS_KEY_ID else self._keys.get(name.key_id)
        if key is None:
            return None
        row = LeaseRow(
            lease_id=lease_id,
            request_id=request_id,
            key_id=name.key_id,
            model=name.model,
            granted_at_ms=self._wall_ms(),
            prompt_tokens=0,
            completion_tokens=0,
            reported_prompt_tokens=0,
            reported_completion_tokens=0,
        )
        return self._reopen(row)

    def resize(self, lease: Lease, prompt_tokens: int, completion_tokens: int) -> Refusal | None:
        """Replace a lease's bound and begin a new term; growth needs room in the windows."""
        now_s = self._clock.monotonic_s()
        if lease.limits is not None:
            key = self._keys.get(lease.key_id)
            if key is not None:
                self.limits_of(key)  # they may have changed since the grant
            refusal = lease.limits.resize(
                now_s, lease.reserved_tokens, prompt_tokens + completion_tokens
            )
            if refusal is not None:
                return refusal
        lease.prompt_tokens = prompt_tokens
        lease.completion_tokens = completion_tokens
        self._leases.renew(lease, now_s)
        self._emit(SaveLease(lease.row()))
        return None

    def renew(self, report: LeaseReport) -> None:
        """Begin a new term and note what was used so far; reports never run backwards."""
        lease = self.find(report.lease_id)
        if lease is None:
            return
        self._leases.renew(lease, self._clock.monotonic_s())
        before = (lease.reported_prompt_tokens, lease.reported_completion_tokens)
        lease.note_totals(report.prompt_tokens, report.completion_tokens)
        if report.streams:
            lease.note_streams(report.streams)
        if before != (lease.reported_prompt_tokens, lease.reported_completion_tokens):
            self._emit(SaveLease(lease.row()))

    def note_orphans(self, usages: Iterable[StreamUsage]) -> list[SaveLease]:
        """Engines say what they did for a gateway that is gone; what is to be remembered of it.

        The leases expire soon and are charged then, unless a gateway renews or settles them first.
        What was settled is settled; a lease that has expired meanwhile is opened once more, so that
        the ledger gets the greater count.
        """
        by_lease: dict[str, list[StreamUsage]] = {}
        for usage in usages:
            by_lease.setdefault(usage.lease_id, []).append(usage)
        operations: list[SaveLease] = []
        for lease_id, streams in by_lease.items():
            if lease_id in self._settled:
                continue
            request_id = streams[0].stream.partition("/")[0]
            lease = self._leases.get(lease_id) or self._find_forgotten(
                lease_id, request_id, of_this_epoch=True
            )
            if lease is not None:
                lease.note_streams(streams)
                self._leases.orphan(lease, self._clock.monotonic_s())
                operations.append(SaveLease(lease.row()))
        return operations

    def settle(self, command: Settle) -> BookUsage:
        """Release a lease; what to book for it.

        A lease that isn't open is booked all the same, on the key and model that its id names: it
        was settled before (the ledger then changes nothing), it expired (the ledger corrects it),
        or a kill forgot it. An id that is none of ours is booked on no key, so that the gateway's
        outbox can't get stuck and the tokens can still be seen.
        A grant that came too late for anybody goes back whole. One that has expired before is
        taken out of the totals; only its request stays in the window, for the rest of its minute.
        """
        lease = self._leases.close(command.lease_id)
        if lease is not None:
            self._count_closed(lease)
        self._settled[command.lease_id] = None
        if len(self._settled) > MAX_SETTLED_REMEMBERED:
            self._settled.popitem(last=False)
        granted_at_ms: int | None = None
        if lease is not None:
            if not command.is_unused:
                self._release(lease, command.prompt_tokens + command.completion_tokens)
            elif lease.limits is not None:
                lease.limits.give_back(lease.reserved_tokens, lease.counted_s)
            key_id, model, granted_at_ms = lease.key_id, lease.model, lease.granted_at_ms
        else:
            name = LeaseName.parse(command.lease_id)
            key_id, model = ("", "") if name is None else (name.key_id, name.model)
        is_used = not command.is_unused
        return BookUsage(
            lease_id=command.lease_id,
            request_id=command.request_id,
            key_id=key_id,
            model=model,
            prompt_tokens=command.prompt_tokens * is_used,
            completion_tokens=command.completion_tokens * is_used,
            cached_tokens=command.cached_tokens * is_used,
            reasoning_tokens=command.reasoning_tokens * is_used,
            outcome=command.outcome if is_used else "unused",
            granted_at_ms=granted_at_ms,
            settled_at_ms=self._wall_ms(),
        )

    def expire(self) -> int:
        """Charge the leases whose term is over with their last report; how many there were."""
        num_expired = 0
        for lease in self._leases.pop_expired(self._clock.monotonic_s()):
            num_expired += 1
            self._count_closed(lease)
            self._release(lease, lease.reported_prompt_tokens + lease.reported_completion_tokens)
            self._emit(
                BookUsage(
                    lease_id=lease.lease_id,
                    request_id=lease.request_id,
                    key_id=lease.key_id,
                    model=lease.model,
                    prompt_tokens=lease.reported_prompt_tokens,
                    completion_tokens=lease.reported_completion_tokens,
                    cached_tokens=0,
                    reasoning_tokens=0,
                    outcome="expired",
                    granted_at_ms=lease.granted_at_ms,
                    settled_at_ms=self._wall_ms(),
                )
            )
        return num_expired

    def _new_lease_id(self, key: StoredKey, model: str) -> str:
        self._num_granted += 1
        return lease_id_of(self._epoch, self._num_granted, key.key_id, model)

    def _release(self, lease: Lease, num_used: int) -> None:
        if lease.limits is not None:
            lease.limits.settle(self._clock.monotonic_s(), lease.reserved_tokens, num_used)

    def _reopen(self, row: LeaseRow, counted_s: float | None = None) -> Lease:
        """Open a lease of an earlier epoch for a full new term, without asking for room."""
        key = self._keys.get(row.key_id)
        limits = None if key is None else self.limits_of(key)
        lease = Lease(
            lease_id=row.lease_id,
            request_id=row.request_id,
            key_id=row.key_id,
            model=row.model,
            granted_at_ms=row.granted_at_ms,
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            expires_s=self._clock.monotonic_s() + self._leases.duration_s,
            limits=limits,
            counted_s=counted_s,
            reported_prompt_tokens=row.reported_prompt_tokens,
            reported_completion_tokens=row.reported_completion_tokens,
        )
        if limits is not None:
            limits.readmit(lease.reserved_tokens)
        self._open(lease)
        return lease

    def _open(self, lease: Lease) -> None:
        self._num_open[lease.key_id] = self._num_open.get(lease.key_id, 0) + 1
        self._leases.open(lease)

    def _count_closed(self, lease: Lease) -> None:
        num_open = self._num_open.pop(lease.key_id) - 1
        if num_open:
            self._num_open[lease.key_id] = num_open

    def _restore(self, snapshot: Snapshot) -> None:
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()

        def on_monotonic(at_ms: int) -> float:
            # A wall clock that was set back must not make an age negative.
            return now_s - max(0.0, wall_s - at_ms / 1000)

        granted = [(on_monotonic(row.granted_at_ms), row.key_id) for row in snapshot.leases]
        used: list[tuple[float, str, int]] = []
        for use in snapshot.recent:
            used.append((on_monotonic(use.settled_at_ms), use.key_id, use.num_tokens))
            if use.granted_at_ms is not None:
                granted.append((on_monotonic(use.granted_at_ms), use.key_id))
        # Windows take moments in order.
        for granted_s, key_id in sorted(granted):
            key = self._keys.get(key_id)
            limits = None if key is None else self.limits_of(key)
            if limits is not None and granted_s > now_s - SPAN_S:
                limits.restore_request(granted_s)
        for settled_s, key_id, num_tokens in sorted(used):
            key = self._keys.get(key_id)
            limits = None if key is None else self.limits_of(key)
            if limits is not None:
                limits.restore_tokens(settled_s, num_tokens)
        for row in snapshot.leases:
            self._reopen(row, on_monotonic(row.granted_at_ms))

    def _wall_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)


def _refuse_parallel(most_parallel: int) -> Refusal:
    if most_parallel == 0:
        return Refusal("This key may have no request running.", None)
    return Refusal(
        f"Rate limit reached: this key may have {most_parallel} requests running at a time, and"
        " as many are. Try again when one of them has ended.",
        SETTLEMENT_RETRY_S,
    )

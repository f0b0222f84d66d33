"""Counts again what was granted and used shortly before a restart; pure, time is injected."""

from dataclasses import replace

from auth_worker.clock import Clock
from auth_worker.decisions.meter_table import MeterTable
from auth_worker.decisions.plans import Plan, needs_of
from auth_worker.principals.keys import ANONYMOUS, ANONYMOUS_KEY_ID, KeyDirectory, StoredKey
from auth_worker.principals.limit_rules import SLIDING_S
from auth_worker.records.operations import LeaseRow, RecentUse, Snapshot

SPAN_S = SLIDING_S["minute"]
"""Windows of a minute are counted again from the ledger and the open leases; longer ones and fixed
ones have counters of their own in the database."""


def principal_of(keys: KeyDirectory, row: LeaseRow | RecentUse) -> StoredKey:
    """Whose limits a lease counts in; of a key that is gone, and of a token, what the row says."""
    if row.key_id == ANONYMOUS_KEY_ID:
        return ANONYMOUS
    key = keys.principal(row.key_id)
    if key is not None:
        return key
    return replace(ANONYMOUS, key_id=row.key_id, user_id=row.user_id, team_id=row.team_id)


class Restoring:
    """The windows of a minute after a restart.

    Args:
        keys: All keys.
        meters: What the limits count.
        clock: Both clocks.
    """

    def __init__(self, keys: KeyDirectory, meters: MeterTable, clock: Clock) -> None:
        self._keys = keys
        self._meters = meters
        self._now_s, self._wall_s = clock.monotonic_s(), clock.wall_s()

    def count_recent(self, snapshot: Snapshot) -> None:
        """Count requests from when they were granted, and tokens from when they were settled."""
        starts = [
            (self.on_monotonic(row.granted_at_ms), plan)
            for row in snapshot.leases
            if (plan := self.plan_of(row)) is not None
        ]
        uses: list[tuple[float, Plan, RecentUse]] = []
        for use in snapshot.recent:
            plan = self.plan_of(use)
            if plan is None:
                continue
            uses.append((self.on_monotonic(use.settled_at_ms), plan, use))
            if use.granted_at_ms is not None:
                starts.append((self.on_monotonic(use.granted_at_ms), plan))
        # Windows take moments in order.
        for granted_s, plan in sorted(starts, key=lambda start: start[0]):
            if granted_s > self._now_s - SPAN_S:
                plan.restore_start(granted_s)
        for settled_s, plan, use in sorted(uses, key=lambda use: use[0]):
            needs = needs_of(use.prompt_tokens, use.completion_tokens, use.cost_micros)
            plan.restore_use(settled_s, needs)

    def plan_of(self, row: LeaseRow | RecentUse) -> Plan | None:
        """The limits that a lease counts in, by when it was granted."""
        key = principal_of(self._keys, row)
        at_s = self._wall_s if row.granted_at_ms is None else row.granted_at_ms / 1000
        return self._meters.plan_for(key, row.model, row.endpoint, row.end_user, at_s)

    def on_monotonic(self, at_ms: int) -> float:
        """A moment of the wall clock; one that was set back must not make an age negative."""
        return self._now_s - max(0.0, self._wall_s - at_ms / 1000)

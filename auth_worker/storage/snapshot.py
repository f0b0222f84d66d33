"""Reads all that an authority has to know at its start, in one transaction."""

from sqlalchemy import Connection, case, select

from auth_worker.records.operations import LeaseRow, RecentUse, Snapshot
from auth_worker.storage import schema
from auth_worker.storage.key_table import load_keys
from auth_worker.storage.limit_table import load_counters
from auth_worker.storage.resource_table import ResourceTable


def read_snapshot(connection: Connection, *, recent_since_ms: int) -> Snapshot:
    """All keys and open leases, and what was settled since that Unix millisecond."""
    ledger = schema.ledger.c
    recent = (
        select(
            ledger.key_id,
            ledger.granted_at_ms,
            ledger.settled_at_ms,
            ledger.prompt_tokens,
            ledger.completion_tokens,
            ledger.model,
            ledger.endpoint,
            ledger.user_id,
            ledger.team_id,
            ledger.end_user,
            ledger.cost_micros,
            case((ledger.outcome == "expired", ""), else_=ledger.lease_id),
        )
        .where(ledger.settled_at_ms >= recent_since_ms, ledger.outcome != "unused")
        .order_by(ledger.settled_at_ms)
    )
    oldest_first = select(schema.leases).order_by(
        schema.leases.c.granted_at_ms, schema.leases.c.lease_id
    )
    resources = ResourceTable(connection)
    users, teams = resources.all_users(), resources.all_teams()
    return Snapshot(
        keys=tuple(load_keys(connection, users, teams)),
        leases=tuple(LeaseRow(*row) for row in connection.execute(oldest_first)),
        recent=tuple(RecentUse(*row) for row in connection.execute(recent)),
        users=users,
        teams=teams,
        limits=resources.all_limits(),
        prices=resources.all_prices(),
        counters=load_counters(connection),
        webhooks=resources.all_webhooks(),
    )

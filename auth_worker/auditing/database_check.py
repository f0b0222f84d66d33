"""Looks through an auth database: pages, keys, totals against the ledger, the audit log."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from auth_worker.auditing.audit_check import check_log
from auth_worker.auditing.money_check import check_money
from auth_worker.errors import StoreError
from auth_worker.records.audit_signing import AuditSigner, Checkpoint
from auth_worker.storage import migrations, schema
from auth_worker.storage.key_table import stored_key
from auth_worker.storage.pending_sums import load_sums
from auth_worker.storage.reading import Reading

_SUMS = ("num_requests", "prompt_tokens", "completion_tokens")
_MAX_SHOWN = 5

Finding = tuple[bool, str]
"""Whether something holds, and a sentence about it."""


def check_database(
    reading: Reading, *, signer: AuditSigner | None, noted: Sequence[Checkpoint]
) -> Iterator[Finding]:
    """What holds and what doesn't, one after the other; the database may be in use.

    Raises:
        StoreError: It can't be read.
    """
    with reading() as connection:
        is_sqlite = connection.dialect.name == "sqlite"
        if is_sqlite:
            connection.exec_driver_sql("BEGIN")  # one moment for all sums
        yield _check_version(connection)
        if is_sqlite:
            yield _check_pages(connection)
        yield _check_keys(connection)
        yield _check_totals(connection)
    checked = check_log(reading, signer=signer, noted=noted)
    yield checked.trouble is None, str(checked)
    money = check_money(reading)
    yield money.trouble is None, str(money)


def _check_version(connection: Connection) -> Finding:
    version, newest = migrations.version_of(connection), migrations.newest_version()
    if version != newest:
        raise StoreError(
            f"the schema version is {version}, and this Penstock's {newest}: check it with the"
            " release that wrote it"
        )
    return True, f"schema version {version}"


def _check_pages(connection: Connection) -> Finding:
    found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalars().all()
    if list(found) == ["ok"]:
        return True, "every page of the file holds"
    return False, f"the file is damaged: {' '.join(str(found[0]).split())}"


def _check_keys(connection: Connection) -> Finding:
    bad = []
    num_keys = 0
    for row in connection.execute(select(schema.keys)):
        num_keys += 1
        try:
            stored_key(row)
        except (KeyError, TypeError, ValueError):
            bad.append(row.key_id)
    if bad:
        return False, f"{len(bad)} keys can't be read: {', '.join(bad[:_MAX_SHOWN])}"
    return True, f"{num_keys} keys can be read"


def _check_totals(connection: Connection) -> Finding:
    """Totals of keys, and of hours, are the sums of the ledger and of what was folded of it.

    Some sums may wait to be added to the totals.
    """
    ledger, hours, totals = schema.ledger.c, schema.ledger_hours.c, schema.usage_by_hour.c
    booked: dict[str, list[int]] = {}
    live = select(
        ledger.key_id,
        func.count(),
        func.sum(ledger.prompt_tokens),
        func.sum(ledger.completion_tokens),
    ).where(ledger.outcome != "unused")
    folded = select(hours.key_id, *(func.sum(hours[name]) for name in _SUMS))
    for statement, column in ((live, ledger.key_id), (folded, hours.key_id)):
        for key_id, *sums in connection.execute(statement.group_by(column)):
            known = booked.setdefault(key_id, [0, 0, 0])
            for index, amount in enumerate(sums):
                known[index] += int(amount)
    waiting = [0, 0, 0]
    for (key_id, *_), amounts in load_sums(connection).sums.items():
        known = booked.setdefault(key_id, [0, 0, 0])
        for index in range(3):
            waiting[index] += amounts[index]
            known[index] -= amounts[index]
    keys = schema.keys.c
    of_keys: Any = select(
        keys.key_id, keys.total_requests, keys.total_prompt_tokens, keys.total_completion_tokens
    )
    bad = [
        key_id
        for key_id, *sums in connection.execute(of_keys)
        if list(sums) != booked.get(key_id, [0, 0, 0])
    ]
    if bad:
        names = ", ".join(bad[:_MAX_SHOWN])
        return False, f"the totals of {len(bad)} keys are not the sums of the ledger: {names}"
    by_hour = connection.execute(select(*(func.sum(totals[name]) for name in _SUMS))).one()
    everything = [sum(sums[index] for sums in booked.values()) for index in range(3)]
    if [int(amount or 0) for amount in by_hour] != everything:
        return False, "the totals of hours are not the sums of the ledger"
    num_requests = everything[0] + waiting[0]
    return True, f"{num_requests} requests of the ledger are in the totals"

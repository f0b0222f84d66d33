"""What the audit log says of money: which rows of the ledger a commit wrote, and what they cost.

One entry covers all rows of a commit that have a price. It holds a digest over them, so that a row
that was changed, added or taken out later shows; docs/adr/0051 says what that costs and proves.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from auth_worker.records.operations import AuditAction, AuditEntry, BookUsage
from auth_worker.records.stored_names import storable

SETTLED: Final[AuditAction] = "money_settled"
FOLDED: Final[AuditAction] = "ledger_folded"
_ROW: Final = "\0".join(["%s"] * (len(BookUsage._fields) - 1))
MAX_NAMED: Final = 16
"""Keys, users and teams whose sums an entry names, each; the others' are together under ''."""


class Replaced(NamedTuple):
    """A row that an earlier entry covers, as it was before a late settlement corrected it.

    Attributes:
        seq: Of that entry.
        digest: Of the row.
    """

    seq: int
    lease_id: str
    digest: bytes
    cost_micros: int


def has_price(booking: BookUsage) -> bool:
    """Whether a booking is one of money."""
    return booking.price_id != "" or booking.cost_micros != 0


def row_digest(booking: BookUsage) -> bytes:
    """What an entry commits to of one row: all of it but the number of the entry."""
    text = _ROW % booking[:-1]
    if text.count("\0") != len(booking) - 2:
        # As the database holds it, and so that no two rows read alike.
        text = "\0".join(storable(str(value)) for value in booking[:-1])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def group_digest(rows: Mapping[str, bytes]) -> str:
    """A digest over the rows of one entry, by lease id, in hexadecimal."""
    digest = hashlib.sha256()
    for _, row in sorted(rows.items()):
        digest.update(row)
    return digest.hexdigest()


def entry_of_money(
    written: Sequence[BookUsage], replaced: Sequence[Replaced], at_ms: int
) -> AuditEntry:
    """The entry for the rows that one commit wrote."""
    total = 0
    of_keys, of_users, of_teams = sums = (dict[str, int](), dict[str, int](), dict[str, int]())
    for booking in written:
        cost, user_id, team_id = booking.cost_micros, booking.user_id, booking.team_id
        total += cost
        of_keys[booking.key_id] = of_keys.get(booking.key_id, 0) + cost
        of_users[user_id] = of_users.get(user_id, 0) + cost
        of_teams[team_id] = of_teams.get(team_id, 0) + cost
    detail: dict[str, Any] = {
        "num_rows": len(written),
        "cost_micros": total - sum(row.cost_micros for row in replaced),
        "digest": group_digest({booking.lease_id: row_digest(booking) for booking in written}),
    }
    for field, known in zip(("by_key_id", "by_user_id", "by_team_id"), sums, strict=True):
        if known.keys() - {""}:
            detail[field] = _largest(known)
    if replaced:
        detail["replaced"] = [
            [row.seq, row.lease_id, row.digest.hex(), row.cost_micros] for row in replaced
        ]
    return AuditEntry(at_ms=at_ms, actor_key_id="", action=SETTLED, subject="", detail=detail)


def entry_of_folding(through_seq: int, num_rows: int, cost_micros: int, at_ms: int) -> AuditEntry:
    """Rows up to those of an entry were folded into sums: they can't be compared any more."""
    detail = {"through_seq": through_seq, "num_rows": num_rows, "cost_micros": cost_micros}
    return AuditEntry(at_ms=at_ms, actor_key_id="", action=FOLDED, subject="", detail=detail)


def _largest(sums: dict[str, int]) -> dict[str, int]:
    if len(sums) <= MAX_NAMED:
        return sums
    ordered = sorted(sums.items(), key=lambda item: (item[0] == "", -item[1], item[0]))
    others = sum(cost for _, cost in ordered[MAX_NAMED:])
    return dict(ordered[:MAX_NAMED]) | {"": others}

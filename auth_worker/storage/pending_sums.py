"""What settlements add to the totals of keys and hours, before it is added there.

The totals of each key and hour lie in six trees, so that a commit for 64 keys would write some 300
pages that have nothing to do with one another. Instead a commit writes the sums of its settlements
as one row here, and they are added to the totals later: many commits of a key at once, before
somebody reads them, and at the start. At any moment the totals and these rows together are the sums
of the ledger.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Final

import msgspec
from sqlalchemy import Connection, delete, select

from auth_worker.records.operations import (
    AddSums,
    ChangeKey,
    CountKeyRows,
    DropKey,
    Operation,
    PutKey,
    ReadKeys,
    ReadUsageRows,
)
from auth_worker.records.stored_names import stored_name
from auth_worker.storage import schema
from auth_worker.storage.bulk import BulkStatement, insert_rows

HourKey = tuple[str, int, str, str, str, str, str]
"""Key, hour, model, endpoint, end user, user and team: the primary key of an hour's totals."""
Sums = dict[HourKey, list[int]]
"""Requests, prompt, completion, cached and reasoning tokens, micro-units; then the last use, in
Unix milliseconds, which is the greatest and no sum."""
Fits = Callable[[HourKey], bool]

INTERVAL_MS: Final = 250
"""Between two times at which sums that wait are added to the totals."""
MIN_ADDED: Final = 128
"""So many at a time, the oldest first, or a part of all that wait, if that is more."""
PART: Final = 128
"""Each sum comes to its turn within half a minute, and the more is added up by then."""
MAX_ROWS: Final = 1024
"""With more rows than this, those that are left are written again as few."""
_SUMS_A_ROW: Final = 256
_NUM_SUMMED: Final = 6

_rows = schema.pending_sums.c
_Decoded = list[tuple[str, int, str, str, str, str, str, int, int, int, int, int, int, int]]
_decoder = msgspec.json.Decoder(_Decoded)
_INSERT = BulkStatement(lambda dialect, rows: insert_rows(dialect, schema.pending_sums, rows))


class PendingSums:
    """The sums that wait, as of the last transaction that is known to have lasted."""

    def __init__(self) -> None:
        self.sums: Sums = {}
        self.num_rows = 0
        self.last_seq = 0
        self.added_at_ms = 0

    def adopt(self, change: "SumsChange") -> None:
        """A transaction has lasted."""
        if change.leaves_nothing:
            self.sums.clear()
        else:
            for key, total in change.changes.items():
                known = self.sums.get(key)
                if known is None:
                    self.sums[key] = total
                else:
                    add_total(known, total)
                    total = known
                if _is_nothing(total):
                    del self.sums[key]
        self.num_rows, self.last_seq = change.num_rows, change.last_seq
        self.added_at_ms = change.added_at_ms


class SumsChange:
    """What one transaction does to the sums that wait.

    Args:
        connection: In the transaction.
        pending: As of before it; isn't changed.
        write: Adds sums to the totals.

    Attributes:
        changes: What comes to the sums that wait; what goes from them is negative.
        leaves_nothing: Whether all of them were added to the totals.
        num_rows, last_seq, added_at_ms: As of after the transaction.
    """

    def __init__(
        self,
        connection: Connection,
        pending: PendingSums,
        write: Callable[[Connection, Sums], None],
    ) -> None:
        self._connection = connection
        self._pending = pending
        self._write = write
        self.changes: Sums = {}
        self.leaves_nothing = False
        self.num_rows = pending.num_rows
        self.last_seq = pending.last_seq
        self.added_at_ms = pending.added_at_ms

    def add(self, sums: Sums) -> None:
        """Let the sums of a group of settlements wait; before anything is added to the totals.

        They are its own from now on.
        """
        if self.changes or not sums:
            add_sums(self.changes, sums)
        else:
            self.changes = sums

    def add_due(self, now_ms: int) -> None:
        """Add those to the totals that have waited longest, when it is time."""
        pending = self._pending
        if not pending.sums and not self.changes:
            return
        if 0 <= now_ms - pending.added_at_ms < INTERVAL_MS:
            return
        self.added_at_ms = now_ms
        waiting = len(pending.sums) + len(self.changes)
        if waiting <= MIN_ADDED:
            self.add_to_totals()
            return
        self._add(islice(pending.sums, max(MIN_ADDED, waiting // PART)))

    def add_before_changes(self, operations: Iterable[Operation]) -> None:
        """Add to the totals what the answers to these changes of keys tell."""
        changed = {
            operation.key.key_id if isinstance(operation, PutKey) else operation.key_id
            for operation in operations
            if isinstance(operation, PutKey | ChangeKey | DropKey)
        }
        if changed:
            self.add_to_totals(lambda key: key[0] in changed)

    def add_before_reading(self, operations: Iterable[Operation]) -> None:
        """Add to the totals what these operations read there."""
        for operation in operations:
            wanted = operation.wanted if isinstance(operation, AddSums) else operation
            if isinstance(wanted, CountKeyRows):
                self.add_to_totals()
            elif isinstance(wanted, ReadKeys):
                self.add_to_totals(_of_key(wanted.key_id))
            elif isinstance(wanted, ReadUsageRows):
                self.add_to_totals(_of_usage(wanted))

    def add_to_totals(self, fits: Fits | None = None) -> None:
        """Add all of those that fit to the totals, or just all."""
        if fits is not None:
            keys = {key for known in (self._pending.sums, self.changes) for key in known}
            self._add([key for key in keys if fits(key)])
            return
        if self.leaves_nothing:
            return
        everything = {key: list(total) for key, total in self._pending.sums.items()}
        add_sums(everything, self.changes)
        self._write(self._connection, everything)
        self.changes.clear()
        self.leaves_nothing = True

    def finish(self) -> None:
        """Write down what waits now; last thing about sums in the transaction."""
        if self.leaves_nothing:
            if self.num_rows:
                self._connection.execute(delete(schema.pending_sums))
            self.num_rows = 0
        elif self.num_rows >= max(MAX_ROWS, len(self._pending.sums) // 16):
            self._write_anew()
        elif self.changes:
            self._insert([self.changes])

    def _add(self, keys: Iterable[HourKey]) -> None:
        if self.leaves_nothing:
            return
        waiting: Sums = {}
        for key in keys:
            total = list(self._pending.sums.get(key, ()))
            single = {key: total} if total else {}
            if key in self.changes:
                add_sums(single, {key: self.changes[key]})
            if not _is_nothing(single[key]):
                waiting[key] = single[key]
        if waiting:
            self._write(self._connection, waiting)
            add_sums(self.changes, waiting, -1)

    def _write_anew(self) -> None:
        left = {key: list(total) for key, total in self._pending.sums.items()}
        add_sums(left, self.changes)
        left = {key: total for key, total in left.items() if not _is_nothing(total)}
        self._connection.execute(delete(schema.pending_sums))
        self.num_rows = 0
        items = iter(left.items())
        self._insert(list(iter(lambda: dict(islice(items, _SUMS_A_ROW)), {})))

    def _insert(self, parts: Iterable[Sums]) -> None:
        rows = []
        for sums in parts:
            self.last_seq += 1
            lines = [
                (*key, *total)
                for key, total in sums.items()
                if total[0] or not _is_nothing(total)  # nearly always there is a request
            ]
            rows.append((self.last_seq, msgspec.json.encode(lines).decode()))
        _INSERT.execute(self._connection, rows)
        self.num_rows += len(rows)


def add_sums(sums: Sums, more: Mapping[HourKey, list[int]], sign: int = 1) -> None:
    """Add up sums, or take some back with sign -1."""
    for key, total in more.items():
        known = sums.get(key)
        if known is None:
            if sign > 0:
                sums[key] = list(total)
                continue
            known = sums[key] = [0] * _NUM_SUMMED + [total[_NUM_SUMMED]]
        add_total(known, total, sign)


def add_total(known: list[int], total: list[int], sign: int = 1) -> None:
    """Add the sums of one key, or take them back with sign -1."""
    requests, prompt, completion, cached, reasoning, money, _ = total
    known[0] += sign * requests  # a loop over them takes twice as long
    known[1] += sign * prompt
    known[2] += sign * completion
    known[3] += sign * cached
    known[4] += sign * reasoning
    known[5] += sign * money
    if total[_NUM_SUMMED] > known[_NUM_SUMMED]:
        known[_NUM_SUMMED] = total[_NUM_SUMMED]


def _is_nothing(total: list[int]) -> bool:
    return not total[0] and not any(total[:_NUM_SUMMED])


def stored_sums(sums: Mapping[HourKey, list[int]]) -> Sums:
    """Sums by the names that the database keeps: some of them may be one there."""
    stored: Sums = {}
    for key, total in sums.items():
        key_id, hour, *names = key
        model, endpoint, end_user, user_id, team_id = map(stored_name, names)
        name = (stored_name(key_id), hour, model, endpoint, end_user, user_id, team_id)
        add_sums(stored, {name: total})
    return stored


def load_sums(connection: Connection) -> PendingSums:
    """What waits in the database."""
    pending = PendingSums()
    for seq, text in connection.execute(select(_rows.seq, _rows.sums).order_by(_rows.seq)):
        for line in _decoder.decode(text):
            add_sums(pending.sums, stored_sums({line[:7]: list(line[7:])}))
        pending.num_rows += 1
        pending.last_seq = seq
    return pending


def _of_key(key_id: str) -> Fits | None:
    return (lambda key: key[0] == key_id) if key_id else None


def _of_usage(wanted: ReadUsageRows) -> Fits | None:
    names = [
        (place, name)
        for place, name in (
            *((0, wanted.key_id), (2, wanted.model), (4, wanted.end_user)),
            *((5, wanted.user_id), (6, wanted.team_id)),
        )
        if name
    ]
    if not names:
        return None
    return lambda key: all(key[place] == name for place, name in names)

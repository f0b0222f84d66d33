"""The hash chain of the audit log: each entry commits to all entries before it."""

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import NamedTuple

from auth_worker.records.operations import AuditAction, AuditEntry
from auth_worker.records.stored_names import storable

GENESIS_HASH = bytes(32)
"""What the first entry takes for its predecessor's hash."""


class ChainedEntry(NamedTuple):
    """An entry as it is stored, in the order of its columns; `detail` is canonical JSON.

    Entries of before there were outcomes have none; their hashes cover less.
    """

    seq: int
    at_ms: int
    actor_key_id: str
    action: str
    subject: str
    detail: str
    previous_hash: bytes
    hash: bytes
    outcome: str = ""
    address: str = ""
    request_id: str = ""


def chain(entry: AuditEntry, *, seq: int, previous_hash: bytes) -> ChainedEntry:
    """The entry with its place in the chain."""
    link = ChainedEntry(
        seq=seq,
        at_ms=entry.at_ms,
        actor_key_id=storable(entry.actor_key_id),
        action=entry.action,
        subject=storable(entry.subject),
        detail=_canonical(dict(entry.detail)),
        previous_hash=previous_hash,
        hash=b"",
        outcome=entry.outcome,
        address=storable(entry.address),
        request_id=storable(entry.request_id),
    )
    return link._replace(hash=hash_of(link))


def hash_of(entry: ChainedEntry) -> bytes:
    """What an entry commits to: itself, its place and, by their last hash, all before it."""
    fields = [
        entry.seq,
        entry.at_ms,
        entry.actor_key_id,
        entry.action,
        entry.subject,
        entry.detail,
    ]
    if entry.outcome or entry.address or entry.request_id:
        fields += [entry.outcome, entry.address, entry.request_id]
    # JSON of a list keeps the borders between the fields, so no two entries read alike.
    return hashlib.sha256(entry.previous_hash + _canonical(fields).encode()).digest()


CUT: AuditAction = "audit_cut"
"""The action of the entry that says up to where the log was cut off at its beginning."""


class ChainCheck:
    """Follows a chain entry by entry.

    A cut-off end can't be seen from the chain alone; compare its head with one kept elsewhere.

    Args:
        is_whole: Whether it begins with the first entry, or says in a later one that those before
            its own first one were cut off; otherwise the first one that comes is taken as it is,
            with only its own hash looked at.
        is_cut: Whether an entry that says that entries were cut off, up to this number and hash,
            is signed as it should be, by the signature and the name of the key that it holds.

    Attributes:
        num_entries: Looked at so far.
        head: The last entry that holds; None before the first.
    """

    def __init__(
        self,
        *,
        is_whole: bool = True,
        is_cut: Callable[[int, bytes, str, str], bool] = lambda *_: True,
    ) -> None:
        self.num_entries = 0
        self.head: ChainedEntry | None = None
        self._is_whole = is_whole
        self._is_cut = is_cut
        self._unexplained: tuple[int, bytes] | None = None  # the last one before the first

    def first_broken(self, entries: Iterable[ChainedEntry]) -> str | None:
        """What is wrong with the first of the next entries that doesn't hold; None when all do."""
        for entry in entries:
            trouble = self._trouble_of(entry)
            if trouble is not None:
                return trouble
            self.num_entries += 1
            self.head = entry
        return None

    def trouble_at_end(self) -> str | None:
        """What is wrong with the beginning, once the last entry was seen."""
        if self._unexplained is None:
            return None
        return (
            f"entry 1 is missing, and up to {self._unexplained[0]} all are, and no entry says that"
            " they were cut off"
        )

    def _trouble_of(self, entry: ChainedEntry) -> str | None:
        head = self.head
        if head is None and (entry.seq > 1 or not self._is_whole):
            expected_seq, expected_hash = entry.seq, entry.previous_hash
            if self._is_whole:
                self._unexplained = (entry.seq - 1, entry.previous_hash)
        else:
            expected_seq = 1 if head is None else head.seq + 1
            expected_hash = GENESIS_HASH if head is None else head.hash
        if entry.seq != expected_seq:
            return f"entry {expected_seq} is missing or out of its place ({entry.seq} stands there)"
        if entry.previous_hash != expected_hash:
            return (
                f"entry {entry.seq} does not follow the entry before it: one of both was replaced"
            )
        if entry.hash != hash_of(entry):
            return f"entry {entry.seq} was changed"
        if entry.action == CUT:
            return self._trouble_of_cut(entry)
        return None

    def _trouble_of_cut(self, entry: ChainedEntry) -> str | None:
        try:
            detail = json.loads(entry.detail)
            through = (int(detail["through_seq"]), bytes.fromhex(detail["through_hash"]))
            signature, key_name = detail.get("signature", ""), detail.get("key_name", "")
            is_good = self._is_cut(*through, str(signature), str(key_name))
        except (KeyError, TypeError, ValueError):
            return f"entry {entry.seq} says nothing of what was cut off"
        if not is_good:
            return f"entry {entry.seq} says that entries were cut off, and its signature is forged"
        if through == self._unexplained:
            self._unexplained = None
        return None


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

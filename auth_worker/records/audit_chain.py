"""The hash chain of the audit log: each entry commits to all entries before it."""

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

from auth_worker.records.operations import AuditEntry

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
        actor_key_id=entry.actor_key_id,
        action=entry.action,
        subject=entry.subject,
        detail=_canonical(dict(entry.detail)),
        previous_hash=previous_hash,
        hash=b"",
        outcome=entry.outcome,
        address=entry.address,
        request_id=entry.request_id,
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


class ChainCheck:
    """Follows a chain entry by entry.

    A cut-off end can't be seen from the chain alone; compare its head with one kept elsewhere.

    Args:
        is_whole: Whether it begins with the first entry; otherwise the first one that comes is
            taken as it is, with only its own hash looked at.

    Attributes:
        num_entries: Looked at so far.
        head: The last entry that holds; None before the first.
    """

    def __init__(self, *, is_whole: bool = True) -> None:
        self.num_entries = 0
        self.head: ChainedEntry | None = None
        self._is_whole = is_whole

    def first_broken(self, entries: Iterable[ChainedEntry]) -> str | None:
        """What is wrong with the first of the next entries that doesn't hold; None when all do."""
        for entry in entries:
            trouble = self._trouble_of(entry)
            if trouble is not None:
                return trouble
            self.num_entries += 1
            self.head = entry
        return None

    def _trouble_of(self, entry: ChainedEntry) -> str | None:
        head = self.head
        if head is None and not self._is_whole:
            expected_seq, expected_hash = entry.seq, entry.previous_hash
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
        return None


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

"""The hash chain of the audit log: each entry commits to all entries before it."""

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

from auth_worker.operations import AuditEntry

GENESIS_HASH = bytes(32)
"""What the first entry takes for its predecessor's hash."""


class ChainedEntry(NamedTuple):
    """An entry as it is stored; `detail` is canonical JSON."""

    seq: int
    at_ms: int
    actor_key_id: str
    action: str
    subject: str
    detail: str
    previous_hash: bytes
    hash: bytes


def chain(entry: AuditEntry, *, seq: int, previous_hash: bytes) -> ChainedEntry:
    """The entry with its place in the chain."""
    detail = _canonical(dict(entry.detail))
    digest = _hash(
        seq, entry.at_ms, entry.actor_key_id, entry.action, entry.subject, detail, previous_hash
    )
    return ChainedEntry(
        seq=seq,
        at_ms=entry.at_ms,
        actor_key_id=entry.actor_key_id,
        action=entry.action,
        subject=entry.subject,
        detail=detail,
        previous_hash=previous_hash,
        hash=digest,
    )


def first_broken(entries: Iterable[ChainedEntry]) -> int | None:
    """The number of the first entry that was changed, removed or moved; None when all hold.

    A cut-off end can't be seen from the chain alone; compare its head with one kept elsewhere.
    """
    previous_hash = GENESIS_HASH
    for expected_seq, entry in enumerate(entries, start=1):
        holds = (
            entry.seq == expected_seq
            and entry.previous_hash == previous_hash
            and entry.hash == _hash(*entry[:-1])
        )
        if not holds:
            return expected_seq
        previous_hash = entry.hash
    return None


def _hash(
    seq: int,
    at_ms: int,
    actor_key_id: str,
    action: str,
    subject: str,
    detail: str,
    previous_hash: bytes,
) -> bytes:
    # JSON of a list keeps the borders between the fields, so no two entries read alike.
    text = _canonical([seq, at_ms, actor_key_id, action, subject, detail])
    return hashlib.sha256(previous_hash + text.encode()).digest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

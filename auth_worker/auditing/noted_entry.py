"""Looks for an entry of the audit log that somebody noted: it may be there, or have been let go."""

import json
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from sqlalchemy import Connection

from auth_worker.records.audit_chain import CUT, GENESIS_HASH
from auth_worker.records.audit_signing import AuditSigner, Checkpoint
from auth_worker.records.operations import ReadAuditRows
from auth_worker.storage.audit_table import first_seq, read_chain, read_page
from auth_worker.storage.reading import Reading
from auth_worker.storage.retention import read_checkpoints

_MAX_SEQ = 2**63 - 1
_MAX_CUTS = 1000


class NotedEntry(NamedTuple):
    """An entry as `penstock audit verify` prints the last one, `SEQ:HASH`."""

    seq: int
    hash: bytes

    @classmethod
    def parse(cls, text: str) -> "NotedEntry":
        """What was printed.

        Raises:
            ValueError: It is nothing of the kind.
        """
        number, _, digest = text.partition(":")
        try:
            noted = cls(int(number), bytes.fromhex(digest))
        except ValueError:
            noted = cls(0, b"")
        if not 0 < noted.seq <= _MAX_SEQ or len(noted.hash) != len(GENESIS_HASH):
            raise ValueError("--holds takes SEQ:HASH, as this command prints them")
        return noted

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash.hex()}"


class Finding(Enum):
    """What became of a noted entry."""

    THERE = "there"
    PROVED = "let go by the retention, and signed to have been there"
    LET_GO = "before the first entry that is left, and nothing that is signed tells of it"
    MISSING = "missing, or another one"


def find_noted(
    reading: Reading,
    wanted: NotedEntry,
    *,
    signer: AuditSigner | None,
    noted: Iterable[Checkpoint],
) -> Finding:
    """What became of an entry in a database whose chain holds.

    Args:
        reading: Opens it.
        wanted: The entry.
        signer: Holds the key that checkpoints and cuts are signed with, where it is known.
        noted: Checkpoints from beside the database.

    Raises:
        StoreError: The database can't be read.
    """
    with reading() as connection:
        for entry in read_chain(connection, wanted.seq - 1, 1):
            if entry.seq == wanted.seq:
                return Finding.THERE if entry.hash == wanted.hash else Finding.MISSING
        first = first_seq(connection)
        if first is None or first < wanted.seq:
            return Finding.MISSING
        known = (*read_checkpoints(connection), *noted)
        signed = {*_signed(known, wanted.seq, signer), *_cut(connection, wanted.seq, signer)}
    if not signed:
        return Finding.LET_GO
    return Finding.PROVED if signed == {wanted.hash} else Finding.MISSING


def _signed(known: Iterable[Checkpoint], seq: int, signer: AuditSigner | None) -> Iterator[bytes]:
    """The hashes of the entry of a number in checkpoints that this key signed."""
    if signer is None:
        return
    for one in known:
        if one.seq == seq and one.key_name == signer.name and signer.is_good(one):
            yield one.hash


def _cut(connection: Connection, seq: int, signer: AuditSigner | None) -> Iterator[bytes]:
    """The same in entries that say that just this one was the last that was let go."""
    if signer is None:
        return
    wanted = ReadAuditRows(_MAX_CUTS, action=CUT, subjects=(str(seq),))
    for entry in read_page(connection, wanted).entries:
        detail = json.loads(entry.detail)
        digest, name = bytes.fromhex(detail["through_hash"]), detail.get("key_name", "")
        if name == signer.name and signer.is_cut(seq, digest, detail.get("signature", ""), name):
            yield digest

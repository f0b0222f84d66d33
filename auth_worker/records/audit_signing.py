"""Signed checkpoints of the audit log: who changes the database can't sign that the log is whole.

The chain of hashes alone shows changes in its middle; whoever may write to the database could cut
off its end, or its beginning, and chain again. A checkpoint says under a key that is not in the
database which entry stood where.
"""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Final, NamedTuple

from auth_worker.records.audit_chain import ChainedEntry

KEY_BYTES: Final = 32
_PURPOSE: Final = b"penstock audit log\0"


class Checkpoint(NamedTuple):
    """An entry that was there, in the order of its columns.

    Attributes:
        at_ms: When it was signed, Unix milliseconds.
        key_name: Of the key that signed it.
    """

    seq: int
    hash: bytes
    at_ms: int
    key_name: str
    signature: bytes

    def line(self) -> str:
        """As it stands in a file."""
        return f"{self.seq} {self.hash.hex()} {self.at_ms} {self.key_name} {self.signature.hex()}"

    @classmethod
    def parse(cls, line: str) -> "Checkpoint":
        """What `line` wrote.

        Raises:
            ValueError: It is no checkpoint.
        """
        seq, digest, at_ms, key_name, signature = line.split()
        return cls(int(seq), bytes.fromhex(digest), int(at_ms), key_name, bytes.fromhex(signature))


class AuditSigner:
    """Signs and verifies with one secret key (HMAC-SHA-256, RFC 2104).

    Args:
        key: 32 random bytes.
    """

    __slots__ = ("_key", "name")

    def __init__(self, key: bytes) -> None:
        self._key = key
        # Tells keys apart without telling anything of them.
        self.name = hashlib.sha256(_PURPOSE + key).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"AuditSigner({self.name})"

    def checkpoint(self, seq: int, digest: bytes, at_ms: int) -> Checkpoint:
        """A checkpoint of the entry of this number."""
        return Checkpoint(seq, digest, at_ms, self.name, self._sign("entry", seq, digest, at_ms))

    def cut(self, seq: int, digest: bytes) -> str:
        """Says that entries up to this one were cut off on purpose; hexadecimal."""
        return self._sign("cut", seq, digest, 0).hex()

    def is_good(self, checkpoint: Checkpoint) -> bool:
        """Whether this key signed it."""
        expected = self._sign("entry", checkpoint.seq, checkpoint.hash, checkpoint.at_ms)
        return hmac.compare_digest(expected, checkpoint.signature)

    def is_cut(self, seq: int, digest: bytes, signature: str, key_name: str) -> bool:
        """Whether this key signed that cut, or another key may have."""
        if key_name != self.name:
            return bool(key_name)
        return hmac.compare_digest(self.cut(seq, digest).encode(), signature.encode())

    def seal_key(self, principal_id: str) -> bytes:
        """What seals the kept answers of a principal that has no secret of its own."""
        return hmac.digest(self._key, b"penstock kept answers\0" + principal_id.encode(), "sha256")

    def _sign(self, kind: str, seq: int, digest: bytes, at_ms: int) -> bytes:
        said = f"{kind}:{seq}:{digest.hex()}:{at_ms}".encode()
        return hmac.digest(self._key, _PURPOSE + said, "sha256")


class CheckpointCheck:
    """Compares a log with what was signed of it, entry by entry.

    Args:
        checkpoints: From wherever they lie.
        signer: With the key; None can't tell whether they are genuine.

    Attributes:
        num_held: Checkpoints whose entries are there and say the same.
        num_unverified: Of them, those that another key signed.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint], signer: AuditSigner | None) -> None:
        self.num_held = 0
        self.num_unverified = 0
        self._by_seq: dict[int, list[Checkpoint]] = {}
        for one in checkpoints:
            self._by_seq.setdefault(one.seq, []).append(one)
        self._signer = signer

    def trouble_of(self, entry: ChainedEntry) -> str | None:
        """What is wrong with the checkpoints of an entry."""
        for checkpoint in self._by_seq.pop(entry.seq, ()):
            trouble = self._trouble(checkpoint)
            if trouble is not None:
                return trouble
            if checkpoint.hash != entry.hash:
                return f"entry {entry.seq} is another one than its checkpoint says"
            self.num_held += 1
        return None

    def trouble_at_end(self, last_seq: int) -> str | None:
        """What is missing, once the last entry was seen."""
        missing = [seq for seq in self._by_seq if seq > last_seq]
        if not missing:
            return None  # those of before the first entry were cut off with it
        return (
            f"entries {last_seq + 1} to {max(missing)} are missing: the end was cut off, for a"
            " checkpoint names the last of them"
        )

    def _trouble(self, checkpoint: Checkpoint) -> str | None:
        if self._signer is None or checkpoint.key_name != self._signer.name:
            self.num_unverified += 1
        elif not self._signer.is_good(checkpoint):
            return f"the checkpoint of entry {checkpoint.seq} is forged"
        return None

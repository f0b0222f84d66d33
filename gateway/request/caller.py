"""Who sent a request, as far as the gateway knows before anybody was asked."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        key_digest: SHA-256 of the presented key; None when none was sent.
        address: The client's.
        trace_id: The client's `X-Request-ID`; a field of logs, never a key.
    """

    key_digest: bytes | None
    address: str
    trace_id: str = ""

    @property
    def name(self) -> bytes:
        """Whose bounds count: the key's, or without one the address's."""
        return self.address.encode() if self.key_digest is None else self.key_digest

"""Who sent a request, as far as the gateway knows before anybody was asked."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        key_digest: SHA-256 of the presented key; None when none was sent.
        address: The client's.
        trace_id: The client's `X-Request-ID`; a field of logs, never a key.
        token: What was presented, if it is a bearer token (JWT) rather than a key; empty otherwise.
        end_user: For whom the request is, by a header of `PENSTOCK_END_USER_HEADERS`; empty without
            one. It counts with keys that may name their end users.
    """

    key_digest: bytes | None
    address: str
    trace_id: str = ""
    token: str = field(default="", repr=False)
    end_user: str = ""

    @property
    def name(self) -> bytes:
        """Whose bounds count: the key's, or without one the address's."""
        return self.address.encode() if self.key_digest is None else self.key_digest

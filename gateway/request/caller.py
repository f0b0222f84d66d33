"""Who sent a request, as far as the gateway knows."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        key_digest: SHA-256 of the presented key; None when none was sent.
        address: The client's.
    """

    key_digest: bytes | None
    address: str

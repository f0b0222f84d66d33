"""Who sent a request, as far as the gateway knows before anybody was asked."""

from dataclasses import dataclass, field
from typing import Protocol

from protocol.runtime.tracing import TraceContext
from protocol.wire.messages import Authorize, Settle


class Errand(Protocol):
    """Whoever has a request made that no client waits for, and has to settle it exactly once.

    Attributes:
        priority: The request goes no earlier than others of this level; lower goes first.
    """

    @property
    def priority(self) -> int:
        """A level."""
        ...

    def on_granted(self, lease_id: str) -> None:
        """The request has a lease, before anything is done with it."""
        ...

    def put(self, settle: Settle) -> None:
        """Take the settlement in the outbox's place, which gets it when the answer is safe."""
        ...


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
        errand: Whose the request is where no client waits for it; None otherwise.
        trace: Of the HTTP request that it came with; None when it isn't traced.
        asked: Takes what was granted to it, for whoever has to ask again; None for nobody.
    """

    key_digest: bytes | None
    address: str
    trace_id: str = ""
    token: str = field(default="", repr=False)
    end_user: str = ""
    errand: Errand | None = field(default=None, repr=False, compare=False)
    trace: TraceContext | None = field(default=None, repr=False, compare=False)
    asked: list[Authorize] | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> bytes:
        """Whose bounds count: the key's, or without one the address's."""
        return self.address.encode() if self.key_digest is None else self.key_digest

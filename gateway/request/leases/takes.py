"""A request that may be made several times, by gateways that die, and is booked once."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.errors import GatewayError


@dataclass(frozen=True, slots=True)
class Takes:
    """What a request knows of the earlier attempts at it.

    The first lease of all attempts is the one that is booked on: whoever ends the request settles
    it with what this attempt used, and takes back the others. An auth worker books a lease once, so
    a gateway that dies between its settlement and the end of the request doesn't count twice, and
    what it reported of an attempt that nobody ended gives way to the settlement. An attempt that
    finished is settled when its reader has compared its output with what was told (`conclude`):
    what is discarded settles nothing, so that the delivered output is what is booked.

    Attributes:
        earlier: Their leases, oldest first.
        on_lease: Told of the lease of this one, before anything is computed on it.
        is_put_off: Whether an error isn't the end, and somebody will try again: then nothing is
            settled.
    """

    earlier: tuple[str, ...]
    on_lease: Callable[[str], Awaitable[None]]
    is_put_off: Callable[[GatewayError], bool]

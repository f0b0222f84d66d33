"""Who sent a request, as far as the gateway knows before anybody was asked, and for whom.

For whom it is anybody may say, by a header or a field of the body; it counts with keys that may
name their end users.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from gateway.errors import InvalidRequestError
from protocol.runtime.tracing import TraceContext
from protocol.wire.messages import Authorize, Settle

MAX_CHARS: Final = 256
"""A longer name is told by its digest, so that no two of them become one."""


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


def end_user_of(getlist: Callable[[str], list[str]], names: Iterable[str]) -> str:
    """The end user that a header names; the first header that is there counts.

    Args:
        getlist: All values of a header of the request.
        names: Headers that may name one.

    Raises:
        InvalidRequestError: It is there twice, with two names: which one counts must be nobody's
            guess.
    """
    for name in names:
        values = {_text_of(value).strip() for value in getlist(name)}
        values.discard("")
        if len(values) > 1:
            raise InvalidRequestError(f"The header {name} names several end users; name one.")
        if values:
            return bounded_name(values.pop())
    return ""


def _text_of(value: str) -> str:
    """The text of a header, whose bytes came as ISO 8859-1: nearly everybody sends UTF-8.

    So whoever is named here and in a body, which is UTF-8, is one end user.
    """
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def named_end_user(*fields: Any) -> str:
    """The end user that fields of a body name; the first one that is a text counts."""
    for name in fields:
        if isinstance(name, str) and name.strip():
            return bounded_name(name.strip())
    return ""


def bounded_name(name: str) -> str:
    """A name that is short enough to be kept."""
    if len(name) <= MAX_CHARS:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"sha256:{digest}"

"""What becomes of a message that can't be sent: each request in it fails or goes on by itself."""

from collections.abc import Mapping

from msgspec import structs

from protocol.errors import ErrorCode, MessageTooLargeError, ProtocolError
from protocol.wire.messages.access import Renew
from protocol.wire.messages.base import Message
from protocol.wire.messages.control import Failure
from protocol.wire.messages.generation import StepOutput
from protocol.wire.messages.metrics import Metrics
from protocol.wire.messages.toolparse import ParseBatch, ParsedBatch

_LISTS: Mapping[type[Message], tuple[str, ...]] = {
    StepOutput: ("deltas", "ends"),
    ParsedBatch: ("deltas",),
    ParseBatch: ("deltas",),
    Renew: ("leases",),
    Metrics: ("samples",),
}
"""The messages that are about several requests or things, and the fields that list these."""


def split(message: Message) -> tuple[Message, ...]:
    """The message as several with one entry each, in order; empty where it has at most one."""
    names = _LISTS.get(type(message), ())
    emptied = dict.fromkeys(names, ())
    parts = [
        structs.replace(message, **{**emptied, name: (entry,)})
        for name in names
        for entry in getattr(message, name)
    ]
    return tuple(parts) if len(parts) > 1 else ()


def failure_instead(message: object, code: ErrorCode, text: str) -> Failure | None:
    """The Failure of the request that a message is about, of its choice and attempt.

    None for a message that is about no single request.
    """
    if isinstance(message, Message):
        entries = [one for name in _LISTS.get(type(message), ()) for one in getattr(message, name)]
        if len(entries) == 1:
            message = entries[0]
    request_id = getattr(message, "request_id", None)
    if not isinstance(request_id, str):
        return None
    return Failure(
        request_id=request_id,
        choice=getattr(message, "choice", -1),
        attempt=getattr(message, "attempt", 0),
        code=code,
        message=text,
    )


def unsent(message: Message, error: ProtocolError, sender: str) -> Failure | None:
    """What whoever waits for a message is told instead; None when nobody is known to wait.

    Args:
        message: It can't be split.
        error: Why it can't be sent.
        sender: "worker" or "gateway".
    """
    if isinstance(error, MessageTooLargeError):
        return failure_instead(message, error.code, error.message)
    text = f"The {sender} could not write its message about this request."
    return failure_instead(message, ErrorCode.INTERNAL_ERROR, text)

"""Messages to workers of any role."""

from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Drain,
    Refused,
)


def drain(timeout_s: float) -> Drain:
    """Finish what you have, and end."""
    return Drain(timeout_s=timeout_s)


def refused(code: ErrorCode, message: str) -> Refused:
    """This worker gets no work from this gateway."""
    return Refused(code=code, message=message)

"""What llguidance says went wrong, in words for whoever wrote the grammar."""

from typing import Final

_MAX_CHARACTERS: Final = 300
ROW_LIMIT: Final = "Current row has"
"""Of llguidance's message when there are too many ways to go on at one place."""
TOO_SLOW: Final = "too slow"
"""Our own, for masks that take too long."""
_LIMITS: Final = ("fuel", "too many items", "Too many items", ROW_LIMIT, "too complex", TOO_SLOW)
_SIZES: Final = ("too big", "too many expressions", "panic:")


def one_line(message: str, *, is_own: bool = True) -> str:
    """A message as one bounded line, without what is the library's own business.

    Args:
        message: As llguidance wrote it.
        is_own: Whoever made the request wrote what llguidance read.
    """
    if message.startswith("NoExtension"):
        return "no text satisfies it."
    if "too many states" in message:
        return "it needs more states than the engine keeps for one grammar."
    if any(part in message for part in _LIMITS):
        return "one step of it takes more work than the engine allows."
    if any(part in message for part in _SIZES):
        return "it is too large."
    if not is_own:
        return "a pattern, or several at once, are more than can be compiled."
    return " ".join(message.removesuffix("<non-verbose/>").split())[:_MAX_CHARACTERS]

"""What takes long to read has no place on the event loop: whoever reads there is told to stop."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, TypeVar

MAX_GRAMMAR_CHARACTERS_ON_LOOP: Final = 1024
"""Of all grammars of a body; a thousand take up to 4 ms of a core, four thousand 17."""
_is_on_loop: ContextVar[bool] = ContextVar("is_on_loop", default=False)
ResultT = TypeVar("ResultT")


class BesideLoopError(Exception):
    """A body is to be parsed beside the event loop, though it is small."""


def read_on_loop(read: Callable[[], ResultT]) -> ResultT:
    """What reading a body gives.

    Raises:
        BesideLoopError: It takes too long for the loop; nothing of it was done.
    """
    before = _is_on_loop.set(True)
    try:
        return read()
    finally:
        _is_on_loop.reset(before)


def check_grammar_characters(num_characters: int) -> None:
    """Called before the grammars of a body are read.

    Raises:
        BesideLoopError: They are too long to be read here.
    """
    if num_characters > MAX_GRAMMAR_CHARACTERS_ON_LOOP and _is_on_loop.get():
        raise BesideLoopError

"""How loading tells what it does."""

from collections.abc import Callable

from protocol.wire.messages import Phase

PhaseCallback = Callable[[Phase, float, str], None]
"""Told what is being done, how far it is (0 to 1) and a short text."""

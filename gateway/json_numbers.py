"""Numbers of a client's JSON that no float holds, kept with all their digits.

`orjson` makes a float of an integer beyond 64 bits and of any fraction. A number in a schema or in
the arguments of a call is only handed on, so it stays the text that it was.
"""

import json
from collections.abc import Collection
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import orjson

from gateway.errors import InvalidRequestError

_DIGITS: Final = bytes.maketrans(b"123456789.E", b"0000000000e")
# Fifteen digits survive in a float; from 1e-308 on it loses digits however few there are.
_LONG: Final = b"0" * 16
_TINY: Final = b"e-000"
_MIN_INTEGER: Final = -(2**63)
_MAX_INTEGER: Final = 2**64 - 1


def keep_digits(text: bytes, value: dict[str, Any], names: Collection[str]) -> None:
    """Put numbers with all their digits into members of an object that `orjson` has read.

    A number that `orjson` changed becomes an `orjson.Fragment`, which `orjson.dumps` writes as it
    is. Texts without long numbers are only looked through.

    Args:
        text: What was read, valid JSON.
        value: Its object, whose members are replaced.
        names: Of the members; one that isn't there is none.

    Raises:
        InvalidRequestError: `text` nests deeper than Python's parser goes.
    """
    present = [name for name in names if name in value]
    if not present or not _may_have_long_numbers(text):
        return
    try:
        # Only floats cost a call of ours each; `int` is what the parser uses itself, and `orjson`
        # has refused integers of more than 309 digits.
        exact = json.loads(text.decode(), parse_float=_exact_float)
    except RecursionError as error:
        raise InvalidRequestError("The request body is nested too deep.") from error
    found = {name: exact[name] for name in present}
    _write_long_integers(found)
    value.update(found)


def _may_have_long_numbers(text: bytes) -> bool:
    """Whether digits stand so close that a number, in a string or not, may be a long one."""
    shape = text.translate(_DIGITS)
    return _LONG in shape or _TINY in shape


def _exact_float(text: str) -> float | orjson.Fragment:
    number = float(text)
    try:
        is_exact = Decimal(text) == Decimal(repr(number))
    except InvalidOperation:  # its exponent has twenty digits
        is_exact = False
    return number if is_exact else orjson.Fragment(text.encode())


def _write_long_integers(value: Any) -> None:
    """Make fragments of the integers that have more than 64 bits, at whatever depth."""
    waiting = [value]
    while waiting:
        inside = waiting.pop()
        pairs = inside.items() if isinstance(inside, dict) else enumerate(inside)
        for key, one in pairs:
            if isinstance(one, dict | list):
                waiting.append(one)
            elif isinstance(one, int) and not _MIN_INTEGER <= one <= _MAX_INTEGER:
                inside[key] = orjson.Fragment(str(one).encode())

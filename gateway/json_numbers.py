"""Numbers of a client's JSON that no float holds, kept with all their digits.

`orjson` makes a float of an integer beyond 64 bits and of any fraction. A number in a schema or in
the arguments of a call is only handed on, so it stays the text that it was: an `orjson.Fragment`,
which `orjson.dumps` writes as it is.
"""

import json
import re
from collections.abc import Set as AbstractSet
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import orjson

from gateway.errors import InvalidRequestError

_DIGITS: Final = bytes.maketrans(b"123456789.E", b"0000000000e")
# Fifteen digits survive in a float; from 1e-308 on it loses digits however few there are.
_MAX_SHORT: Final = 16
_LONG: Final = b"0" * _MAX_SHORT
_TINY: Final = b"e-000"
_NO_LONG_NUMBERS: Final = re.compile(
    rb"""(?: [^"\d]*+
             (?: "(?: [^"\\]++ | \\. )*+"              # a string, whatever digits it holds
               | [\d.]{1,15}+ (?! [\d.] | [eE]-\d{3} )  # a number that a float holds
             )
         )*+ [^"\d]*+""",
    re.DOTALL | re.VERBOSE,
)
_MIN_INTEGER: Final = -(2**63)
_MAX_INTEGER: Final = 2**64 - 1


def has_long_numbers(text: bytes) -> bool:
    """Whether JSON may have numbers that no float holds: 16 digits, or an exponent below -99.

    Digits within strings are none; what is no JSON may count as if it had some.
    """
    shape = text.translate(_DIGITS)
    if _LONG not in shape and _TINY not in shape:
        return False
    return _NO_LONG_NUMBERS.fullmatch(text) is None


def loads(text: bytes | str) -> Any:
    """What `orjson.loads` reads, with fragments for the numbers that it would change.

    JSON that nests deeper than Python's parser goes has floats.

    Raises:
        orjson.JSONDecodeError: It is no JSON.
    """
    value = orjson.loads(text)
    encoded = text.encode() if isinstance(text, str) else text
    if not has_long_numbers(encoded):
        return value
    try:
        whole = [_exact(encoded)]
    except RecursionError:
        return value
    _write_long_integers(whole)
    return whole[0]


def load_integers(text: bytes) -> Any:
    """What `orjson.loads` reads, with integers of any size instead of floats.

    JSON that nests deeper than Python's parser goes has floats.

    Raises:
        orjson.JSONDecodeError: It is no JSON.
    """
    value = orjson.loads(text)
    if not has_long_numbers(text):
        return value
    try:
        return json.loads(text.decode())
    except RecursionError:
        return value


def dump_integers(value: Any) -> bytes:
    """What `orjson.dumps` writes, also of integers that have more than 64 bits.

    Raises:
        TypeError: It is no JSON.
    """
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        try:
            return orjson.dumps(_with_long_integers(value))
        except (RecursionError, ValueError) as error:
            raise TypeError("the value nests too deep, or a number is too long") from error


def keep_digits(text: bytes, value: dict[str, Any], names: AbstractSet[str]) -> None:
    """Put numbers with all their digits into members of an object that `orjson` has read.

    Texts without long numbers are only looked through.

    Args:
        text: What was read, valid JSON.
        value: Its object, whose members are replaced.
        names: Of the members; one that isn't there is none.

    Raises:
        InvalidRequestError: `text` nests deeper than Python's parser goes.
    """
    if not has_long_numbers(text):
        return
    present = names & value.keys()
    if not present:
        return
    try:
        exact = _exact(text)
    except RecursionError as error:
        raise InvalidRequestError("The request body is nested too deep.") from error
    found = {name: exact[name] for name in present}
    _write_long_integers(found)
    value.update(found)


def _exact(text: bytes) -> Any:
    # Only floats cost a call of ours each; `int` is what the parser uses itself, and `orjson`
    # has refused integers of more than 309 digits.
    return json.loads(text.decode(), parse_float=_exact_float)


def _exact_float(text: str) -> float | orjson.Fragment:
    number = float(text)
    # Nearly all are short, or written as Python does; decimals cost ten times as much.
    if len(text) <= _MAX_SHORT and "e" not in text and "E" not in text:
        return number
    written = repr(number)
    if written == text:
        return number
    try:
        is_exact = Decimal(text) == Decimal(written)
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


def _with_long_integers(value: Any) -> Any:
    """A copy in which integers of more than 64 bits are fragments."""
    if isinstance(value, dict):
        return {key: _with_long_integers(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_long_integers(one) for one in value]
    if isinstance(value, int) and not _MIN_INTEGER <= value <= _MAX_INTEGER:
        return orjson.Fragment(str(value).encode())
    return value

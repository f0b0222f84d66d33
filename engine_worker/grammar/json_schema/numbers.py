"""Regular expressions of the numbers between two bounds, digit by digit: no bound is rounded."""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Final

MAX_DIGITS: Final = 64
"""Digits of a bound, before and after its point; more are not enforced."""
_INTEGER: Final = "(0|[1-9][0-9]*)"
_FRACTION: Final = r"(\.[0-9]+)?"
_EXPONENT: Final = "([eE][-+]?[0-9]+)?"


def number_body(
    low: tuple[Decimal, bool] | None, high: tuple[Decimal, bool] | None, *, is_integer: bool
) -> str:
    """A terminal's body for the numbers between two bounds.

    Args:
        low: The bound and whether it is itself left out; None for no bound.
        high: Likewise.
        is_integer: Written without a point.
    """
    if low is None and high is None:
        return f"/-?{_INTEGER}/" if is_integer else f"/-?{_INTEGER}{_FRACTION}{_EXPONENT}/"
    if is_integer:
        low, high = _whole(low, up=True), _whole(high, up=False)
    parts = []
    if low is not None:
        parts.append(f"/{_at_least(*low, is_integer=is_integer)}/")
    if high is not None:
        parts.append(f"/{_at_most(*high, is_integer=is_integer)}/")
    return " & ".join(parts)


def has_room(low: tuple[Decimal, bool] | None, high: tuple[Decimal, bool] | None) -> bool:
    """Whether some number lies between the bounds."""
    if low is None or high is None:
        return True
    return low[0] < high[0] or (low[0] == high[0] and not low[1] and not high[1])


def has_whole(low: tuple[Decimal, bool] | None, high: tuple[Decimal, bool] | None) -> bool:
    """Whether some integer does."""
    return has_room(_whole(low, up=True), _whole(high, up=False))


def num_digits(number: Decimal) -> int:
    """Digits that a number has when it is written without an exponent."""
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    return max(len(digits), 1 - exponent) if exponent < 0 else len(digits) + exponent


def spellings(number: Decimal) -> str:
    """A regular expression of all the ways to write a number without an exponent."""
    if number == 0:
        return r"-?0(\.0+)?"
    whole, fraction = _split(number)
    sign = "-" if number < 0 else ""
    return f"{sign}{whole}" + (rf"\.{fraction}0*" if fraction else r"(\.0+)?")


def _whole(bound: tuple[Decimal, bool] | None, *, up: bool) -> tuple[Decimal, bool] | None:
    """The nearest integer within a bound, itself allowed."""
    if bound is None:
        return None
    value, is_left_out = bound
    rounded = value.to_integral_value(ROUND_CEILING if up else ROUND_FLOOR)
    if is_left_out and rounded == value:
        # As an `int`: a sum of `Decimal` would be rounded to 28 digits.
        rounded = Decimal(int(rounded) + (1 if up else -1))
    return rounded, False


def _at_least(bound: Decimal, is_left_out: bool, *, is_integer: bool) -> str:
    everything = _INTEGER if is_integer else _INTEGER + _FRACTION
    if bound >= 0:
        return _from(bound, is_left_out, is_integer=is_integer)
    return f"({everything}|-{_up_to(bound, is_left_out, is_integer=is_integer)})"


def _at_most(bound: Decimal, is_left_out: bool, *, is_integer: bool) -> str:
    everything = _INTEGER if is_integer else _INTEGER + _FRACTION
    if bound < 0 or (bound == 0 and is_left_out):
        return f"-{_from(bound, is_left_out, is_integer=is_integer)}"
    return f"({_up_to(bound, is_left_out, is_integer=is_integer)}|-{everything})"


def _split(bound: Decimal) -> tuple[str, str]:
    """Digits before the point, and those after it without zeros at their end."""
    whole, _, fraction = f"{bound.copy_abs():f}".partition(".")
    return whole.lstrip("0") or "0", fraction.rstrip("0")


def _from(bound: Decimal, is_left_out: bool, *, is_integer: bool) -> str:
    """Numbers that are not negative, from a bound's amount on."""
    whole, fraction = _split(bound)
    above = _integers_above(whole)
    if is_integer:
        return f"({whole}|{above})" if not is_left_out else f"({above})"
    return f"({whole}{_fraction_from(fraction, is_left_out)}|({above}){_FRACTION})"


def _up_to(bound: Decimal, is_left_out: bool, *, is_integer: bool) -> str:
    """Numbers that are not negative, up to a bound's amount."""
    whole, fraction = _split(bound)
    below = _integers_below(whole)
    parts = [] if below is None else [f"({below})" + ("" if is_integer else _FRACTION)]
    if is_integer:
        parts += [] if is_left_out else [whole]
    else:
        at = _fraction_up_to(fraction, is_left_out)
        parts += [] if at is None else [whole + at]
    # Of nothing: a character class without members.
    return f"({'|'.join(parts)})" if parts else "[^\\s\\S]"


def _integers_above(digits: str) -> str:
    longer = f"[1-9][0-9]{{{len(digits)},}}"
    parts = [longer]
    for index, digit in enumerate(digits):
        if digit != "9":
            rest = len(digits) - index - 1
            first = int(digit) + 1
            parts.append(f"{digits[:index]}[{first}-9]{_any_digits(rest)}")
    return "|".join(parts)


def _integers_below(digits: str) -> str | None:
    if digits == "0":
        return None
    parts = []
    if len(digits) > 1:
        parts.append(f"[1-9][0-9]{{0,{len(digits) - 2}}}" if len(digits) > 2 else "[1-9]")
        parts.append("0")
    for index, digit in enumerate(digits):
        least = 1 if index == 0 and len(digits) > 1 else 0
        if int(digit) > least:
            rest = len(digits) - index - 1
            parts.append(f"{digits[:index]}[{least}-{int(digit) - 1}]{_any_digits(rest)}")
    return "|".join(parts) or None


def _any_digits(number: int) -> str:
    return f"[0-9]{{{number}}}" if number else ""


def _fraction_from(digits: str, is_left_out: bool) -> str:
    if not digits:
        return r"\.[0-9]*[1-9][0-9]*" if is_left_out else _FRACTION
    more = "[0-9]*[1-9][0-9]*" if is_left_out else "[0-9]*"
    parts = [digits + more]
    parts += [
        f"{digits[:index]}[{int(digit) + 1}-9][0-9]*"
        for index, digit in enumerate(digits)
        if digit != "9"
    ]
    return rf"\.({'|'.join(parts)})"


def _fraction_up_to(digits: str, is_left_out: bool) -> str | None:
    if not digits:
        return None if is_left_out else r"(\.0+)?"
    parts = [digits[:index] for index in range(1, len(digits))]
    parts += [] if is_left_out else [f"{digits}0*"]
    parts += [
        f"{digits[:index]}[0-{int(digit) - 1}][0-9]*"
        for index, digit in enumerate(digits)
        if digit != "0"
    ]
    return rf"(\.({'|'.join(parts)}))?"

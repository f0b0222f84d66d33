"""How answers tell of limits and budgets that are used up to a threshold: a header, and a list."""

import math
from collections.abc import Sequence
from typing import Any, Final

from protocol.wire.messages import LimitWarning

HEADER: Final = "X-Penstock-Budget-Warning"
MICROS_PER_UNIT: Final = 1_000_000
_MAX_SHOWN: Final = 8
_MAX_NAME_CHARACTERS: Final = 64


def warning_headers(warnings: Sequence[LimitWarning]) -> dict[str, str]:
    """The header; without warnings there is none.

    Each warning is an item with parameters as in RFC 9651: the id of the limit, its name, whose it
    is, what was used of which amount, and in how many seconds it begins again.
    """
    if not warnings:
        return {}
    return {HEADER: ", ".join(_item(warning) for warning in warnings[:_MAX_SHOWN])}


def warning_objects(warnings: Sequence[LimitWarning]) -> list[dict[str, Any]]:
    """The same as JSON, for answers that were asked to tell it; money is in micro-units."""
    return [
        {
            "type": _kind(warning),
            "budget_id": warning.limit_id,
            "budget_name": warning.name,
            "scope": warning.holder,
            "measure": warning.measure,
            "window": warning.window,
            "message": _message(warning),
            "used": warning.used,
            "amount": warning.amount,
            "usage_percentage": _percent(warning),
            "threshold_percentage": warning.percent,
            "resets_in_s": None if warning.resets_s is None else math.ceil(warning.resets_s),
        }
        for warning in warnings
    ]


def _kind(warning: LimitWarning) -> str:
    if warning.percent < 100:
        return "budget_warning"
    return "budget_exceeded" if warning.used > warning.amount else "budget_used_up"


def _message(warning: LimitWarning) -> str:
    return (
        f"{_percent(warning):g} % of '{warning.name}' are used:"
        f" {_amount(warning, warning.used)} of {_amount(warning, warning.amount)}."
    )


def _item(warning: LimitWarning) -> str:
    name = warning.name[:_MAX_NAME_CHARACTERS].encode("ascii", "replace").decode()
    name = "".join(c if c.isprintable() else "?" for c in name)
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    parts = [
        f'"{warning.limit_id}"',
        f'name="{quoted}"',
        f"scope={warning.holder}",
        f"percent={_percent(warning):g}",
        f"used={_amount(warning, warning.used)}",
        f"amount={_amount(warning, warning.amount)}",
    ]
    if warning.resets_s is not None:
        parts.append(f"resets={math.ceil(warning.resets_s)}")
    return ";".join(parts)


def _percent(warning: LimitWarning) -> float:
    return round(100 * warning.used / warning.amount, 1) if warning.amount else 100.0


def _amount(warning: LimitWarning, amount: int) -> str:
    """Money in units with two decimals at least, everything else as it is."""
    if warning.measure != "money":
        return str(amount)
    units, micros = divmod(amount, MICROS_PER_UNIT)
    digits = f"{micros:06d}"
    return f"{units}.{digits[:2]}{digits[2:].rstrip('0')}"

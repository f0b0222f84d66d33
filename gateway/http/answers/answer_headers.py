"""Headers of metered answers: limits, who answered, budgets nearly used up, fields left out.

Warnings of limits and budgets that are used up to a threshold are told as a list as well.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol
from urllib.parse import quote

from gateway.errors import InvalidRequestError
from gateway.http.errors.error_table import limit_headers
from gateway.http.schemas.base.shapes import MAX_LISTED_FIELDS
from protocol.wire.messages import LimitState, LimitWarning

MODEL_HEADER: Final = "X-Penstock-Model"
"""Who answered, where the request named an alias, or a model that a fallback stood in for."""
WARNINGS_HEADER: Final = "X-Penstock-Budget-Warning"
MICROS_PER_UNIT: Final = 1_000_000
_MAX_SHOWN: Final = 8
_MAX_NAME_CHARACTERS: Final = 64
_MAX_LISTED_CHARACTERS: Final = 2048
"""Clients and proxies refuse answers with headers of more than a few kilobytes."""


class Granted(Protocol):
    """What was granted: the lease of a request, or of several that make one answer together."""

    @property
    def limits(self) -> LimitState:
        """Where the caller stands."""
        ...

    @property
    def warnings(self) -> Sequence[LimitWarning]:
        """Its limits that are used up to a threshold."""
        ...


def answer_headers(
    granted: Granted,
    *,
    model: str = "",
    asked: str | None = None,
    tell_limits: Callable[[LimitState], dict[str, str]] = limit_headers,
) -> dict[str, str]:
    """The headers that every answer of a metered route has.

    Args:
        granted: What the answer was made with.
        model: Who answered; empty where no model did.
        asked: The model as the client named it; None where it named none.
        tell_limits: In the words of the API that was asked.
    """
    headers = tell_limits(granted.limits) | warning_headers(granted.warnings)
    if asked is not None and model != asked:
        headers[MODEL_HEADER] = quote(model, safe="/:")
    return headers


def warning_headers(warnings: Sequence[LimitWarning]) -> dict[str, str]:
    """The header; without warnings there is none.

    Each warning is an item with parameters as in RFC 9651: the id of the limit, its name, whose it
    is, what was used of which amount, and in how many seconds it begins again.
    """
    if not warnings:
        return {}
    return {WARNINGS_HEADER: ", ".join(_item(warning) for warning in warnings[:_MAX_SHOWN])}


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


def ignored_headers(ignored: list[str], *, strict: bool) -> dict[str, str]:
    """The header that lists fields without meaning.

    Args:
        ignored: Their paths.
        strict: Refuse the first one instead.

    Raises:
        InvalidRequestError: There is one, and `strict` is set.
    """
    if not ignored:
        return {}
    if strict:
        raise InvalidRequestError(f"Unknown field: `{ignored[0]}`.", param=ignored[0])
    return {"X-Penstock-Ignored-Fields": _listed(ignored)}


def unenforced_headers(keywords: Sequence[str]) -> dict[str, str]:
    """The header that lists keywords that no grammar enforces, as pointers into their schemas."""
    return {"X-Penstock-Unenforced": _listed(keywords)} if keywords else {}


def _listed(names: Sequence[str]) -> str:
    shown = [name[:64].encode("ascii", "backslashreplace").decode() for name in names]
    printable = ["".join(c if c.isprintable() and c != "," else "?" for c in one) for one in shown]
    listed = ", ".join(printable[:MAX_LISTED_FIELDS])
    return listed[:_MAX_LISTED_CHARACTERS]

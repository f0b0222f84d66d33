"""Why some valid instances are refused, and some sentences are invalid to another validator.

And the figures of the first report, which the newest ones are compared with.
"""

import re
from typing import Final

FIRST: Final = (
    ("372 of 383", "719 of 748", "0 of 398", "609 of 609"),
    ("78 of 78", "436 of 462", "0 of 365", "114 of 116"),
    ("247 of 257", "532 of 535", "0 of 311", "441 of 441"),
    ("64 of 64", "368 of 388", "0 of 303", "88 of 90"),
    ("287 of 288", "318 of 328", "0 of 647", "373 of 373"),
)
"""By set: schemas compiled, valid and invalid instances accepted, valid sentences; 2026-11-28."""

_DEPENDS: Final = "what it says depends on a keyword that is left to the model"
_REFUSED: Final = {
    r"(date-)?time: .*leap second.*": "leap seconds away from UTC are never written",
    r"email: .*": "quoted names and addresses in brackets are never written",
    r"hostname: .*": "host names in punycode are never written",
    r"format: .* annotation by default": (
        "`format` is enforced here, where the standard lets it be an annotation"
    ),
    r"vocabulary: .*": "metaschemas are not read, so none switches validation off",
    r"unevaluated\w+: .* if without then and else.*": (
        "an `if` without `then` and `else` is passed over, which counts here"
    ),
    r"unevaluatedProperties: unevaluatedProperties with anyOf.*": (
        "of several branches that are true only the one that is written counts"
    ),
}
"""Valid instances that are refused, by patterns of case and description."""
_WRITTEN: Final = {
    r"ecmascript-regex: .*\\W matches everything but ascii letters": (
        "by ECMA 262 `\\W` matches a letter outside of ASCII, by Python's expressions it doesn't"
    ),
    r"ecmascript-regex: .*\\s matches whitespace": (
        "by ECMA 262 `\\s` matches U+FEFF, by Python's expressions it doesn't"
    ),
}
"""Sentences that Python's `jsonschema` finds invalid, by patterns of their case."""


def why_refused(case: str, description: str, *, has_left: bool) -> str | None:
    """Why a valid instance is refused; None without a reason.

    Args:
        case: Its file and group.
        description: Of the instance.
        has_left: Whether a keyword of its schema is left to the model.
    """
    name = f"{case}: {description}"
    found = (why for pattern, why in _REFUSED.items() if re.fullmatch(pattern, name))
    return next(found, _DEPENDS if has_left else None)


def why_wrong(case: str) -> str | None:
    """Why a sentence is invalid to another validator; None without a reason."""
    return next((why for pattern, why in _WRITTEN.items() if re.fullmatch(pattern, case)), None)

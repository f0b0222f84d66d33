"""Hooks of schemathesis that leave out most of its cases, the same ones every time."""

from collections import Counter
from typing import Any, Final

import schemathesis

EACH: Final = 15
_seen: Counter[str] = Counter()


@schemathesis.hook
def filter_case(_context: Any, case: Any) -> bool:
    """Take one of so many cases of a route, the first one always."""
    number = _seen[case.operation.label]
    _seen[case.operation.label] += 1
    return number % EACH == 0

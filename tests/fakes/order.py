"""Which tests come last: large files whose tests share nothing are dealt out by function."""

SMALL_UNITS = ("tests/unit/toolparser_worker/test_parser_",)
"""Beginnings of their paths."""


def is_small_unit(nodeid: str) -> bool:
    """Whether a test is of such a file."""
    return nodeid.startswith(SMALL_UNITS)

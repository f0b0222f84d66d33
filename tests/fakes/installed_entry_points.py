"""What is installed is read once, and what a test adds to `sys.path` each time: a gateway looks
twice."""

import sys
from functools import cache
from importlib import metadata
from typing import Any

_INSTALLED = tuple(sys.path)


def entry_points(**params: Any) -> metadata.EntryPoints:
    """As `importlib.metadata.entry_points`; conftest.py puts it there."""
    added = [path for path in sys.path if path not in _INSTALLED]
    found = (*_of(added), *_of_installed()) if added else _of_installed()
    return metadata.EntryPoints(found).select(**params)


@cache
def _of_installed() -> tuple[metadata.EntryPoint, ...]:
    return _of([path for path in _INSTALLED if path in sys.path])


def _of(paths: list[str]) -> tuple[metadata.EntryPoint, ...]:
    return tuple(
        entry
        for distribution in metadata.distributions(path=paths)
        for entry in distribution.entry_points
    )

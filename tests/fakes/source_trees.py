"""Syntax trees of the project's own sources, for tests that read them."""

import ast
import gc
from pathlib import Path


def tree_of(source: Path | str) -> ast.Module:
    """The syntax tree of a file, or of a text.

    Garbage is not collected meanwhile: an object that warns as it goes has its traceback formatted,
    which parses a line of source, and CPython 3.11 mistakes the one parse for the other
    (`SystemError: AST constructor recursion depth mismatch`,
    https://github.com/python/cpython/issues/106905).
    """
    text = source if isinstance(source, str) else source.read_text(encoding="utf-8")
    was_on = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        if was_on:
            gc.enable()

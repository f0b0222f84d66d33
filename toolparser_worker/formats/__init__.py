"""The declared formats by name; each module of this package declares some in `FORMATS`."""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from toolparser_worker.errors import UnknownFormatError
from toolparser_worker.machine.declarations import ReasoningFormat, ToolFormat

NO_FORMAT: Final = "none"
"""The name that leaves all markup of a kind in the text."""

FormatT = TypeVar("FormatT", ToolFormat, ReasoningFormat)


def _declared() -> tuple[Mapping[str, ToolFormat], Mapping[str, ReasoningFormat]]:
    """Collects what the modules here declare, by name and alias."""
    tools: dict[str, ToolFormat] = {}
    reasoning: dict[str, ReasoningFormat] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for declared in importlib.import_module(module.name).FORMATS:
            for name in (declared.name, *declared.aliases):
                table: dict[str, ToolFormat] | dict[str, ReasoningFormat] = (
                    tools if isinstance(declared, ToolFormat) else reasoning
                )
                if name in table:
                    raise ValueError(f"two formats are called {name}")
                table[name] = declared
    return MappingProxyType(tools), MappingProxyType(reasoning)


TOOL_FORMATS, REASONING_FORMATS = _declared()


def find_tool_format(name: str | None) -> ToolFormat | None:
    """The tool format of this name; None for none.

    Raises:
        UnknownFormatError: No format is called so.
    """
    return _find(name, TOOL_FORMATS, "tool")


def find_reasoning_format(name: str | None) -> ReasoningFormat | None:
    """The reasoning format of this name; None for none.

    Raises:
        UnknownFormatError: No format is called so.
    """
    return _find(name, REASONING_FORMATS, "reasoning")


def _find(name: str | None, table: Mapping[str, FormatT], kind: str) -> FormatT | None:
    if name is None or name == NO_FORMAT:
        return None
    if name in table:
        return table[name]
    known = sorted([*table, NO_FORMAT])
    closest = difflib.get_close_matches(name[:100], known, n=1)
    hint = f" Did you mean {closest[0]!r}?" if closest else ""
    raise UnknownFormatError(
        f"There is no {kind} format called {name[:100]!r}.{hint} Known are: {', '.join(known)}."
    )

"""The declared formats by name; each module of this package declares some in `FORMATS`.

Other packages add formats with an entry point of the group `penstock.formats` that names such a
tuple, as `docs/formats.md` shows.
Others use `find_tool_format`, `find_reasoning_format` and the tables of all.
May import `toolparser_worker.machine` (declarations) and `toolparser_worker.errors`.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Final, TypeVar

from toolparser_worker.errors import FormatPluginError, UnknownFormatError
from toolparser_worker.machine.declarations import ReasoningFormat, ToolFormat
from toolparser_worker.machine.suffix import with_suffix

NO_FORMAT: Final = "none"
"""The name that leaves all markup of a kind in the text."""

SUFFIX_MARK: Final = ":"
"""What parts a format's name from the suffix that a tokenizer writes into the format's tags."""

MAX_SUFFIX_CHARS: Final = 64
PLUGIN_GROUP: Final = "penstock.formats"
"""The group of entry points by which other packages add formats."""

Format = ToolFormat | ReasoningFormat
FormatT = TypeVar("FormatT", ToolFormat, ReasoningFormat)
Tables = tuple[Mapping[str, ToolFormat], Mapping[str, ReasoningFormat]]


def declared_formats() -> Iterator[Format]:
    """What the modules of this package declare."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        yield from importlib.import_module(module.name).FORMATS


def plugin_formats(plugins: Iterable[EntryPoint]) -> Iterator[Format]:
    """What other packages declare.

    Raises:
        FormatPluginError: A plug-in cannot be loaded, or is no tuple of formats.
    """
    for plugin in plugins:
        try:
            found = tuple(plugin.load())
        except Exception as error:
            # Whatever a plug-in raises, the operator must learn which one it was.
            raise FormatPluginError(
                f"The formats of plug-in {plugin.name!r} cannot be loaded: {error}."
            ) from error
        for declared in found:
            if not isinstance(declared, ToolFormat | ReasoningFormat):
                raise FormatPluginError(
                    f"Plug-in {plugin.name!r} declares something that is no format."
                )
            yield declared


def by_name(formats: Iterable[Format]) -> Tables:
    """Tool formats and reasoning formats by name and alias.

    Raises:
        FormatPluginError: Two formats have the same name.
    """
    tools: dict[str, ToolFormat] = {}
    reasoning: dict[str, ReasoningFormat] = {}
    for declared in formats:
        for name in (declared.name, *declared.aliases):
            if name in (tools if isinstance(declared, ToolFormat) else reasoning):
                raise FormatPluginError(f"Two formats are called {name!r}.")
            if isinstance(declared, ToolFormat):
                tools[name] = declared
            else:
                reasoning[name] = declared
    return MappingProxyType(tools), MappingProxyType(reasoning)


TOOL_FORMATS, REASONING_FORMATS = by_name(
    (*declared_formats(), *plugin_formats(entry_points(group=PLUGIN_GROUP)))
)


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
    base, _, suffix = name.partition(SUFFIX_MARK)
    if suffix and base in table and table[base].takes_suffix:
        return with_suffix(table[base], SUFFIX_MARK + suffix[:MAX_SUFFIX_CHARS])
    known: list[str] = sorted({*(declared.name for declared in table.values()), NO_FORMAT})
    closest = difflib.get_close_matches(name[:100], [*known, *table], n=1)
    hint = f" Did you mean {closest[0]!r}?" if closest else ""
    raise UnknownFormatError(
        f"There is no {kind} format called {name[:100]!r}.{hint} Known are: {', '.join(known)}."
    )

"""Tables and JSON for a terminal or a pipe, with everything of others made harmless."""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from penstock.fields import moment, money
from penstock.terminal import visible_json, visible_line

_PIPE_WIDTH = 1_000_000
"""Columns of a table that goes into a pipe: a row is a line, nothing is folded or cut."""
_FRAME_WIDTH = 3
"""What a column takes beside its text: a space on either side and a line."""
_TIMES = ("_at", "_until", "valid_from")
"""How the names of fields end that hold Unix seconds."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table; whoever wrote its cells writes neither markup nor commands to this terminal.

    No word is cut or folded, since ids are there to be copied: texts wrap, and where a terminal is
    too narrow for that, each row is listed as its fields.
    """
    texts = [[_shown(cell) for cell in row] for row in rows]
    console = _console()
    room = console.width - _FRAME_WIDTH * len(columns) - 1
    widths = _widths(list(zip(columns, *texts, strict=True)), room)
    if widths is None:
        _print_fields(console, [zip(columns, row, strict=True) for row in texts])
        return
    table = Table(*(Column(name, width=width) for name, width in zip(columns, widths, strict=True)))
    for row in texts:
        table.add_row(*map(Text, row))
    console.print(table)


def print_record(
    record: Mapping[str, Any], as_json: bool, *, amounts: Set[str] = frozenset()
) -> None:
    """One record as JSON, or as a table of its fields.

    Args:
        record: What the server answered.
        as_json: As it is.
        amounts: Fields that hold micro-units of money; the table shows the money.
    """
    if as_json:
        print_json(record)
        return
    fields = [(name, _shown(_readable(name, value, amounts))) for name, value in record.items()]
    _print_fields(_console(), [fields])


def print_change(record: Mapping[str, Any], as_json: bool, text: str) -> None:
    """What came of a change: what the server answered, or a line that says it."""
    if as_json:
        print_json(record)
    else:
        typer.echo(visible_line(text))


def print_json(value: Any) -> None:
    """The JSON of a value, indented."""
    typer.echo(visible_json(json.dumps(value, indent=2, ensure_ascii=False)))


def print_json_line(value: Any) -> None:
    """The JSON of a value on one line."""
    typer.echo(visible_json(json.dumps(value, ensure_ascii=False)))


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)


def _print_fields(console: Console, records: Iterable[Iterable[tuple[str, str]]]) -> None:
    """A table of two columns, with a line between records; what is too long for it folds."""
    table = Table(Column("field", overflow="fold"), Column("value", overflow="fold"))
    for record in records:
        for name, text in record:
            table.add_row(Text(visible_line(name)), Text(text))
        table.add_section()
    console.print(table)


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Widths of columns that take up to `room` together; None where not all words stay whole."""
    widths = [max(1, *map(cell_len, texts)) for texts in columns]
    least = [
        max((cell_len(word) for text in texts for word in text.split()), default=1)
        for texts in columns
    ]
    if sum(least) > room:
        return None
    while sum(widths) > room:
        # The widest gives way, as long as it has a word to move to the next line.
        _, widest = max(
            (width, index) for index, width in enumerate(widths) if width > least[index]
        )
        widths[widest] -= 1
    return widths


def _readable(name: str, value: Any, amounts: Set[str]) -> Any:
    """A field's value: a time in words and as the Unix seconds that options take."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if name in amounts:
        return money(value)
    return f"{moment(value)} ({value})" if name.endswith(_TIMES) else value


def _shown(value: Any) -> str:
    return visible_line(_cell(value))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return json.dumps(value, ensure_ascii=False)

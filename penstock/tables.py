"""Tables and JSON for a terminal or a pipe, with everything of others made harmless."""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from penstock.fields import moment, money
from penstock.terminal import visible_json, visible_line

_PIPE_WIDTH = 500
"""Columns of a table that goes into a pipe: a row is a line, nothing is folded or cut."""
_TIMES = ("_at", "_until", "valid_from")
"""How the names of fields end that hold Unix seconds."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table; whoever wrote its cells writes neither markup nor commands to this terminal."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(visible_line(_cell(cell))) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
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
    rows = [(name, _readable(name, value, amounts)) for name, value in record.items()]
    print_table(("field", "value"), rows)


def print_json(value: Any) -> None:
    """The JSON of a value, indented."""
    typer.echo(visible_json(json.dumps(value, indent=2, ensure_ascii=False)))


def print_json_line(value: Any) -> None:
    """The JSON of a value on one line."""
    typer.echo(visible_json(json.dumps(value, ensure_ascii=False)))


def _readable(name: str, value: Any, amounts: Set[str]) -> Any:
    """A field's value: a time in words and as the Unix seconds that options take."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if name in amounts:
        return money(value)
    return f"{moment(value)} ({value})" if name.endswith(_TIMES) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return json.dumps(value, ensure_ascii=False)

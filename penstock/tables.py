"""Tables and JSON for a terminal or a pipe, with everything of others made harmless."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from penstock.terminal import visible_json, visible_line

_PIPE_WIDTH = 500
"""Columns of a table that goes into a pipe: a row is a line, nothing is folded or cut."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table; whoever wrote its cells writes neither markup nor commands to this terminal."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(visible_line(_cell(cell))) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    console.print(table)


def print_fields(fields: Mapping[str, Any]) -> None:
    """One record as a table of its fields."""
    print_table(("field", "value"), fields.items())


def print_record(record: Mapping[str, Any], as_json: bool) -> None:
    """One record as JSON, or as a table of its fields."""
    if as_json:
        print_json(record)
    else:
        print_fields(record)


def print_json(value: Any) -> None:
    """The JSON of a value, indented."""
    typer.echo(visible_json(json.dumps(value, indent=2, ensure_ascii=False)))


def print_json_line(value: Any) -> None:
    """The JSON of a value on one line."""
    typer.echo(visible_json(json.dumps(value, ensure_ascii=False)))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return json.dumps(value, ensure_ascii=False)

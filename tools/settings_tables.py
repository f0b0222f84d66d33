"""Writes the tables of docs/operations.md from the declarations: `python -m tools.settings_tables`.

A table stands between `<!-- settings: NAME -->` and `<!-- end of settings -->`;
tests/contract/test_settings_documented.py holds the page equal to what this makes of it.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from auth_worker.config import AuthSettings
from auth_worker.decisions.authority import Rules
from auth_worker.storage.retention import Retention
from auth_worker.tokens.token_rules import TokenRules
from engine_worker.config import EngineSettings, ModelSettings
from gateway.config import GatewaySettings
from penstock.config import API_KEY, SERVE_OPTIONS, URL
from protocol.runtime.settings import Setting, declared_fields
from protocol.runtime.shared_settings import MODEL_PATH, SHARED
from toolparser_worker.config import ParserSettings

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"
_TABLE = re.compile(r"(<!-- settings: (\w+) -->\n).*?(<!-- end of settings -->)", re.DOTALL)


def tables() -> Mapping[str, tuple[Setting[Any], ...]]:
    """The settings of each table of the page; a setting stands in the first one that it fits."""
    by_table: dict[str, Iterable[Setting[Any]]] = {
        "serve": (MODEL_PATH, *SERVE_OPTIONS),
        "shared": SHARED,
        "gateway": _of(GatewaySettings),
        "engine_worker": _of(ModelSettings, EngineSettings),
        "auth_worker": _of(AuthSettings, Rules, Retention, TokenRules),
        "toolparser_worker": _of(ParserSettings),
        "client": (URL, API_KEY),
    }
    taken: set[str] = set()
    chosen: dict[str, tuple[Setting[Any], ...]] = {}
    for table, settings in by_table.items():
        chosen[table] = tuple(declared for declared in settings if declared.name not in taken)
        taken |= {declared.name for declared in chosen[table]}
    return chosen


def _of(*classes: Any) -> tuple[Setting[Any], ...]:
    return tuple(declared for cls in classes for _, declared in declared_fields(cls))


def render(settings: Iterable[Setting[Any]], *, with_options: bool) -> str:
    """A table in Markdown."""
    columns = ["setting", *(["option"] if with_options else []), "values", "default", "meaning"]
    rows = [columns, ["---"] * len(columns)]
    for declared in settings:
        also = "".join(f"also `{alias}`; " for alias in declared.aliases)
        rows.append(
            [
                f"`{declared.name}`",
                *([f"`{declared.option}`"] if with_options else []),
                declared.kind.describe(),
                declared.default_text(),
                f"{also}{declared.meaning}",
            ]
        )
    return "".join(
        f"|{'|'.join(row)}|\n" if row[0] == "---" else f"| {' | '.join(row)} |\n" for row in rows
    )


def rewritten(page: str) -> str:
    """The page with each of its tables made again.

    Raises:
        KeyError: It has a table that no settings belong to.
    """
    settings = tables()
    return _TABLE.sub(
        lambda match: (
            f"{match[1]}{render(settings[match[2]], with_options=match[2] == 'serve')}{match[3]}"
        ),
        page,
    )


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""Every setting that the code reads stands in docs/operations.md, and the other way round."""

import re
from pathlib import Path
from typing import Any

import typer

from penstock.cli import app

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocol", "gateway", "engine_worker", "auth_worker", "toolparser_worker", "penstock")
SETTING = re.compile(r"PENSTOCK_[A-Z][A-Z_]*[A-Z]")


def read_by_the_code() -> set[str]:
    return {
        name
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for name in SETTING.findall(path.read_text(encoding="utf-8"))
    }


def documented() -> set[str]:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(PENSTOCK_[A-Z_]+)`", text, re.MULTILINE))


def options_of_serve() -> set[str]:
    """The variables that the options of `penstock serve` read, as click sees them."""
    command: Any = typer.main.get_command(app)
    names: set[str] = set()
    for parameter in command.commands["serve"].params:
        envvar = parameter.envvar or ()
        names |= {envvar} if isinstance(envvar, str) else set(envvar)
    return {name for name in names if name.startswith("PENSTOCK_")}


def test_every_setting_is_documented() -> None:
    assert read_by_the_code() | options_of_serve() <= documented()


def test_no_documented_setting_is_unknown_to_the_code() -> None:
    assert documented() <= read_by_the_code() | options_of_serve()

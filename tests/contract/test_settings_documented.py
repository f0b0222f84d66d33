"""docs/operations.md has exactly the settings that are declared, and the code reads no others."""

import re
from pathlib import Path
from typing import Any

import typer

from penstock.cli import app
from tests.fakes.documented_settings import documented_settings
from tools.settings_tables import PAGE, rewritten, tables

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocol", "gateway", "engine_worker", "auth_worker", "toolparser_worker", "penstock")
SETTING = re.compile(r"PENSTOCK_[A-Z][A-Z_]*[A-Z]")


def declared_settings() -> set[str]:
    return {declared.name for settings in tables().values() for declared in settings}


def named_by_the_code() -> set[str]:
    return {
        name
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for name in SETTING.findall(path.read_text(encoding="utf-8"))
    }


def options_of_serve() -> dict[str, list[str]]:
    """Key → flags and variables of each option of `penstock serve`, as click sees them."""
    command: Any = typer.main.get_command(app)
    return {
        parameter.name: [*parameter.opts, *parameter.secondary_opts, *parameter.envvar]
        for parameter in command.commands["serve"].params
        if parameter.envvar
    }


def test_the_tables_are_what_the_declarations_say() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == rewritten(page), "write them anew with `make settings`"


def test_the_page_has_every_table() -> None:
    assert documented_settings() == declared_settings()


def test_the_code_names_no_setting_that_is_not_declared() -> None:
    assert named_by_the_code() == declared_settings()


def test_a_setting_is_declared_once() -> None:
    names: list[str] = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            names += re.findall(
                r"\b(?:text|whole_number|number|switch|file_path|choice|words|size)\(\s*"
                r'"(PENSTOCK_\w+)"',
                source,
            )
    assert len(names) > 50
    assert sorted(set(names)) == sorted(names)


def test_serve_has_the_options_of_its_settings() -> None:
    assert options_of_serve() == {
        declared.key: [*declared.option.split("/"), declared.name, *declared.aliases]
        for declared in tables()["serve"]
        if declared.option.startswith("--")
    }

"""Help shows its texts as they were written: brackets are no markup."""

import re
from collections.abc import Iterator
from typing import Any

import typer
from typer.testing import CliRunner

from penstock.cli import app
from penstock.config import URL

BRACKETED = re.compile(r"\[[^\[\]\s]+\]")


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command by its words; typer brings its own click, which has no public types."""
    yield " ".join(path), command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


ALL = dict(commands(typer.main.get_command(app)))


def help_of(path: str) -> str:
    return CliRunner().invoke(app, [*path.split(), "--help"]).output


def test_all_commands_are_looked_at() -> None:
    assert {"", "serve", "keys", "keys create", "bench engine", "fake-engine"} <= ALL.keys()


def test_every_bracketed_word_of_a_help_text_is_shown() -> None:
    for path, command in ALL.items():
        texts = [command.help or "", *(getattr(one, "help", None) or "" for one in command.params)]
        words = BRACKETED.findall(" ".join(texts))
        shown = help_of(path) if words else ""
        for word in words:
            assert word in shown, (path, word)


def test_the_faults_on_request_are_in_the_help() -> None:
    shown = help_of("fake-engine")
    for word in ("[[crash]]", "[[hang]]", "[[fail]]", "[[crash@5]]"):
        assert word in shown


def test_the_address_of_a_server_is_said_to_be_of_every_command_that_takes_it() -> None:
    takers = {
        path.split()[0]
        for path, command in ALL.items()
        for one in command.params
        if URL.name in (one.envvar or ())
    }
    assert {"keys", "usage", "budgets", "prices", "webhooks", "chat"} <= takers
    named = set(re.findall(r"`([a-z-]+)`", URL.meaning))
    assert named in (set(), takers)


def test_no_option_takes_a_secret() -> None:
    secret = re.compile(r"api.?key|token$|secret(?!_file$)|password")
    for path, command in ALL.items():
        for parameter in command.params:
            assert not secret.search(parameter.name or ""), (path, parameter.name)

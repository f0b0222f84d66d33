"""What the pages tell people to type exists: commands, options, make targets, versions."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from auth_worker.storage.migrations import newest_version
from penstock.cli import app
from protocol.version import PROTOCOL_VERSION
from tools.wrap_markdown import pages

ROOT = Path(__file__).parents[2]
TYPED = [
    page
    for page in pages()
    if page.name != "CHANGELOG.md" and not {"adr", "measurements"} & set(page.parts)
]
"""Not what was done and decided once."""
CODE = re.compile(r"^ *```[a-z]*\n(.*?)^ *```|(?<!`)`([^`]+)`(?!`)", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(
    r"""(?:^[ ]*(?:\w+=\S+[ ])*|[|;(][ ]*|/bin/|--[ ]|exec[ ]gateway[ ]|\)"[ ])
    penstock[ ]((?:\$\([^)]*\)|[^|;>)#\n])*)""",
    re.MULTILINE | re.VERBOSE,
)
"""The program at the beginning of a command, not a user or a namespace of that name."""


class Typed(NamedTuple):
    """A command on a page: the words after `penstock`."""

    line: int
    words: list[str]


def typed(page: Path) -> Iterator[Typed]:
    """Every call of `penstock` in the code of a page."""
    text = page.read_text(encoding="utf-8")
    for found in CODE.finditer(text):
        block, span = found.groups()
        code = re.sub(r"\\\n\s*", " ", block) if block else re.sub(r"\s+", " ", span)
        for command in COMMAND.finditer(code):
            yield Typed(text.count("\n", 0, found.start()) + 1, command[1].split())


@cache
def program() -> Any:
    """The command line, which takes a while to put together."""
    return typer.main.get_command(app)


def wrong_in(words: list[str]) -> str | None:
    """What the command line doesn't know of a call; None when it knows all."""
    command = program()
    rest = list(words)
    while rest and hasattr(command, "commands"):
        name = rest[0].strip("`.,:…")
        if name not in command.commands:
            return f"no command {name!r}" if name and name[0].isalpha() else None
        command = command.commands[name]
        rest = rest[1:]
    if command.context_settings.get("ignore_unknown_options"):
        return None
    known = {name for given in command.params for name in (*given.opts, *given.secondary_opts)}
    options = {word.split("=")[0].strip("`.,:…") for word in rest if word.startswith("--")}
    unknown = sorted(options - known - {"--", "--help"})
    return f"no option {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_exists_with_its_options(page: Path) -> None:
    wrong = [(call.line, call.words, why) for call in typed(page) if (why := wrong_in(call.words))]
    assert wrong == []


def test_the_commands_of_pages_are_found() -> None:
    found = [call for page in TYPED for call in typed(page)]
    assert len(found) > 150
    on_kubernetes = ["keys", "create", "prometheus", "--role", "readonly"]
    assert on_kubernetes in [call.words for call in found]


def test_a_wrong_command_and_a_wrong_option_are_found() -> None:
    assert wrong_in(["keys", "make", "x"]) == "no command 'make'"
    assert wrong_in(["keys", "create", "x", "--rate", "3"]) == "no option --rate"
    assert wrong_in(["keys", "create", "x", "--rpm=3", "--help"]) is None
    assert wrong_in(["keys", "…"]) is None


@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_make_target_of_a_page_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))
    named = {
        target
        for block, span in CODE.findall(page.read_text(encoding="utf-8"))
        for target in re.findall(r"^ *make ([a-z][a-z0-9-]*)", block or span, re.MULTILINE)
    }
    assert named - targets == set()


def test_the_page_on_upgrades_names_the_version_of_the_wire_that_is_spoken() -> None:
    text = (ROOT / "docs" / "upgrade.md").read_text(encoding="utf-8")
    assert re.findall(r"`protocol/version.py`, now ([\d.]+)", text) == [str(PROTOCOL_VERSION)]


def test_the_page_on_upgrades_names_the_version_of_the_schema() -> None:
    text = (ROOT / "docs" / "upgrade.md").read_text(encoding="utf-8")
    assert re.findall(r"The schema version is (\d+)", text) == [str(newest_version())]


def test_the_key_that_scrapes_metrics_may_read_them() -> None:
    """A key of role user, the default, is refused at /metrics."""
    for path in ("docs/deployment.md", "deploy/kubernetes/metrics/kustomization.yaml"):
        text = (ROOT / path).read_text(encoding="utf-8")
        calls = re.findall(r"penstock keys create prometheus(.*)", text)
        assert calls, path
        assert all("--role readonly" in call for call in calls), path

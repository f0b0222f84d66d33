"""README's snippets, extracted and run as written against the real processes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from penstock.cli import app
from tests.e2e.harness import Harness

pytestmark = pytest.mark.process

README = Path(__file__).parents[2] / "README.md"
WRITTEN_URL = "http://127.0.0.1:8000"


def snippets(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    text = README.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run_python(harness: Harness, snippet: str) -> str:
    code = snippet.replace(WRITTEN_URL, harness.url)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_two_commands_come_before_anything_else_to_run() -> None:
    first_screen = README.read_text(encoding="utf-8").splitlines()[:45]
    assert any(line.startswith("make serve") for line in first_screen)
    assert any(line.startswith("make test") for line in first_screen)


def test_the_sdk_snippet_answers_and_streams(harness: Harness) -> None:
    output = run_python(harness, snippets("python")[0])
    assert "42" in output
    assert "1" in output.splitlines()[-1]
    assert "5" in output.splitlines()[-1]


def test_the_tool_snippet_calls_and_answers(harness: Harness) -> None:
    output = run_python(harness, snippets("python")[1])
    assert 'get_weather {"city": "Paris"}' in output
    assert "18" in output.splitlines()[-1]


def test_the_structured_output_snippet_gives_the_object(harness: Harness) -> None:
    output = run_python(harness, snippets("python")[2])
    assert output.strip() == "{'name': 'Ada', 'city': 'Paris', 'age': 36}"
    assert output.strip() in README.read_text(encoding="utf-8")


def test_the_curl_line_answers(harness: Harness) -> None:
    (command,) = [snippet for snippet in snippets("sh") if snippet.startswith("curl")]
    done = subprocess.run(
        ["bash", "-c", command.replace(WRITTEN_URL, harness.url)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"chat.completion"' in done.stdout


def test_every_command_line_of_the_readme_names_the_program_where_make_puts_it() -> None:
    text = README.read_text(encoding="utf-8")
    bare = re.findall(r"^ *penstock .*|`penstock [a-z].*?`", text, re.MULTILINE)
    assert bare == []


def test_the_figures_of_the_readme_stand_in_the_pages_that_it_names() -> None:
    text = README.read_text(encoding="utf-8").split("Three numbers", 1)[1]
    text = text.split("\n- ", 1)[1].split("\n\n", 1)[0]
    pages = "".join(
        (README.parent / "docs" / name).read_text(encoding="utf-8")
        for name in ("performance.md", "reliability.md")
    )
    figures = re.findall(r"(?<![\w-])\d[\d,]*(?:\.\d+)?(?![\w-])", text.replace("503", ""))
    assert len(figures) > 6
    assert [figure for figure in figures if figure not in pages] == []


def test_every_subcommand_of_the_readme_exists() -> None:
    named = set(re.findall(r"\.venv/bin/penstock ([a-z-]+)", README.read_text(encoding="utf-8")))
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    assert {"chat", "keys"} <= named <= set(command.commands)

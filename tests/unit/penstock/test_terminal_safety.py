"""What others wrote never steers the terminal, wherever the command line shows it."""

import io
import json
import sys
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from penstock import admin_options, api_client, cli
from penstock.__main__ import main
from penstock.api_client import ApiClient
from penstock.chat import answer, converse
from penstock.parse import parse
from penstock.startup import StartupProgress
from penstock.terminal import visible, visible_json, visible_line

EVIL = "a\x1b]0;title\x07b\x1b[2J\x9b31m\x85\x7f\r\x08\u202egnp\u2066x\u2028y\u200f"
SHOWN = r"a\x1b]0;title\x07b\x1b[2J\x9b31m\x85\x7f\x0d\x08\u202egnp\u2066x\u2028y\u200f"  # one line


def is_harmless(text: str) -> bool:
    return all(
        char in "\t\n" or (ord(char) >= 32 and not 0x7F <= ord(char) < 0xA0) for char in text
    ) and not set(text) & set("\u061c\u200e\u200f\u2028\u2029\u202a\u202d\u202e\u2066\u2069")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tab\tand\nline", "tab\tand\nline"),
        (EVIL, SHOWN),
        ("\ud800", r"\ud800"),
        ("äöü 日本語 👩‍👩‍👧 العربية", "äöü 日本語 👩‍👩‍👧 العربية"),
        ("[red]not markup[/]", "[red]not markup[/]"),
    ],
)
def test_control_characters_are_shown_and_text_of_all_scripts_stays(
    text: str, expected: str
) -> None:
    assert visible(text) == expected


def test_every_control_character_is_escaped() -> None:
    for number in [*range(0x20), *range(0x7F, 0xA0)]:
        char = chr(number)
        assert (visible(char) == char) == (char in "\t\n")
        assert visible_line(char).isprintable()


def test_escaped_json_is_the_same_json() -> None:
    value = {"text": EVIL, "more": ["\n", "ü"]}
    text = visible_json(json.dumps(value, ensure_ascii=False, indent=2))
    assert is_harmless(text)
    assert "ü" in text
    assert json.loads(text) == value


def chunk(text: str) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n"


def client_of(reply: httpx.Response) -> ApiClient:
    return ApiClient("http://server", transport=httpx.MockTransport(lambda _: reply))


def test_an_answer_is_shown_escaped_and_remembered_as_it_was() -> None:
    reply = httpx.Response(200, text="".join(map(chunk, EVIL)) + "data: [DONE]\n\n")
    out = io.StringIO()
    messages: list[dict[str, str]] = []
    answer(client_of(reply), {}, messages, Console(file=out, force_terminal=True))
    assert out.getvalue() == f"{SHOWN}\n"
    assert messages[0]["content"] == EVIL


def test_a_models_name_is_neither_markup_nor_a_command() -> None:
    def end() -> str:
        raise EOFError

    out = io.StringIO()
    console = Console(file=out, force_terminal=True)
    client = client_of(httpx.Response(200, json={}))
    converse(client, {"model": "[/]\x1b[2J"}, [], console, end)
    assert r"Talking to [/]\x1b[2J; /exit" in out.getvalue()
    assert is_harmless(out.getvalue())


def test_an_error_in_a_dialogue_is_shown_escaped_and_the_dialogue_goes_on() -> None:
    lines = iter(["one", "two", "/exit"])
    reply = httpx.Response(503, json={"error": {"message": EVIL}})
    out = io.StringIO()
    messages: list[dict[str, str]] = []
    converse(client_of(reply), {"model": "m"}, messages, Console(file=out), lambda: next(lines))
    assert out.getvalue().count(f"503: {SHOWN}") == 2
    assert not messages


def test_a_line_that_is_no_utf8_is_not_the_end_of_a_dialogue() -> None:
    def decode() -> str:
        return next(lines).decode()

    lines = iter([b"\xff", b"/exit"])
    out = io.StringIO()
    client = client_of(httpx.Response(200, json={}))
    converse(client, {"model": "m"}, [], Console(file=out), decode)
    assert "not UTF-8" in out.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> dict[str, httpx.Response]:
    """What paths answer to the command line."""
    replies: dict[str, httpx.Response] = {}

    class Client(ApiClient):
        def __init__(self, url: str, api_key: str | None = None) -> None:
            transport = httpx.MockTransport(lambda request: replies[request.url.path])
            super().__init__(url, api_key, transport)

    monkeypatch.setattr(cli, "ApiClient", Client)
    monkeypatch.setattr(admin_options, "ApiClient", Client)
    monkeypatch.setattr(api_client, "ApiClient", Client)
    monkeypatch.setenv("PENSTOCK_ADMIN_KEY", "psk-x")
    return replies


def key_record(**fields: Any) -> dict[str, Any]:
    record = {"id": "key_1", "name": "n", "role": "user", "hint": "psk-…", "total_requests": 1}
    return {**record, "total_prompt_tokens": 1, "total_completion_tokens": 2, **fields}


def test_names_of_keys_are_neither_markup_nor_commands_nor_lines(
    server: dict[str, httpx.Response],
) -> None:
    names = [EVIL, "[red]x[/red]", "[/]", "two\nlines"]
    data = [key_record(name=name) for name in names]
    server["/v1/admin/keys"] = httpx.Response(200, json={"data": data})
    output = CliRunner().invoke(cli.app, ["keys", "list"]).output
    assert is_harmless(output)
    for shown in (SHOWN, "[red]x[/red]", "[/]", r"two\nlines"):
        assert sum(shown in line for line in output.splitlines()) == 1, shown


def test_a_servers_error_message_is_shown_escaped(
    server: dict[str, httpx.Response], capsys: pytest.CaptureFixture[str]
) -> None:
    server["/ping"] = httpx.Response(500, json={"error": {"message": EVIL}})
    with pytest.raises(SystemExit):
        main(["ping"])
    assert capsys.readouterr().err == f"penstock: 500: {SHOWN}\n"


def test_a_made_key_and_a_recorded_profile_are_shown_escaped(
    server: dict[str, httpx.Response],
) -> None:
    server["/v1/admin/keys"] = httpx.Response(201, json={"id": "k\x1b[2J", "key": "psk\x1b[2J"})
    server["/v1/admin/profile"] = httpx.Response(
        200, json={"directory": "/d\x1b[2J", "size_bytes": 1, "engine": "e\n"}
    )
    made = CliRunner().invoke(cli.app, ["keys", "create", "n"])
    recorded = CliRunner().invoke(cli.app, ["profile", "--model", "m"])
    assert is_harmless(made.stderr)
    assert (made.stdout, recorded.output) == (
        "psk\\x1b[2J\n",
        "/d\\x1b[2J (1 bytes, e\\n)\n",
    )


def test_progress_shows_names_and_details_as_they_are() -> None:
    for is_terminal in (False, True):
        out = io.StringIO()
        worker = {
            "model": "[/]\x1b[2J",
            "instance_id": "1",
            "phase": "loading",
            "detail": "[/]\x07",
        }
        progress = StartupProgress(Console(file=out, force_terminal=is_terminal, width=200))
        with progress:
            progress.show({"workers": [worker]})
        assert r"[/]\x1b[2J: loading weights" in out.getvalue()
        assert "\x07" not in out.getvalue()


def test_parsed_text_is_shown_as_harmless_json(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Done:
        returncode = 0
        stdout = json.dumps({"content": EVIL}, ensure_ascii=False)

    monkeypatch.setattr("penstock.parse.subprocess.run", lambda *_, **__: Done)
    assert parse(None, None, None, "") == 0
    sys.stdout.flush()
    output = capfd.readouterr().out
    assert is_harmless(output)
    assert json.loads(output) == {"content": EVIL}

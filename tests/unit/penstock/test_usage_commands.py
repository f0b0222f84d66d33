"""What `penstock usage` asks the server for, and the table that it prints."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from penstock import admin_options, cli
from penstock.api_client import ApiClient

Run = Callable[..., tuple[Result, list[str]]]
ROW = {
    "start_time": 1_900_026_000,  # 2030-03-18 01:00 UTC
    "end_time": 1_900_029_600,
    "model": "demo",
    "key_id": "key_1",
    "end_user": "ada",
    "num_requests": 3,
    "prompt_tokens": 40,
    "completion_tokens": 50,
    "cached_tokens": 6,
    "cost_micros": 1_250_000,
    "total_tokens": 90,
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command against a server that has these rows."""
    monkeypatch.delenv("PENSTOCK_ADMIN_KEY", raising=False)
    (tmp_path / "admin.key").write_text("psk-admin\n")

    def run_command(
        *words: str, rows: list[dict[str, Any]], pages: Sequence[list[dict[str, Any]]] = ()
    ) -> tuple[Result, list[str]]:
        asked: list[str] = []
        all_pages = [*pages, rows]

        def reply(request: httpx.Request) -> httpx.Response:
            asked.append(request.url.raw_path.decode())
            data = all_pages[len(asked) - 1]
            has_more = len(asked) < len(all_pages)
            return httpx.Response(200, json={"data": data, "has_more": has_more})

        def client(url: str, key: str) -> ApiClient:
            return ApiClient(url, key, transport=httpx.MockTransport(reply))

        monkeypatch.setattr(admin_options, "ApiClient", client)
        result = CliRunner().invoke(cli.app, ["usage", *words, "--data-dir", str(tmp_path)])
        return result, asked

    return run_command


def table(result: Result) -> list[list[str]]:
    """The cells of a printed table, headings first."""
    bars = str.maketrans("┃│", "||")
    lines = [line.translate(bars) for line in result.stdout.splitlines()]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]


@pytest.mark.parametrize(
    ("words", "headings", "cells"),
    [
        (["--group-by", "model"], ["day (UTC)", "model"], ["2030-03-18", "demo"]),
        (
            ["--by", "hour", "--group-by", "key", "--group-by", "end_user"],
            ["hour (UTC)", "key", "end user"],
            ["2030-03-18 01:00", "key_1", "ada"],
        ),
        (["--by", "total"], ["model"], ["demo"]),
    ],
)
def test_usage_is_a_table_with_words_for_headings_and_times(
    words: list[str], headings: list[str], cells: list[str], run: Run
) -> None:
    result, _ = run(*words, rows=[ROW])
    counted = ["requests", "prompt tokens", "completion tokens", "cached tokens", "cost"]
    assert table(result) == [[*headings, *counted], [*cells, "3", "40", "50", "6", "1.25"]]


def test_json_is_what_the_server_answered(run: Run) -> None:
    result, asked = run("--by", "hour", "--json", rows=[ROW])
    assert json.loads(result.stdout) == [ROW]
    assert asked == ["/v1/usage?of=all&by=hour&group_by=model&limit=1000&after=0"]


def test_a_row_that_others_moved_onto_the_next_page_is_told_once(run: Run) -> None:
    first, moved, more, last = (
        ROW | {"model": "a"},
        ROW | {"model": "b"},
        ROW | {"model": "b", "num_requests": 4, "cost_micros": 9, "total_tokens": 91},
        ROW | {"model": "b", "start_time": ROW["end_time"]},
    )
    result, asked = run("--json", pages=[[first, moved]], rows=[more, last])
    assert json.loads(result.stdout) == [first, more, last]
    assert [path.rpartition("=")[2] for path in asked] == ["0", "2"]

"""What `penstock workers` prints."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from penstock import admin_options, cli
from penstock.api_client import ApiClient

WORKER = {
    "name": "engine-1",
    "role": "engine",
    "model": "demo",
    "host": "gpu-7",
    "address": "10.0.0.7",
    "status": "healthy",
    "phase": "ready",
    "load": {"num_running": 3},
    "num_answered": 41,
    "num_failed": 2,
}


def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str, rows: list[dict[str, Any]]
) -> Result:
    monkeypatch.delenv("PENSTOCK_ADMIN_KEY", raising=False)
    (tmp_path / "admin.key").write_text("psk-admin\n")

    def reply(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/admin/workers"
        return httpx.Response(200, json={"object": "list", "data": rows})

    def client(url: str, key: str) -> ApiClient:
        return ApiClient(url, key, transport=httpx.MockTransport(reply))

    monkeypatch.setattr(admin_options, "ApiClient", client)
    return CliRunner().invoke(cli.app, ["workers", *words, "--data-dir", str(tmp_path)])


def test_each_worker_is_a_row_that_says_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = WORKER | {"name": "auth-1", "role": "auth", "model": None, "address": None}
    result = run(tmp_path, monkeypatch, rows=[WORKER, auth])
    assert result.exit_code == 0, result.output
    words = result.stdout.split()
    for word in ("engine-1", "demo", "gpu-7", "10.0.0.7", "healthy", "41", "auth-1"):
        assert word in words
    assert "None" not in result.stdout


def test_a_gateway_of_before_says_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = {name: value for name, value in WORKER.items() if name not in ("host", "address")}
    assert "engine-1" in run(tmp_path, monkeypatch, rows=[older]).stdout


def test_json_is_the_list_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(tmp_path, monkeypatch, "--json", rows=[WORKER])
    assert json.loads(result.stdout) == [WORKER]

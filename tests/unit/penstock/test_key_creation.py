"""What `penstock keys create` asks the server for."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from penstock import cli
from penstock.api_client import ApiClient


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ([], {}),
        (["--tenant", "team"], {"tenant": "team"}),
        (
            ["--rpm", "6", "--tpm", "70", "--role", "admin"],
            {"requests_per_minute": 6, "tokens_per_minute": 70, "role": "admin"},
        ),
    ],
)
def test_only_what_was_said_is_asked_for(
    options: list[str], fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return httpx.Response(201, json={"key": "psk-new"})

    def client(url: str, key: str) -> ApiClient:
        return ApiClient(url, key, transport=httpx.MockTransport(answer))

    monkeypatch.setattr(cli, "ApiClient", client)
    monkeypatch.delenv("PENSTOCK_ADMIN_KEY", raising=False)
    (tmp_path / "admin.key").write_text("psk-admin\n")
    command = ["keys", "create", "laptop", *options, "--data-dir", str(tmp_path)]
    result = CliRunner().invoke(cli.app, command)
    assert result.stdout == "psk-new\n"
    assert asked == [{"name": "laptop", "role": "user"} | fields]

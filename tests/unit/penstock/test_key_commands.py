"""What `penstock keys` and `penstock audit` ask the server for, and what they print."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from penstock import admin_options, cli
from penstock.api_client import ApiClient

Asked = list[tuple[str, str, Any]]
RECORD = {
    "object": "key",
    "id": "key_1",
    "name": "laptop",
    "role": "user",
    "owner": "ada",
    "hint": "psk-ab…wxyz",
    "status": "suspended",
    "total_requests": 3,
    "total_prompt_tokens": 4,
    "total_completion_tokens": 5,
    "allowed_models": ["demo*", "m"],
    "expires_at": None,
    "key": "psk-new",
}
ENTRY = {
    "seq": 7,
    "at_ms": 1,
    "actor": "key_1",
    "action": "key_created",
    "subject": "key_2",
    "outcome": "done",
    "address": "::1",
    "detail": {"role": "user"},
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, Asked]]:
    """Runs a command against a server that gives one answer."""
    monkeypatch.delenv("PENSTOCK_ADMIN_KEY", raising=False)
    (tmp_path / "admin.key").write_text("psk-admin\n")

    def run_command(*words: str, answer: Any = RECORD) -> tuple[Result, Asked]:
        asked: Asked = []

        def reply(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content) if request.content else None
            asked.append((request.method, request.url.raw_path.decode(), body))
            return httpx.Response(200, json=answer)

        def client(url: str, key: str) -> ApiClient:
            return ApiClient(url, key, transport=httpx.MockTransport(reply))

        monkeypatch.setattr(admin_options, "ApiClient", client)
        result = CliRunner().invoke(cli.app, [*words, "--data-dir", str(tmp_path)])
        return result, asked

    return run_command


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ([], {}),
        (["--tenant", "team"], {"tenant": "team"}),
        (
            ["--rpm", "6", "--tpm", "0", "--role", "admin"],
            {"requests_per_minute": 6, "tokens_per_minute": 0, "role": "admin"},
        ),
        (
            ["--model", "a*", "--model", "b", "--no-streaming", "--tools", "--metadata", "a=b=c"],
            {
                "allowed_models": ["a*", "b"],
                "enable_streaming": False,
                "enable_function_calling": True,
                "metadata": {"a": "b=c"},
            },
        ),
        (
            ["--allow", "10.0.0.0/8", "--block", "10.1.0.0/16", "--scope", "models.list"],
            {
                "allowed_ip_addresses": ["10.0.0.0/8"],
                "blocked_ip_addresses": ["10.1.0.0/16"],
                "scopes": ["models.list"],
            },
        ),
    ],
)
def test_only_what_was_said_is_asked_for(
    options: list[str], fields: dict[str, Any], run: Callable[..., tuple[Result, Asked]]
) -> None:
    result, asked = run("keys", "create", "laptop", *options)
    assert result.stdout == "psk-new\n"
    assert asked == [("POST", "/v1/admin/keys", {"name": "laptop"} | fields)]
    result, asked = run("keys", "update", "key 1/x", "--name", "pc", *options)
    assert asked == [("PATCH", "/v1/admin/keys/key%201%2Fx", {"name": "pc"} | fields)]


@pytest.mark.parametrize("words", [["create", "laptop"], ["rotate", "key_1"]])
def test_the_secret_alone_is_on_stdout_and_the_id_that_other_commands_take_on_stderr(
    words: list[str], run: Callable[..., tuple[Result, Asked]]
) -> None:
    result, _ = run("keys", *words)
    assert result.stdout == "psk-new\n"
    assert "key_1" in result.stderr
    assert "psk-new" not in result.stderr
    result, _ = run("keys", *words, "--json")
    assert (json.loads(result.stdout), result.stderr) == (RECORD, "")


def test_a_field_is_cleared_by_its_name(run: Callable[..., tuple[Result, Asked]]) -> None:
    _, asked = run("keys", "update", "key_1", "--clear", "expires_at", "--rpm", "0")
    assert asked[0][2] == {"requests_per_minute": 0, "expires_at": None}
    result, asked = run("keys", "update", "key_1")
    assert (result.exit_code == 0, asked) == (False, [])


@pytest.mark.parametrize(
    ("words", "method", "path"),
    [
        (["suspend"], "POST", "/suspend"),
        (["reactivate"], "POST", "/reactivate"),
        (["revoke"], "DELETE", "/revoke"),
        (["delete"], "DELETE", ""),
        (["rotate"], "POST", "/rotate"),
        (["show"], "GET", ""),
    ],
)
def test_each_command_on_a_key_is_its_route(
    words: list[str], method: str, path: str, run: Callable[..., tuple[Result, Asked]]
) -> None:
    result, asked = run("keys", *words, "key_1")
    assert result.exit_code == 0, result.output
    assert asked[0][:2] == (method, f"/v1/admin/keys/key_1{path}")


def test_a_rotated_key_may_overlap(run: Callable[..., tuple[Result, Asked]]) -> None:
    result, asked = run("keys", "rotate", "key_1", "--overlap-s", "60")
    assert (result.stdout, asked[0][2]) == ("psk-new\n", {"overlap_s": 60})


def test_keys_are_listed_by_what_was_asked(run: Callable[..., tuple[Result, Asked]]) -> None:
    page = {"data": [RECORD], "has_more": False}
    result, asked = run("keys", "list", "--status", "suspended", "--tag", "a b", answer=page)
    assert asked[0][1] == "/v1/admin/keys?limit=100&status=suspended&tag=a+b"
    for shown in ("key_1", "laptop", "ada", "suspended", "9"):
        assert shown in result.stdout
    _, asked = run("keys", "list", "--user", "user_1", "--team", "team_1", answer=page)
    assert asked[0][1] == "/v1/admin/keys?limit=100&user_id=user_1&team_id=team_1"
    result, _ = run("keys", "list", "--json", answer=page)
    assert json.loads(result.stdout) == [RECORD]
    closed = RECORD | {"status": "active", "closed_by": "team"}
    result, _ = run("keys", "list", answer={"data": [closed], "has_more": False})
    assert "closed by its team" in " ".join(result.stdout.split())


def test_a_record_is_a_table_or_json(run: Callable[..., tuple[Result, Asked]]) -> None:
    result, _ = run("keys", "show", "key_1")
    assert "demo*, m" in result.stdout
    result, _ = run("keys", "show", "key_1", "--json")
    assert json.loads(result.stdout) == RECORD


def test_a_records_times_are_readable_and_kept_as_the_options_take_them(
    run: Callable[..., tuple[Result, Asked]],
) -> None:
    record = RECORD | {"expires_at": 1_900_000_000, "last_used_at": 10**18}
    result, _ = run("keys", "show", "key_1", answer=record)
    assert "2030-03-17 17:46:40 UTC (1900000000)" in result.stdout
    assert str(10**18) in result.stdout


def test_counts_are_shown(run: Callable[..., tuple[Result, Asked]]) -> None:
    counted = {
        "num_keys": 3,
        "by_role": {"user": 2, "admin": 1},
        "by_status": {"active": 3},
        "histograms": {"last_used": {"never": 3, "day": 0}},
    }
    result, _ = run("keys", "stats", answer=counted | {"num_closed": 1})
    assert "closed by a user or team" in result.stdout
    result, asked = run("keys", "stats", answer=counted)
    assert "closed by" not in result.stdout
    assert asked[0][1] == "/v1/admin/keys/stats"
    assert "last_used" in result.stdout
    assert "day" not in result.stdout


def test_the_audit_log_is_listed_and_exported(run: Callable[..., tuple[Result, Asked]]) -> None:
    page = {"data": [ENTRY], "has_more": False}
    result, asked = run("audit", "list", "--key", "key_2", "--limit", "1", answer=page)
    assert asked[0][1] == "/v1/admin/audit-logs?limit=1&key_id=key_2"
    assert "key_created" in result.stdout
    assert "1970-01-01 00:00:00 UTC" in result.stdout
    result, _ = run("audit", "list", "--json", answer=page)
    assert json.loads(result.stdout) == [ENTRY]
    result, asked = run("audit", "export", "--since", "5", answer=page)
    assert asked[0][1] == "/v1/admin/audit-logs?limit=1000&since=5&order=asc"
    assert json.loads(result.stdout) == ENTRY

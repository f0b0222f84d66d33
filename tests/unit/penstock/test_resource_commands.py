"""What `penstock users|teams|limits|budgets|prices` ask the server for, and what they print."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from penstock import admin_options, cli
from penstock.api_client import ApiClient
from penstock.errors import UsageError
from penstock.fields import micros, money

Asked = list[tuple[str, str, Any]]
Run = Callable[..., tuple[Result, Asked]]
BUDGET = {
    "object": "budget",
    "id": "bud_1",
    "name": "search",
    "holder": "team",
    "holder_id": "team_1",
    "measure": "money",
    "amount": 20_500_000,
    "raised_by": 0,
    "window": "calendar_month",
    "models": ["demo*"],
    "is_hard": True,
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command against a server that gives one answer."""
    monkeypatch.delenv("PENSTOCK_ADMIN_KEY", raising=False)
    (tmp_path / "admin.key").write_text("psk-admin\n")

    def run_command(*words: str, answer: Any = BUDGET) -> tuple[Result, Asked]:
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
    ("words", "path", "body"),
    [
        (
            ["users", "create", "Ada", "--email", "a@b.c", "--role", "readonly", "--tag", "x"],
            "/v1/admin/users",
            {"name": "Ada", "email": "a@b.c", "role": "readonly", "tags": ["x"]},
        ),
        (
            ["users", "create", "ci", "--kind", "service_account", "--metadata", "a=b=c"],
            "/v1/admin/users",
            {"name": "ci", "kind": "service_account", "metadata": {"a": "b=c"}},
        ),
        (
            ["teams", "create", "search", "--shared-tenant", "--model", "demo*"],
            "/v1/admin/teams",
            {"name": "search", "tenant_is_shared": True, "allowed_models": ["demo*"]},
        ),
        (
            [
                *("limits", "create", "n", "--house", "--measure", "tokens"),
                *("--amount", "0", "--window", "day"),
            ],
            "/v1/admin/limits",
            {"name": "n", "holder": "house", "measure": "tokens", "amount": 0, "window": "day"},
        ),
        (
            [
                *("budgets", "create", "n", "--team", "team_1", "--amount", "20.5"),
                *("--window", "calendar_month", "--time-zone", "Europe/Berlin"),
                *("--warn-at", "50", "--warn-at", "90", "--soft", "--once"),
            ],
            "/v1/admin/budgets",
            {
                "name": "n",
                "holder": "team",
                "holder_id": "team_1",
                "amount": 20_500_000,
                "window": "calendar_month",
                "time_zone": "Europe/Berlin",
                "thresholds": [50, 90],
                "is_hard": False,
                "auto_renews": False,
            },
        ),
        (
            ["budgets", "create", "n", "--end-users-of", "key_1", "--amount", "1"],
            "/v1/admin/budgets",
            {"name": "n", "holder": "end_user", "holder_id": "key_1", "amount": 1_000_000},
        ),
        (
            ["prices", "create", "demo*", "--prompt", "0.15", "--completion", "0.6"],
            "/v1/admin/prices",
            {"models": "demo*", "prompt": 150_000, "completion": 600_000},
        ),
        (
            [
                *("webhooks", "create", "ops", "--url-to", "https://h.example/"),
                *("--event", "key_*", "--event", "budget_*"),
            ],
            "/v1/admin/webhooks",
            {"name": "ops", "url": "https://h.example/", "events": ["key_*", "budget_*"]},
        ),
    ],
)
def test_a_resource_is_made_of_what_was_said(
    words: list[str], path: str, body: dict[str, Any], run: Run
) -> None:
    result, asked = run(*words)
    assert asked == [("POST", path, body)]
    assert result.stdout == "bud_1\n"


@pytest.mark.parametrize(
    "words",
    [
        ["budgets", "create", "n", "--amount", "1"],
        ["budgets", "create", "n", "--amount", "1", "--house", "--team", "team_1"],
        ["budgets", "create", "n", "--house", "--amount", "-1"],
        ["budgets", "create", "n", "--house", "--amount", "1e9999999"],
        ["budgets", "create", "n", "--house", "--amount", "nan"],
        ["budgets", "create", "n", "--house", "--amount", "0.0000001"],
        ["prices", "create", "demo", "--prompt", "cheap"],
        ["teams", "update", "team_1"],
        ["users", "create", "Ada", "--metadata", "a"],
    ],
)
def test_what_makes_no_sense_is_not_asked_for(words: list[str], run: Run) -> None:
    result, asked = run(*words)
    assert isinstance(result.exception, UsageError)
    assert asked == []


@pytest.mark.parametrize(
    "words",
    [
        ["keys", "suspend", "k"],
        ["keys", "reactivate", "k"],
        ["keys", "revoke", "k"],
        ["keys", "delete", "k"],
        ["users", "suspend", "u"],
        ["webhooks", "reactivate", "w"],
        ["prices", "delete", "p"],
        ["teams", "add", "t", "u"],
        ["teams", "remove", "t", "u"],
    ],
)
def test_every_change_prints_what_the_server_answers_when_json_is_asked_for(
    words: list[str], run: Run
) -> None:
    result, _ = run(*words, "--json")
    assert json.loads(result.stdout) == BUDGET
    result, _ = run(*words)
    assert result.stdout.count("\n") == 1


def test_a_webhooks_secret_comes_from_a_file(tmp_path: Path, run: Run) -> None:
    secret = tmp_path / "secret"
    secret.write_text("whsec_abc\n")
    _, asked = run("webhooks", "update", "w", "--secret-file", str(secret))
    assert asked == [("PATCH", "/v1/admin/webhooks/w", {"secret": "whsec_abc"})]
    _, asked = run(
        *("webhooks", "create", "ops", "--url-to", "https://a.example", "--event", "key_*"),
        *("--secret-file", str(secret)),
        answer={"id": "w"},
    )
    assert asked[0][2]["secret"] == "whsec_abc"
    result, asked = run("webhooks", "update", "w", "--secret-file", str(tmp_path / "none"))
    assert isinstance(result.exception, UsageError)
    assert asked == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["users", "show", "u/1"], ("GET", "/v1/admin/users/u%2F1", None)),
        (["users", "suspend", "u"], ("POST", "/v1/admin/users/u/suspend", None)),
        (["teams", "reactivate", "t"], ("POST", "/v1/admin/teams/t/reactivate", None)),
        (["prices", "delete", "p"], ("DELETE", "/v1/admin/prices/p", None)),
        (
            ["teams", "add", "t", "u/1", "--role", "owner"],
            ("PUT", "/v1/admin/teams/t/members/u%2F1", {"role": "owner"}),
        ),
        (["teams", "remove", "t", "u"], ("DELETE", "/v1/admin/teams/t/members/u", None)),
        (
            ["budgets", "raise", "b", "--by", "5", "--until", "9"],
            ("POST", "/v1/admin/budgets/b/raise", {"by": 5_000_000, "until": 9}),
        ),
        (
            ["budgets", "update", "b", "--amount", "0", "--clear", "models"],
            ("PATCH", "/v1/admin/budgets/b", {"amount": 0, "models": None}),
        ),
        (
            ["teams", "update", "t", "--name", "n", "--separate-tenants"],
            ("PATCH", "/v1/admin/teams/t", {"name": "n", "tenant_is_shared": False}),
        ),
        (
            ["prices", "update", "p", "--completion", "1.25", "--valid-from", "9"],
            ("PATCH", "/v1/admin/prices/p", {"completion": 1_250_000, "valid_from": 9}),
        ),
    ],
)
def test_each_command_is_its_route(
    words: list[str], expected: tuple[str, str, Any], run: Run
) -> None:
    result, asked = run(*words)
    assert result.exit_code == 0, result.output
    assert asked == [expected]


def test_lists_show_money_as_money_and_filters_are_asked_for(run: Run) -> None:
    page = {"data": [BUDGET], "has_more": False}
    result, asked = run("budgets", "list", "--holder", "team", "--of", "team_1", answer=page)
    assert asked[0][1] == "/v1/admin/budgets?limit=100&holder=team&holder_id=team_1"
    for shown in ("bud_1", "team team_1", "20.50", "calendar_month", "demo*"):
        assert shown in result.stdout
    result, _ = run("budgets", "list", "--json", answer=page)
    assert json.loads(result.stdout) == [BUDGET]


def test_one_budget_and_one_price_show_money_as_money_and_a_limit_its_count(run: Run) -> None:
    result, _ = run("budgets", "show", "bud_1", answer=BUDGET | {"raised_by": 1_500_000})
    assert "20.50" in result.stdout
    assert "1.50" in result.stdout
    price = {"prompt": 150_000, "cached_prompt": None, "valid_from": 1_900_000_000, "version": 2}
    result, _ = run("prices", "show", "p", answer=price)
    assert "0.15" in result.stdout
    assert "2030-03-17 17:46:40 UTC (1900000000)" in result.stdout
    result, _ = run("limits", "show", "l", answer=BUDGET | {"measure": "tokens", "amount": 20})
    assert "20 " in result.stdout
    result, _ = run("budgets", "show", "bud_1", "--json")
    assert json.loads(result.stdout) == BUDGET


def test_the_headings_of_a_list_are_words(run: Run) -> None:
    price = {"id": "p", "models": "*", "version": 1, "valid_from": 1_900_000_000, "request": 0}
    amounts = dict.fromkeys(("prompt", "completion", "cached_prompt", "reasoning", "embedding"))
    page = {"data": [price | amounts, price | amounts | {"is_ended": True}], "has_more": False}
    result, _ = run("prices", "list", answer=page)
    assert "cached prompt" in result.stdout
    holds, ended = [line for line in result.stdout.splitlines() if " p " in line]
    assert "yes" not in holds
    assert "yes" in ended
    assert "2030-03-17 17:46:40 UTC" in result.stdout
    assert "_" not in result.stdout


def test_money_is_exact() -> None:
    assert [micros(text) for text in ("20", "0.15", "0", "0.000001", "9007199254.740991")] == [
        20_000_000,
        150_000,
        0,
        1,
        9_007_199_254_740_991,
    ]
    assert [money(amount) for amount in (20_000_000, 150_000, 1, -5_500_000, None)] == [
        "20.00",
        "0.15",
        "0.000001",
        "-5.50",
        "",
    ]

"""A deployment that requires keys: the first admin key, user keys, limits, revocation, booked
usage."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.e2e.harness import Harness, eventually

pytestmark = pytest.mark.process

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def admin(locked: Harness) -> Iterator[httpx.Client]:
    key = (locked.data_dir / "admin.key").read_text(encoding="utf-8").strip()
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=locked.url, headers=headers, trust_env=False) as client:
        yield client


def make_key(admin: httpx.Client, **body: object) -> dict[str, str]:
    response = admin.post("/v1/admin/keys", json={"name": "test", **body})
    assert response.status_code == 201, response.text
    created: dict[str, str] = response.json()
    return created


def test_the_first_admin_key_is_private_to_the_owner(locked: Harness) -> None:
    path = locked.data_dir / "admin.key"
    assert path.stat().st_mode & 0o077 == 0
    assert any(str(path) in line for line in locked.output) or path.exists()


def test_without_a_key_or_with_a_wrong_one_the_answer_is_401(locked: Harness) -> None:
    for key in ("", "psk-wrong"):
        with pytest.raises((openai.AuthenticationError, openai.APIConnectionError)) as info:
            client = locked.client(api_key=key or "x")
            client.chat.completions.create(model="penstock-demo", messages=HELLO)
        assert isinstance(info.value, openai.AuthenticationError)
        assert info.value.code == "invalid_api_key"


def test_a_key_works_until_it_is_revoked_and_its_usage_is_booked(
    locked: Harness, admin: httpx.Client
) -> None:
    created = make_key(admin)
    client = locked.client(api_key=created["key"])
    completion = client.chat.completions.create(
        model="penstock-demo", messages=HELLO, temperature=0, max_tokens=5
    )
    assert completion.usage is not None

    def record() -> dict[str, object]:
        page = admin.get("/v1/admin/keys").json()
        return next(key for key in page["data"] if key["id"] == created["id"])

    eventually(lambda: record()["total_requests"] == 1)
    assert record()["total_prompt_tokens"] == completion.usage.prompt_tokens
    assert record()["total_completion_tokens"] == completion.usage.completion_tokens
    assert created["key"] not in admin.get("/v1/admin/keys").text

    assert admin.delete(f"/v1/admin/keys/{created['id']}/revoke").status_code == 200
    with pytest.raises(openai.AuthenticationError, match="revoked"):
        client.chat.completions.create(model="penstock-demo", messages=HELLO)


def test_a_request_limit_is_a_429_with_the_time_to_wait(
    locked: Harness, admin: httpx.Client
) -> None:
    created = make_key(admin, requests_per_minute=1)
    client = locked.client(api_key=created["key"])
    client.chat.completions.create(model="penstock-demo", messages=HELLO, max_tokens=1)
    with pytest.raises(openai.RateLimitError) as info:
        client.chat.completions.create(model="penstock-demo", messages=HELLO, max_tokens=1)
    assert info.value.code == "rate_limit_exceeded"
    assert int(info.value.response.headers["retry-after"]) >= 1


def test_a_user_key_can_not_reach_admin_routes(locked: Harness, admin: httpx.Client) -> None:
    created = make_key(admin)
    response = httpx.get(
        f"{locked.url}/v1/admin/keys",
        headers={"Authorization": f"Bearer {created['key']}"},
        trust_env=False,
    )
    assert response.status_code == 403


def test_the_command_line_makes_lists_and_revokes_keys(
    locked: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    from penstock.__main__ import main

    def run(*arguments: str) -> str:
        where = ("--url", locked.url, "--data-dir", str(locked.data_dir))
        with pytest.raises(SystemExit) as info:
            main(["keys", *arguments, *where])
        assert info.value.code in (0, None)
        return capsys.readouterr().out

    key = run("create", "from-the-command-line").strip()
    assert key.startswith("psk-")
    listed = run("list")
    assert "from-the-command-line" in listed
    assert key not in listed
    row = next(line for line in listed.splitlines() if "from-the-command" in line)
    key_id = next(cell for cell in row.split() if cell.startswith("key"))
    assert "revoked" in run("revoke", key_id)

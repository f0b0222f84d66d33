"""Bearer tokens over HTTP: a real gateway, a real auth worker process, an issuer on loopback."""

import base64
import hmac
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol.wire.endpoints import Endpoint
from tests.fakes.auth_process import AuthProcess, auth_process
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway
from tests.fakes.token_issuer import TokenIssuer, rsa_key, token_issuer

pytestmark = pytest.mark.process

CHAT = {"model": "demo", "messages": MESSAGES}


@dataclass
class Harness:
    gateway: RunningGateway
    auth: AuthProcess
    issuer: TokenIssuer

    def token(self, **fields: Any) -> str:
        return self.issuer.token(now_s=time.time(), **fields)

    async def chat(self, token: str) -> httpx.Response:
        return await self.gateway.client.post(
            "/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {token}"}
        )


@pytest_asyncio.fixture
async def harness(socket_dir: Path) -> AsyncIterator[Harness]:
    with token_issuer() as issuer:
        async with running_gateway(socket_dir, require_keys=True) as gateway:
            settings = {
                "PENSTOCK_JWT_ISSUER": issuer.issuer,
                "PENSTOCK_JWT_AUDIENCE": "penstock",
                "PENSTOCK_JWT_ROLES": "groups=chiefs:admin,groups=watch:readonly",
                "PENSTOCK_INTERNAL_TARGETS": "127.0.0.0/8",
            }
            async with auth_process(gateway, **settings) as auth:
                await gateway.engine()
                yield Harness(gateway, auth, issuer)


def b64(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def test_a_token_opens_what_its_role_may_and_is_on_record(harness: Harness) -> None:
    token = harness.token(sub="grace")
    for _ in range(3):
        assert (await harness.chat(token)).status_code == 200
    by_header = {"X-API-Key": token}
    assert (await harness.gateway.client.get("/v1/models", headers=by_header)).status_code == 200
    refused = await harness.gateway.client.get("/v1/admin/keys", headers=by_header)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")

    watch = {"Authorization": f"Bearer {harness.token(groups=['watch'])}"}
    assert (await harness.gateway.client.get("/v1/models", headers=watch)).status_code == 200
    chat = await harness.gateway.client.post("/v1/chat/completions", json=CHAT, headers=watch)
    assert chat.status_code == 403

    chief = {"Authorization": f"Bearer {harness.token(sub='chief', groups=['chiefs'])}"}
    made = await harness.gateway.client.post("/v1/admin/keys", json={"name": "k"}, headers=chief)
    assert made.status_code == 201
    log = await harness.gateway.client.get("/v1/admin/audit-logs", headers=chief)
    logins = [one for one in log.json()["data"] if one["action"] == "token_accepted"]
    assert len(logins) == 3
    assert {one["actor"] for one in logins} == {one["subject"] for one in logins}
    created = [one for one in log.json()["data"] if one["action"] == "key_created"]
    assert created[0]["actor"].startswith("token_")
    assert token not in log.text + harness.auth.log.read_text(encoding="utf-8")
    assert "grace" not in log.text


async def test_a_repeated_change_with_the_next_token_of_the_same_person_is_answered_again(
    harness: Harness,
) -> None:
    async def make(sub: str, **claims: Any) -> httpx.Response:
        token = harness.token(sub=sub, groups=["chiefs"], **claims)
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "one"}
        return await harness.gateway.client.post(
            "/v1/admin/keys", json={"name": "ci"}, headers=headers
        )

    def restart() -> None:
        """What a gateway knows of answers is gone with its process."""
        table = harness.gateway.application.parts.replays
        table._kept.clear()
        table._of_tenant.clear()

    first = await make("chief")
    assert first.status_code == 201
    restart()
    again = await make("chief", jti="refreshed")
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    restart()
    other = await make("another")
    assert other.status_code == 201
    assert other.json()["key"] != first.json()["key"]
    secret = first.json()["key"].encode()
    for path in harness.auth.data_dir.glob("auth.sqlite3*"):
        assert secret not in path.read_bytes()


async def test_tokens_that_are_none_are_a_401_that_says_why(harness: Harness) -> None:
    claims = harness.token().split(".")[1]
    public = rsa_key("one").public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    confused = f"{b64({'alg': 'HS256', 'kid': 'one'})}.{claims}"
    bad = {
        "has expired": harness.token(exp=int(time.time()) - 1),
        "another issuer": harness.token(iss="https://foreign.example"),
        "another service": harness.token(aud="somebody-else"),
        "signature": harness.token(key=rsa_key("foreign")),
        "isn't signed": f"{b64({'alg': 'none'})}.{claims}.",
        "public key": f"{confused}.{b64(hmac.digest(pem, confused.encode(), 'sha256'))}",
        "key is unknown": harness.token(kid="two", key=rsa_key("two")),
    }
    for why, token in bad.items():
        for method, path in (
            ("POST", "/v1/chat/completions"),
            ("GET", "/v1/models"),
            ("GET", "/v1/admin/keys"),
            ("POST", "/tokenize"),
        ):
            headers = {"Authorization": f"Bearer {token}"}
            response = await harness.gateway.client.request(
                method, path, json=CHAT, headers=headers
            )
            assert response.status_code == 401, (why, path, response.text)
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert why in response.json()["error"]["message"] or why in ("isn't signed",)


async def test_a_token_and_a_key_that_differ_are_a_401(harness: Harness) -> None:
    headers = {
        "Authorization": f"Bearer {harness.token()}",
        "X-API-Key": harness.auth.admin_key,
    }
    response = await harness.gateway.client.get("/v1/models", headers=headers)
    assert response.status_code == 401
    assert "differ" in response.json()["error"]["message"]


async def test_while_the_issuer_is_gone_tokens_of_known_keys_go_on(harness: Harness) -> None:
    assert (await harness.chat(harness.token())).status_code == 200
    harness.issuer.is_gone = True
    assert (await harness.chat(harness.token(sub="new"))).status_code == 200


async def test_another_auth_worker_asks_for_the_token_again(harness: Harness) -> None:
    token = harness.token()
    assert (await harness.chat(token)).status_code == 200
    harness.auth.process.kill()
    harness.auth.process.wait()
    await harness.gateway.until(lambda: not harness.gateway.application.auth.is_ready)
    settings = {
        "PENSTOCK_JWT_ISSUER": harness.issuer.issuer,
        "PENSTOCK_JWT_AUDIENCE": "penstock",
        "PENSTOCK_INTERNAL_TARGETS": "127.0.0.0/8",
        "PENSTOCK_ADMIN_KEY": harness.auth.admin_key,
    }
    async with auth_process(harness.gateway, **settings):
        assert (await harness.chat(token)).status_code == 200


async def test_tokens_never_cross_a_socket_that_others_can_read(
    socket_dir: Path, unused_tcp_port: int
) -> None:
    endpoint = Endpoint(f"tcp://127.0.0.1:{unused_tcp_port}", "127.0.0.1", unused_tcp_port)
    async with running_gateway(socket_dir, require_keys=True, auth_endpoint=endpoint) as gateway:
        response = await gateway.client.get(
            "/v1/models", headers={"Authorization": "Bearer eyJhbGciOiJSUzI1NiJ9.e30.x"}
        )
        assert response.status_code == 401
        assert "plain TCP" in response.json()["error"]["message"]

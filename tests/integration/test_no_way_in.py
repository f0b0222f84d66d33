"""Every route with every credential that must not open it, and no secret in anything that is kept.

A gateway and an auth worker as processes that log all they can, an issuer of tokens on loopback.
"""

import asyncio
import base64
import contextlib
import hmac
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.http.access.route_rules import ROUTE_RULES, Access
from tests.fakes.every_route import SCORING, body_of, call
from tests.fakes.fake_workers import FakeEngine
from tests.fakes.running_gateway import MESSAGES
from tests.fakes.token_issuer import TokenIssuer, rsa_key, token_issuer

pytestmark = pytest.mark.process

WAIT_S = 60.0
CHAT = {"model": "demo", "messages": MESSAGES}
OF_MODELS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages"),
    *("/v1/responses", "/v1/responses/input_tokens", "/v1/messages/count_tokens"),
    *("/tokenize", "/detokenize", *SCORING),
)
"""Routes whose body names a model."""


@dataclass
class Harness:
    """Processes, and whatever they have said to anybody.

    Attributes:
        secrets: What must stand nowhere, by what it is.
        said: Everything that was answered but for the answers that show a new key.
    """

    folder: Path
    issuer: TokenIssuer
    admin_key: str
    client: httpx.AsyncClient
    processes: dict[str, subprocess.Popen[bytes]]
    secrets: dict[str, str] = field(default_factory=dict)
    said: list[bytes] = field(default_factory=list)

    @property
    def admin(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.admin_key}"}

    async def key(self, name: str, **fields: Any) -> str:
        """Make a key; its secret."""
        body = {"name": name, **fields}
        made = await self.client.post("/v1/admin/keys", json=body, headers=self.admin)
        assert made.status_code == 201, made.text
        self.secrets[name] = made.json()["key"]
        return str(made.json()["id"])

    async def end(self, action: str, key_id: str) -> None:
        method = "DELETE" if action == "revoke" else "POST"
        url = f"/v1/admin/keys/{key_id}/{action}"
        done = await self.client.request(method, url, headers=self.admin)
        assert done.status_code == 200, done.text
        if action == "rotate":
            self.secrets["new after rotation"] = done.json()["key"]

    async def told(self, path: str, **headers: str) -> httpx.Response:
        answer = await self.client.get(path, headers=self.admin | headers)
        assert answer.status_code == 200, (path, answer.text)
        self.hear(answer)
        return answer

    def hear(self, answer: httpx.Response) -> None:
        self.said.append(answer.content)
        self.said.append(str(answer.headers.raw).encode())

    def kept(self) -> Iterator[tuple[str, bytes]]:
        """All that can be read of the run: answers, logs, files, command lines."""
        yield "an answer", b"\n".join(self.said)
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                yield str(path.relative_to(self.folder)), path.read_bytes()
        for name, process in self.processes.items():
            yield f"argv of {name}", Path(f"/proc/{process.pid}/cmdline").read_bytes()


@pytest_asyncio.fixture
async def harness(socket_dir: Path) -> AsyncIterator[Harness]:
    admin_key = f"psk-{secrets.token_urlsafe(32)}"
    engine = FakeEngine(socket_dir)
    with token_issuer() as issuer:
        environ = {
            **os.environ,
            "PENSTOCK_ENGINE_ENDPOINT": f"ipc://{socket_dir}/engine",
            "PENSTOCK_AUTH_ENDPOINT": f"ipc://{socket_dir}/auth",
            "PENSTOCK_TOOLPARSER_ENDPOINT": f"ipc://{socket_dir}/toolparser",
            # So that probes and documentation ask for a key as well.
            "PENSTOCK_HOST": "0.0.0.0",
            "PENSTOCK_PORT": "0",
            "PENSTOCK_PORT_FILE": str(socket_dir / "port"),
            "PENSTOCK_REQUIRE_KEYS": "true",
            "PENSTOCK_ADMIN_KEY": admin_key,
            "PENSTOCK_MODELS": "demo",
            "PENSTOCK_LOG_LEVEL": "debug",
            "PENSTOCK_JWT_ISSUER": issuer.issuer,
            "PENSTOCK_JWT_AUDIENCE": "penstock",
            "PENSTOCK_JWT_ROLES": "groups=chiefs:admin",
            "PENSTOCK_INTERNAL_TARGETS": "127.0.0.0/8",
        }
        processes = {}
        for name in ("gateway", "auth_worker"):
            own = environ | {"PENSTOCK_DATA_DIR": str(socket_dir / f"{name}-data")}
            if name == "gateway":
                del own["PENSTOCK_ADMIN_KEY"]
            with (socket_dir / f"{name}.log").open("ab") as log:
                processes[name] = subprocess.Popen(  # noqa: ASYNC220 - it starts in no time
                    [sys.executable, "-m", name], env=own, stdout=log, stderr=log
                )
        client = httpx.AsyncClient(timeout=120.0, trust_env=False)
        harness = Harness(socket_dir, issuer, admin_key, client, processes)
        harness.secrets["PENSTOCK_ADMIN_KEY"] = admin_key
        engine.start()
        try:
            async with asyncio.timeout(WAIT_S):
                await _until_ready(harness)
            yield harness
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
            await engine.stop()
            await client.aclose()


async def _until_ready(harness: Harness) -> None:
    while True:
        for name, process in harness.processes.items():
            assert process.poll() is None, (harness.folder / f"{name}.log").read_text()
        with contextlib.suppress(OSError, httpx.HTTPError):
            port = (harness.folder / "port").read_text().strip()
            harness.client.base_url = httpx.URL(f"http://127.0.0.1:{port}")
            if (await harness.client.get("/ready")).status_code == 200:
                return
        await asyncio.sleep(0.05)


async def guarded_routes(harness: Harness) -> list[tuple[str, str]]:
    """Method and template of every route that asks for a key, as the gateway documents them."""
    document = (await harness.told("/openapi.json")).json()
    found = {
        template: [method.upper() for method in methods if method in ("get", "post", "delete")]
        + [method.upper() for method in methods if method in ("patch", "put")]
        for template, methods in document["paths"].items()
    }
    guarded = {
        template.replace(":path}", "}"): template
        for template, rule in ROUTE_RULES.items()
        if rule.access is not Access.OPEN
    }
    # The document leaves itself and its page out.
    found |= {path: ["GET"] for path in guarded if path not in found}
    return [
        (method, guarded[template])
        for template, methods in sorted(found.items())
        if template in guarded
        for method in methods
    ]


def bad_tokens(harness: Harness) -> dict[str, str]:
    """Tokens that are none for this server."""
    now_s = time.time()
    good: dict[str, Any] = {"groups": ["chiefs"]}
    public = rsa_key("one").public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def signed(header: dict[str, str], sign: Any) -> str:
        claims = {
            "iss": harness.issuer.issuer,
            "aud": "penstock",
            "sub": "eve",
            **good,
            "iat": int(now_s),
            "exp": int(now_s) + 600,
        }
        parts = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
            for part in (header, claims)
        ]
        signature = sign(".".join(parts).encode())
        return ".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=").decode()])

    return {
        "foreign token": harness.issuer.token(now_s=now_s, iss="https://elsewhere.example", **good),
        "expired token": harness.issuer.token(now_s=now_s - 7200, **good),
        "token for another audience": harness.issuer.token(now_s=now_s, aud="another", **good),
        "token of another key": harness.issuer.token(now_s=now_s, key=rsa_key("two"), **good),
        "token with alg none": signed({"alg": "none", "kid": "one"}, lambda data: b""),
        "token signed with the public key": signed(
            {"alg": "HS256", "kid": "one"}, lambda data: hmac.digest(pem, data, "sha256")
        ),
    }


async def bad_credentials(harness: Harness) -> dict[str, tuple[dict[str, str], int]]:
    """Headers that open nothing, by what is wrong with them, and the status that says so."""
    await harness.key("expired", expires_at=int(time.time()) + 2)
    expires_s = time.time() + 2
    for action in ("suspend", "revoke", "rotate"):
        name = {"suspend": "suspended", "revoke": "revoked", "rotate": "old after rotation"}[action]
        await harness.end(action, await harness.key(name, role="admin"))
    await harness.key("without scopes", role="admin", scopes=[])
    await harness.key("from elsewhere", role="admin", allowed_ip_addresses=["203.0.113.0/24"])
    await harness.key("blocked here", role="admin", blocked_ip_addresses=["127.0.0.0/8"])
    await harness.key("for another route", role="admin", allowed_endpoints=["/v1/nothing"])
    harness.secrets["wrong"] = f"psk-{secrets.token_urlsafe(32)}"
    harness.secrets["no key at all"] = "Zm9vYmFyIHNlY3JldCB0aGF0IGlzIG5vIGtleQ"
    harness.secrets |= bad_tokens(harness)
    refused = {"without scopes", "from elsewhere", "blocked here", "for another route"}
    opening = {"PENSTOCK_ADMIN_KEY", "new after rotation"}
    await asyncio.sleep(max(0.0, expires_s + 0.1 - time.time()))
    tried: dict[str, tuple[dict[str, str], int]] = {"nothing": ({}, 401)}
    for name, secret in harness.secrets.items():
        if name not in opening:
            headers = {"Authorization": f"Bearer {secret}"}
            tried[name] = (headers, 403 if name in refused else 401)
    tried["two that differ"] = (harness.admin | {"X-API-Key": harness.secrets["wrong"]}, 401)
    return tried


@pytest.mark.parametrize("one_of", [5, pytest.param(1, marks=pytest.mark.long)])
async def test_no_route_opens_to_a_bad_credential_and_no_secret_is_in_any_output(
    harness: Harness, one_of: int
) -> None:
    """Every route without any credential and with one of so many bad ones, which are other ones at
    the next route."""
    tried = await bad_credentials(harness)
    routes = await guarded_routes(harness)
    guarded = {path for path, rule in ROUTE_RULES.items() if rule.access is not Access.OPEN}
    assert {template for _, template in routes} == guarded
    for number, (method, template) in enumerate(routes):
        for turn, (name, (headers, status)) in enumerate(tried.items()):
            if turn and (number + turn) % one_of:
                continue
            answer = await call(harness.client, method, template, headers)
            harness.hear(answer)
            where = (method, template, name, answer.status_code, answer.text)
            assert answer.status_code == status, where

    # What a key may not have of a route that it may use.
    await harness.key("for another model", role="service", allowed_models=["other*"])
    headers = {"Authorization": f"Bearer {harness.secrets['for another model']}"}
    for template in OF_MODELS:
        body = body_of(template) | {"model": "demo"}
        answer = await harness.client.post(template, json=body, headers=headers)
        harness.hear(answer)
        assert answer.status_code == 403, (template, answer.text)

    # And some that go through, so that there is something to be told of.
    await harness.key("good", role="service")
    token = harness.issuer.token(now_s=time.time(), groups=["chiefs"], sub="grace")
    harness.secrets["good token"] = token
    for secret in (harness.secrets["good"], harness.secrets["new after rotation"], token):
        answer = await harness.client.post(
            "/v1/chat/completions", json=CHAT, headers={"X-API-Key": secret}
        )
        harness.hear(answer)
        assert answer.status_code == 200, answer.text
    in_url = await harness.client.get("/v1/models", params={"api_key": harness.secrets["good"]})
    assert in_url.status_code == 401
    harness.hear(in_url)

    for path in ("/v1/admin/keys", "/v1/usage", "/v1/admin/workers", "/load"):
        await harness.told(path)
    harness.hear(
        await harness.client.get("/health", headers=harness.admin)
    )  # without a parser a 503
    await harness.told("/metrics")
    await harness.told("/metrics", Accept="application/json")
    audit = await harness.told("/v1/admin/audit-logs?limit=1000")
    assert {"request_refused", "key_created", "token_accepted"} <= {
        entry["action"] for entry in audit.json()["data"]
    }
    looked = 0
    for place, data in harness.kept():
        looked += len(data)
        for name, secret in harness.secrets.items():
            assert secret.encode() not in data, (name, place)
            if name.endswith("token") or "token " in name:
                # What is left of a token is no use without its signature, and holds personal data.
                assert secret.split(".")[1].encode() not in data, (name, place)
    assert looked > 100_000

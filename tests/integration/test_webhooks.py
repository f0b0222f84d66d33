"""Webhooks over HTTP: a real gateway, a real auth worker process, and a target on loopback."""

import asyncio
import base64
import hmac
import json
from pathlib import Path

import pytest

from tests.fakes.auth_process import auth_process
from tests.fakes.http_target import Received, http_target
from tests.fakes.running_gateway import running_gateway

pytestmark = pytest.mark.process


def verified(received: Received, secret: str) -> dict[str, object]:
    """The event of a request whose signature holds."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{received.headers['webhook-id']}.{received.headers['webhook-timestamp']}.".encode()
    digest = hmac.new(key, signed + received.body, "sha256").digest()
    assert received.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    event: dict[str, object] = json.loads(received.body)
    return event


async def test_what_an_administrator_does_is_told_signed_also_after_a_kill(
    socket_dir: Path,
) -> None:
    listed = {"PENSTOCK_INTERNAL_TARGETS": "127.0.0.0/8"}
    with http_target() as target:
        async with running_gateway(socket_dir, require_keys=True) as gateway:
            async with auth_process(gateway, **listed) as auth, auth.admin(gateway) as admin:
                body = {"name": "ops", "url": f"{target.url}/hook", "events": ["key_*"]}
                made = (await admin.post("/v1/admin/webhooks", json=body)).json()
                secret = made["secret"]
                key = (await admin.post("/v1/admin/keys", json={"name": "k"})).json()
                (first,) = await asyncio.to_thread(target.wait_for, 1)
                assert (first.method, first.path) == ("POST", "/hook")
                event = verified(first, secret)
                assert event["type"] == "key_created"
                assert key["key"] not in first.body.decode()
                shown = await admin.get(f"/v1/admin/webhooks/{made['id']}")
                assert "secret" not in shown.json()
                assert secret not in shown.text
                log = await admin.get("/v1/admin/audit-logs")
                assert secret not in log.text
                # Refused, and the auth worker dies before it comes again.
                target.answer = lambda received: (503, b"", {})
                assert (await admin.delete(f"/v1/admin/keys/{key['id']}/revoke")).status_code == 200
                await asyncio.to_thread(target.wait_for, 2)
            target.answer = lambda received: (200, b"", {})
            async with auth_process(gateway, **listed, PENSTOCK_ADMIN_KEY=auth.admin_key):
                received = await asyncio.to_thread(target.wait_for, 3)
    again = verified(received[2], secret)
    assert again["type"] == "key_revoked"
    assert received[1].headers["webhook-id"] == received[2].headers["webhook-id"]
    assert secret not in auth.log.read_text(encoding="utf-8")


async def test_addresses_inside_are_not_asked_unless_they_are_listed(socket_dir: Path) -> None:
    with http_target() as victim, http_target() as target:
        target.answer = lambda received: (307, b"", {"Location": victim.url})
        async with (
            running_gateway(socket_dir, require_keys=True) as gateway,
            auth_process(gateway) as auth,
            auth.admin(gateway) as admin,
        ):
            port = victim.url.rpartition(":")[2]
            for url in (victim.url, f"https://127.0.0.1:{port}/", f"https://[::1]:{port}/"):
                body = {"name": "x", "url": url, "events": ["*"]}
                refused = await admin.post("/v1/admin/webhooks", json=body)
                assert (refused.status_code, refused.json()["error"]["param"]) == (400, "url")
            # A name is looked up when it is used, and leads nowhere either.
            body = {"name": "x", "url": f"https://localhost:{port}/", "events": ["*"]}
            made = (await admin.post("/v1/admin/webhooks", json=body)).json()

            async def last_error() -> str:
                shown = await admin.get(f"/v1/admin/webhooks/{made['id']}")
                error: str = shown.json()["last_error"]
                return error

            async with asyncio.timeout(60):
                while not await last_error():  # noqa: ASYNC110
                    await asyncio.sleep(0.1)  # it is another process's and tells nobody
            assert "PENSTOCK_INTERNAL_TARGETS" in await last_error()
        assert victim.received == []


async def test_a_sliding_budget_that_passes_its_threshold_is_told_once(socket_dir: Path) -> None:
    with http_target() as target:
        async with (
            running_gateway(socket_dir, require_keys=True) as gateway,
            auth_process(gateway, PENSTOCK_INTERNAL_TARGETS="127.0.0.0/8") as auth,
            auth.admin(gateway) as admin,
        ):
            await gateway.engine()

            async def make(kind: str, **body: object) -> dict[str, str]:
                made = await admin.post(f"/v1/admin/{kind}", json=body)
                assert made.status_code == 201, made.text
                record: dict[str, str] = made.json()
                return record

            hook = await make("webhooks", name="ops", url=target.url, events=["budget_warned"])
            await make("prices", models="*", prompt=0, completion=0, request=450)
            key = await make("keys", name="k")
            holder = {"holder": "key", "holder_id": key["id"]}
            budget = await make(
                "budgets", name="b", **holder, amount=1000, window="day", thresholds=[40, 80]
            )
            gateway.client.headers["Authorization"] = f"Bearer {key['key']}"
            for _ in range(2):
                assert (await gateway.chat()).status_code == 200
            received = await asyncio.to_thread(target.wait_for, 2)
            events = [verified(one, hook["secret"]) for one in received]
            assert [event["type"] for event in events] == ["budget_warned"] * 2
            entries = [event["data"] for event in events]
            details = [entry["detail"] for entry in entries if isinstance(entry, dict)]
            assert [(one["percent"], one["used"], one["window"]) for one in details] == [
                (40, 450, "day"),
                (80, 900, "day"),
            ]
            found = await admin.get("/v1/admin/audit-logs", params={"action": "budget_warned"})
            assert [entry["subject"] for entry in found.json()["data"]] == [budget["id"]] * 2

"""Which keys OpenAI's list of administrators' keys has, page by page."""

from typing import Any

import orjson
import pytest
from fastapi import Request

from gateway.http.routes.organization import projects
from protocol.wire.messages import KeyDetails, KeySettings, KeysFound, KeyStatus

STATUSES: tuple[KeyStatus, ...] = ("active", "revoked", "revoked", "revoked", "suspended", "active")


async def test_revoked_keys_are_left_out_and_pages_go_on_behind_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = [
        KeyDetails(
            key_id=f"key_{number}",
            hint="h",
            status=status,
            settings=KeySettings(name="k", role="admin"),
            tenant_id="",
            created_at=1,
        )
        for number, status in enumerate(STATUSES)
    ]

    async def find_keys(_request: Request, *, limit: int, after_key_id: str, **_: Any) -> KeysFound:
        begin = int(after_key_id.removeprefix("key_")) + 1 if after_key_id else 0
        end = begin + limit
        return KeysFound(request_id="r", keys=tuple(keys[begin:end]), has_more=end < len(keys))

    monkeypatch.setattr(projects, "find_keys", find_keys)
    listed: list[list[str]] = []
    has_more, after = True, ""
    while has_more:
        query = b"limit=1" + (f"&after={after}".encode() if after else b"")
        request = Request({"type": "http", "query_string": query, "headers": []})
        page = orjson.loads((await projects.list_admin_keys(request)).body)
        listed.append([key["id"] for key in page["data"]])
        has_more, after = page["has_more"], page["last_id"]
    assert listed == [["key_0"], ["key_4"], ["key_5"]]

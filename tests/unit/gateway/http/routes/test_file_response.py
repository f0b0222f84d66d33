"""The content of a file on its way to a client: whole, and let go of whatever the client does."""

from pathlib import Path
from typing import Any

from gateway.http.routes.stored.files import FileResponse

SCOPE: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0"}, "method": "GET"}


async def test_a_file_is_closed_when_its_client_is_gone_before_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1_000_000)
    sent: list[bytes] = []

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    file = path.open("rb", 0)
    await FileResponse(file)(SCOPE, gone, send)
    assert file.closed
    # One that stays gets all of it.
    file = path.open("rb", 0)
    scope = SCOPE | {"asgi": {"version": "3.0", "spec_version": "2.4"}}
    await FileResponse(file)(scope, gone, send)
    assert file.closed
    assert b"".join(sent) == path.read_bytes()

"""Forms without end, that stop midway or hold too much: refused in bounds, and nothing stays."""

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.http.bodies import uploads
from gateway.http.bodies.multipart import MAX_FIELD_BYTES
from gateway.http.routes.stored.files import MAX_UPLOADS
from tests.fakes.raw_http import Connection, answers, connected, error_code
from tests.fakes.running_gateway import RunningGateway, running_gateway

MAX_FILE_BYTES = 1_000_000
HEAD = (
    b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
)
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
CHAT = "/v1/chat/completions"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def kept(directory: Path) -> list[Path]:
    """What lies in the folders of files."""
    return [path for path in (directory / "data" / "files").glob("*/*") if path.is_file()]


async def flood(connection: Connection, piece: bytes, pause_s: float = 0.0) -> tuple[int, bytes]:
    """Send a piece again and again until the server has had enough: how many, and its answer."""
    num_pieces, told = 0, b""
    reading = asyncio.ensure_future(connection.reader.read())
    async with asyncio.timeout(60):
        with suppress(OSError):  # it may hang up on us
            while not reading.done():
                connection.writer.write(chunk(piece))
                await connection.writer.drain()
                await asyncio.sleep(pause_s)
                num_pieces += 1
        with suppress(OSError):
            told = await reading
    return num_pieces, told


@pytest.mark.parametrize(
    ("beginning", "most"),
    [
        (FILE, MAX_FILE_BYTES),
        (b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n', MAX_FIELD_BYTES),
        (b"--b\r\nX-Endless: ", MAX_FIELD_BYTES),
        (b"", MAX_FILE_BYTES + 2 * MAX_FIELD_BYTES),
    ],
)
async def test_a_form_without_end_is_cut_off_at_its_bound(
    socket_dir: Path, beginning: bytes, most: int
) -> None:
    async with running_gateway(socket_dir, max_file_bytes=MAX_FILE_BYTES) as gateway:
        await gateway.auth()
        async with connected(gateway) as connection:
            connection.writer.write(HEAD + chunk(beginning or b"prose"))
            piece = b"x" * 65_536
            num_pieces, told = await flood(connection, piece)
        # The bound, and what sockets hold on the way.
        assert num_pieces * len(piece) <= most + 16 * 2**20
        for status, _ in answers(told):
            assert status in (400, 413)
        await gateway.until(lambda: not kept(socket_dir))
        await can_upload(gateway)


async def test_a_form_that_falls_silent_ends_in_time(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "STALL_S", 0.05)
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        async with connected(gateway) as connection:
            told = await connection.until_closed(HEAD + chunk(FILE + b"a line, and then"))
        ((status, answer),) = answers(told)
        assert (status, error_code(answer)) == (400, "invalid_request")
        assert kept(socket_dir) == []
        await can_upload(gateway)


async def test_a_form_that_drips_has_a_last_moment(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "UPLOAD_TIMEOUT_S", 0.2)
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        async with connected(gateway) as connection:
            connection.writer.write(HEAD + chunk(FILE))
            _, told = await flood(connection, b"x", 0.005)
        assert all(status == 400 for status, _ in answers(told))
        await gateway.until(lambda: not kept(socket_dir))


async def test_a_client_that_leaves_midway_leaves_nothing(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        async with connected(gateway) as connection:
            connection.writer.write(HEAD + chunk(FILE + b"x" * 1000))
            await gateway.until(lambda: len(kept(socket_dir)) == 1)
        await gateway.until(lambda: not kept(socket_dir))


async def test_a_caller_has_so_many_uploads_under_way(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        async with AsyncExitStack() as stack:
            for number in range(MAX_UPLOADS):
                connection = await stack.enter_async_context(connected(gateway))
                connection.writer.write(HEAD + chunk(FILE))
                await gateway.until(lambda want=number + 1: len(kept(socket_dir)) == want)
            refused = await upload(gateway, b"{}")
            assert refused.status_code == 429
            assert refused.headers["retry-after"]
        await gateway.until(lambda: not kept(socket_dir))
        await can_upload(gateway)


async def test_a_line_of_twenty_megabytes_fails_its_batch_by_its_number(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        line = b'{"custom_id": "%b", "method": "POST", "url": "/v1/chat/completions", "body": %b}'
        good = b'{"model": "demo", "messages": [{"role": "user", "content": "hi"}]}'
        long = b'{"model": "demo", "x": "%b"}' % (b"x" * 20_000_000)
        given = [line % (b"a", good), line % (b"b", long), line % (b"c", good)]
        stored = (await upload(gateway, b"\n".join(given))).json()
        asked = {"input_file_id": stored["id"], "endpoint": CHAT, "completion_window": "24h"}
        made = (await gateway.client.post("/v1/batches", json=asked)).json()
        async with asyncio.timeout(60):
            while made["status"] not in ("failed", "completed"):
                made = (await gateway.client.get(f"/v1/batches/{made['id']}")).json()
        assert made["status"] == "failed"
        (error,) = made["errors"]["data"]
        assert (error["line"], error["code"]) == (2, "request_too_large")
        assert engine.commands == []


async def upload(gateway: RunningGateway, content: bytes) -> Any:
    form: Any = {"file": ("in.jsonl", content), "purpose": (None, "batch")}
    return await gateway.client.post("/v1/files", files=form)


async def can_upload(gateway: RunningGateway) -> None:
    """Nothing of those before holds a place."""
    assert (await upload(gateway, b"{}")).status_code == 200


@pytest.mark.parametrize(
    ("told", "param"),
    [
        ({"anchor": "created_at"}, "expires_after[seconds]"),
        ({"anchor": "tomorrow", "seconds": "3600"}, "expires_after[anchor]"),
        ({"anchor": "created_at", "seconds": "3599"}, "expires_after[seconds]"),
        ({"anchor": "created_at", "seconds": "1e4"}, "expires_after[seconds]"),
    ],
)
async def test_half_an_end_of_a_file_is_refused_and_not_forgotten(
    socket_dir: Path, told: dict[str, str], param: str
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        form = {"purpose": "batch"} | {f"expires_after[{key}]": one for key, one in told.items()}
        files = {"file": ("in.jsonl", b"{}")}
        answer = await gateway.client.post("/v1/files", data=form, files=files)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert kept(socket_dir) == []

"""What probes are told: whether this gateway can serve, and what is missing."""

import asyncio
import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from gateway import service
from gateway.http.server import bind_socket
from gateway.ledger import journal
from protocol.errors import ConfigurationError
from protocol.wire import worker_start
from protocol.wire.messages import Generate
from tests.fakes.running_gateway import RunningGateway, gateway_settings, running_gateway


async def status_of(gateway: RunningGateway, path: str) -> tuple[int, dict[str, Any]]:
    response = await gateway.client.get(path)
    return response.status_code, response.json()


async def test_one_absent_model_of_two_is_told_by_health_and_stops_nobody(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, models=("demo", "other")) as gateway:
        await gateway.auth()
        await gateway.parser()
        await gateway.engine()
        status, body = await status_of(gateway, "/ready")
        assert (status, body["status"]) == (200, "degraded")
        status, body = await status_of(gateway, "/health")
        assert (status, body["missing"]) == (503, ["engine of model other"])
        assert [(one["model"], one["ready"]) for one in body["models"]] == [
            ("demo", True),
            ("other", False),
        ]
        assert (await gateway.chat()).status_code == 200
        await gateway.engine(model="other")
        assert (await status_of(gateway, "/health"))[0] == 200


async def test_a_full_disk_is_told_by_ready_until_there_is_room(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        assert (await status_of(gateway, "/ready"))[0] == 200
        auth.acknowledges = False
        with monkeypatch.context() as disk:
            disk.setattr(journal, "_write_all", full)
            assert (await gateway.chat()).status_code == 200
            await gateway.until(lambda: not gateway.application.outbox.can_keep)
            status, body = await status_of(gateway, "/ready")
            assert status == 503
            assert "PENSTOCK_DATA_DIR" in body["missing"][0]
            refused = await gateway.chat()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        await gateway.until(lambda: gateway.application.outbox.can_keep)
        assert (await status_of(gateway, "/ready"))[0] == 200
        assert (await gateway.chat()).status_code == 200


async def test_an_outbox_without_room_is_told_by_ready(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, max_outbox=1) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        auth.acknowledges = False
        assert (await gateway.chat()).status_code == 200
        await gateway.until(lambda: len(gateway.application.outbox) == 1)
        assert (await status_of(gateway, "/ready"))[0] == 503


async def test_housekeeping_that_fails_goes_on_and_is_told_by_ready(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("no reports")

    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        housekeeping = gateway.application._housekeeping
        chore = next(one for one in housekeeping._chores if one.name == "renewing leases")
        work, chore.work = chore.work, broken
        for _ in range(3):
            housekeeping._do(chore)
        status, body = await status_of(gateway, "/ready")
        assert (status, body["missing"][0]) == (503, "housekeeping: renewing leases")
        chore.work = work
        housekeeping._do(chore)
        assert (await status_of(gateway, "/ready"))[0] == 200


async def test_a_gateway_without_an_auth_worker_or_an_engine_is_not_ready(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        engine = await gateway.engine()
        assert (await status_of(gateway, "/ready"))[0] == 503
        await gateway.auth()
        assert (await status_of(gateway, "/ready"))[0] == 200
        await gateway.departure(engine)
        assert (await status_of(gateway, "/ready"))[0] == 503
        assert (await status_of(gateway, "/live"))[0] == 200


async def test_the_load_and_the_release_are_told(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        asked = asyncio.create_task(gateway.chat())
        await engine.until(lambda: bool(engine.of(Generate)))
        told = (await gateway.client.get("/load")).json()
        name = engine.worker.instance_id
        assert told == {
            "server_load": 1,
            "engines": [{"name": name, "model": "demo", "running": 0, "waiting": 0}],
        }
        engine.emit(engine.of(Generate)[0], "x")
        engine.finish(engine.of(Generate)[0])
        assert (await asked).status_code == 200
        assert (await gateway.client.get("/load")).json()["server_load"] == 0
        assert (await gateway.client.get("/version")).json() == {"version": worker_start.build()}


async def test_a_gateway_of_a_shared_port_waits_until_it_can_serve_but_not_forever(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        waiting = asyncio.create_task(gateway.application.until_serving(60))
        await gateway.auth()
        assert not waiting.done()
        await gateway.engine()
        await asyncio.wait_for(waiting, 60)
    async with running_gateway(socket_dir) as gateway:
        await gateway.application.until_serving(0)  # by itself it can't


async def test_a_shared_port_takes_no_connection_before_somebody_listens() -> None:
    with bind_socket("127.0.0.1", 0, is_shared=True) as first:
        port = first.getsockname()[1]
        with bind_socket("127.0.0.1", port, is_shared=True) as second:
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            second.listen()
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await writer.wait_closed()
            with pytest.raises(ConfigurationError, match="Cannot listen"):
                bind_socket("127.0.0.1", port)


async def test_a_gateway_says_that_somebody_else_listens_on_its_shared_port(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_SHARING_PATIENCE_S", 0.0)
    with bind_socket("127.0.0.1", 0, is_shared=True) as sock, socket.socket() as other:
        port = sock.getsockname()[1]
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        port_file = socket_dir / "port"
        settings = gateway_settings(
            socket_dir, host="127.0.0.1", port=port, port_file=port_file, share_port=True
        )
        with pytest.raises(ConfigurationError, match=f"Cannot listen on 127.0.0.1:{port}"):
            await service.serve(settings, sock)
        assert not port_file.exists()


async def test_a_server_that_stops_listening_goes_on_with_the_connections_it_has(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        assert (await gateway.client.get("/live")).status_code == 200
        url = gateway.client.base_url
        await gateway.server.stop_listening()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(url.host, url.port)
        assert (await gateway.client.get("/live")).status_code == 200


async def test_connections_that_wait_are_taken_before_a_server_stops_listening(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        url = gateway.client.base_url
        # The loop stands still meanwhile, so all of them are in the listener's queue.
        waiting = [socket.create_connection((url.host, url.port)) for _ in range(40)]
        for each in waiting:
            each.setblocking(False)
        await gateway.server.stop_listening()
        for each in waiting:
            reader, writer = await asyncio.open_connection(sock=each)
            writer.write(b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
            await writer.wait_closed()

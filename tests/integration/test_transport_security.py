"""CURVE between real sockets: the right key comes in, others stay outside."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.__main__ import main as ping_main
from protocol.wire import codec
from protocol.wire.endpoints import Endpoint
from protocol.wire.keygen import generate_keys
from protocol.wire.keys import ClientSecurity, KeyOwner, ServerSecurity
from protocol.wire.messages import AuthCommand, AuthEvent, AuthOffer
from protocol.wire.transport import TransportLimits
from protocol.wire.transport_ping import ping
from protocol.wire.worker import Worker, WorkerSettings
from tests.fakes.echo_worker import RecordingHandler
from tests.fakes.recording_gateway import RecordingGateway

SETTINGS = WorkerSettings(heartbeat_interval_s=0.05, handle_signals=False)
LIMITS = TransportLimits(handshake_timeout_s=0.4)
Gateway = RecordingGateway[AuthEvent]


@pytest.fixture
def key_dir(tmp_path: Path) -> Path:
    generate_keys(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
async def gateway(key_dir: Path) -> AsyncIterator[Gateway]:
    decoder = codec.auth_event_decoder()
    security = ServerSecurity.load(key_dir)
    gateway = Gateway("auth", "tcp://127.0.0.1:0", decoder, security=security)
    yield gateway
    gateway.server.close()


def new_worker(endpoint: Endpoint, security: ClientSecurity | None) -> Worker[AuthCommand]:
    worker = Worker(
        role="auth",
        decoder=codec.auth_command_decoder(),
        handler=RecordingHandler[AuthCommand](),
        endpoints=[endpoint],
        security=security,
        settings=SETTINGS,
        limits=LIMITS,
    )
    worker.announce(AuthOffer(epoch=1))
    worker.start()
    return worker


async def test_the_key_of_the_role_comes_in(gateway: Gateway, key_dir: Path) -> None:
    worker = new_worker(gateway.start(), ClientSecurity.load(key_dir, "auth"))
    await gateway.a_ready_peer()
    await asyncio.to_thread(worker.stop)


@pytest.mark.parametrize("owner", ["toolparser", "engine", "stranger", "nobody"])
async def test_other_keys_stay_outside_and_both_sides_say_so(
    gateway: Gateway,
    key_dir: Path,
    tmp_path: Path,
    owner: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    endpoint = gateway.start()
    generate_keys(tmp_path / "strange")
    mine = ClientSecurity.load(key_dir, "auth")
    strange = ClientSecurity.load(tmp_path / "strange", "auth")
    security: dict[str, ClientSecurity | None] = {
        "toolparser": ClientSecurity.load(key_dir, "toolparser"),
        "engine": ClientSecurity.load(key_dir, "engine"),
        "stranger": ClientSecurity(strange.public_key, strange.secret_key, mine.server_public_key),
        "nobody": None,
    }
    by_gateway = "penstock.transport" if owner == "nobody" else "penstock.security"
    intruder = new_worker(endpoint, security[owner])
    async with asyncio.timeout(60):
        while not warned(caplog) >= {by_gateway, "penstock.transport"}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    # The intruder tries again all the time, also beside the right one.
    worker = new_worker(endpoint, mine)
    await gateway.a_ready_peer()
    await asyncio.to_thread(intruder.stop)
    await asyncio.to_thread(worker.stop)
    joined = {event.peer.instance_id for event in gateway.peer_events}
    assert joined == {worker.instance_id}


def warned(caplog: pytest.LogCaptureFixture) -> set[str]:
    """The loggers that said something loud."""
    return {record.name for record in caplog.records if record.levelno >= logging.WARNING}


async def test_a_gateway_with_another_key_is_not_talked_to(
    gateway: Gateway, key_dir: Path, tmp_path: Path
) -> None:
    generate_keys(tmp_path / "strange")
    mine = ClientSecurity.load(key_dir, "auth")
    expected = ClientSecurity.load(tmp_path / "strange", "auth").server_public_key
    endpoint = gateway.start()
    security = ClientSecurity(mine.public_key, mine.secret_key, expected)
    assert await asyncio.to_thread(ping, endpoint.text, timeout_s=0.5, security=security) is None


@pytest.mark.parametrize(
    ("owner", "answers"), [("auth", True), ("gateway", True), ("engine", False)]
)
async def test_pings_need_a_key_that_may_come_in(
    gateway: Gateway, key_dir: Path, owner: KeyOwner, answers: bool
) -> None:
    security = ClientSecurity.load(key_dir, owner)
    address = gateway.start().text
    # Who gets an answer waits for it; who gets none waits to the end.
    patience_s = 30.0 if answers else 1.0
    seconds = await asyncio.to_thread(ping, address, timeout_s=patience_s, security=security)
    assert (seconds is not None) == answers


async def test_the_ping_command_is_a_health_check(socket_dir: Path) -> None:
    address = f"ipc://{socket_dir}/a.sock"
    gateway = Gateway("auth", address, codec.auth_event_decoder())
    gateway.start()
    assert await asyncio.to_thread(run_ping, address, 25) == 0
    gateway.server.close()
    assert await asyncio.to_thread(run_ping, address, 1) == 1
    assert await asyncio.to_thread(run_ping, "nonsense", 1) == 2


async def test_the_ping_command_asks_what_the_role_dials(
    gateway: Gateway, key_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alive = gateway.start().text
    environ = {"PENSTOCK_KEY_DIR": str(key_dir)}

    async def ask(role: str, endpoints: str, timeout_s: int = 1) -> int:
        given = {**environ, "PENSTOCK_AUTH_ENDPOINT": endpoints}
        arguments = ["ping", "--as", role, "--timeout", str(timeout_s)]
        return await asyncio.to_thread(ping_main, arguments, given)

    assert await ask("auth", alive, timeout_s=30) == 0
    assert await ask("auth", f"tcp://127.0.0.1:1,{alive}", timeout_s=6) == 0
    assert await ask("auth", "tcp://127.0.0.1:1") == 1
    assert await ask("auth", "") == 2
    assert await ask("gateway", alive) == 2
    assert "Name an ENDPOINT" in capsys.readouterr().err


def run_ping(address: str, timeout_s: int) -> int:
    command = [sys.executable, "-m", "protocol", "ping", address, "--timeout", str(timeout_s)]
    return subprocess.run(command, check=False, capture_output=True, timeout=30).returncode


async def test_raw_bytes_on_the_port_disturb_nobody(gateway: Gateway, key_dir: Path) -> None:
    endpoint = gateway.start()
    with socket.create_connection(("127.0.0.1", endpoint.port)) as intruder:
        intruder.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(4096))
    worker = new_worker(endpoint, ClientSecurity.load(key_dir, "auth"))
    await gateway.a_ready_peer()
    await asyncio.to_thread(worker.stop)

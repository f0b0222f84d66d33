"""Real processes that were given wrong keys or a shared folder: clear lines, nothing
half-started."""

import asyncio
import json
import os
import shutil
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from protocol.wire.keygen import generate_keys_by_role

pytestmark = pytest.mark.process
WAIT_S = 60.0


class Logged:
    """A process of ours and what it has logged."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.messages: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.messages.append(json.loads(line)["message"])

    async def until(self, part: str) -> None:
        """Wait for a line that holds `part`."""
        async with asyncio.timeout(WAIT_S):
            while not any(part in message for message in self.messages):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def end(self) -> int:
        """Its exit code; killed if it does not end by itself."""
        async with asyncio.timeout(WAIT_S):
            await self._reading
            return await self.process.wait()


@asynccontextmanager
async def running(module: str, **settings: str) -> AsyncIterator[Logged]:
    environ = {**os.environ, "PENSTOCK_LOG_FORMAT": "json", **settings}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, env=environ, stderr=PIPE, stdout=PIPE
    )
    logged = Logged(process)
    try:
        yield logged
    finally:
        if process.returncode is None:
            process.kill()
        await logged.end()


@asynccontextmanager
async def gateway(directory: Path, keys: Path, **settings: str) -> AsyncIterator[Logged]:
    """A gateway on tcp, its workers' ports free ones."""
    given = {
        "PENSTOCK_ENGINE_ENDPOINT": "tcp://127.0.0.1:*",
        "PENSTOCK_AUTH_ENDPOINT": "tcp://127.0.0.1:*",
        "PENSTOCK_TOOLPARSER_ENDPOINT": "tcp://127.0.0.1:*",
        "PENSTOCK_KEY_DIR": str(keys),
        "PENSTOCK_DATA_DIR": str(directory / "data"),
        "PENSTOCK_PORT": "0",
        "PENSTOCK_PORT_FILE": str(directory / "port"),
        **settings,
    }
    async with running("gateway", **given) as logged:
        yield logged


def free_port() -> int:
    """A port that was free a moment ago; a gateway does not tell which one it took for workers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def names_in(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def swap(source: Path, target: Path, *names: str) -> None:
    for name in names:
        shutil.copy2(source / name, target / name)


@pytest.mark.parametrize(
    ("wrong", "worker_says", "gateway_says"),
    [
        ("pair", "refused our key", "unknown key or wrong role"),
        ("gateway.public", "is our gateway.public its key?", "failed its handshake"),
    ],
)
async def test_a_wrong_curve_key_is_a_clear_line_in_both_logs(
    socket_dir: Path, wrong: str, worker_says: str, gateway_says: str
) -> None:
    keys, strange = socket_dir / "keys", socket_dir / "strange"
    generate_keys_by_role(keys)
    generate_keys_by_role(strange)
    names = ["toolparser.secret", "toolparser.public"] if wrong == "pair" else [wrong]
    swap(strange / "toolparser", keys / "toolparser", *names)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    async with (
        gateway(socket_dir, keys / "gateway", PENSTOCK_TOOLPARSER_ENDPOINT=endpoint) as harness,
        running(
            "toolparser_worker",
            PENSTOCK_TOOLPARSER_ENDPOINT=endpoint,
            PENSTOCK_KEY_DIR=str(keys / "toolparser"),
        ) as worker,
    ):
        await worker.until(worker_says)
        await harness.until(gateway_says)
        assert not any("joined" in message for message in harness.messages)


@pytest.mark.parametrize(
    ("module", "role", "code"),
    [
        ("gateway", "gateway", 1),
        ("auth_worker", "auth", 1),
        ("toolparser_worker", "toolparser", 1),
        ("engine_worker", "engine", 1),
    ],
)
async def test_keys_that_cannot_be_read_end_the_start_with_one_line(
    socket_dir: Path, module: str, role: str, code: int
) -> None:
    generate_keys_by_role(socket_dir / "keys")
    (socket_dir / "keys" / role / "gateway.public").unlink()
    settings = {
        f"PENSTOCK_{name}_ENDPOINT": "tcp://127.0.0.1:5999"
        for name in ("ENGINE", "AUTH", "TOOLPARSER")
    }
    async with running(
        module,
        **settings,
        PENSTOCK_KEY_DIR=str(socket_dir / "keys" / role),
        PENSTOCK_DATA_DIR=str(socket_dir / "data"),
        PENSTOCK_PORT="0",
    ) as logged:
        assert await logged.end() == code
    assert len(logged.messages) == 1
    assert "PENSTOCK_KEY_DIR: cannot read" in logged.messages[0]


async def test_gateways_may_share_a_data_folder_when_told_so(socket_dir: Path) -> None:
    keys, data = socket_dir / "keys", str(socket_dir / "data")
    generate_keys_by_role(keys)
    settings = {"PENSTOCK_DATA_DIR": data, "PENSTOCK_SHARE_DATA_DIR": "true"}
    for name in ("a", "b"):
        (socket_dir / name).mkdir()
    async with (
        gateway(socket_dir / "a", keys / "gateway", **settings) as first,
        gateway(socket_dir / "b", keys / "gateway", **settings) as second,
    ):
        await first.until("serving HTTP")
        await second.until("serving HTTP")
        folders = {name for name in names_in(data) if not name.startswith("responses.sqlite3")}
        assert folders == {"gateway-0", "gateway-1"}  # and one store of responses for both


async def test_gateways_that_were_not_told_refuse_to_share(socket_dir: Path) -> None:
    keys = socket_dir / "keys"
    generate_keys_by_role(keys)
    async with gateway(socket_dir, keys / "gateway") as first:
        await first.until("serving HTTP")
        async with gateway(socket_dir, keys / "gateway") as second:
            assert await second.end() == 1
    assert ["give each its own folder" in message for message in second.messages] == [True]

"""A real auth worker process behind a gateway that runs in the test."""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.fakes.fork_server import AUTH_WORKER, Forked
from tests.fakes.running_gateway import RunningGateway

START_TIMEOUT_S = 60.0


@dataclass
class AuthProcess:
    """A worker and the key that it takes for its administrator's."""

    process: Forked
    admin_key: str
    data_dir: Path
    log: Path

    def admin(self, gateway: RunningGateway) -> httpx.AsyncClient:
        """A client with the administrator's key."""
        return httpx.AsyncClient(
            base_url=gateway.client.base_url,
            headers={"Authorization": f"Bearer {self.admin_key}"},
            timeout=30.0,
            trust_env=False,
        )


@asynccontextmanager
async def auth_process(gateway: RunningGateway, **environment: str) -> AsyncIterator[AuthProcess]:
    """Start `python -m auth_worker` for a gateway and wait until it takes questions."""
    directory = gateway.directory
    data_dir, log = directory / "auth-data", directory / "auth.log"
    admin_key = f"psk-{secrets.token_urlsafe(32)}"
    environ = {
        **os.environ,
        "PENSTOCK_AUTH_ENDPOINT": f"ipc://{directory}/auth",
        "PENSTOCK_DATA_DIR": str(data_dir),
        "PENSTOCK_ADMIN_KEY": admin_key,
        **environment,
    }
    with log.open("ab") as stderr:
        process = Forked("auth_worker", preloaded=AUTH_WORKER, environ=environ, stderr=stderr)
    link = gateway.application.auth
    try:
        await gateway.until(lambda: link.is_ready or process.poll() is not None, START_TIMEOUT_S)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield AuthProcess(process, admin_key, data_dir, log)
    finally:
        process.kill()
        process.wait()
        await gateway.until(lambda: not link.is_ready)

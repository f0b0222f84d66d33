"""The processes of a deployment under test: started, signalled, and started again at once."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import httpx
import psutil

from penstock.config import build_settings
from penstock.supervisor import ProcessSpec, common_environment, process_specs
from protocol.runtime.child_environment import without_settings
from tests.soak.relay import Relay

_WATCH_S = 0.05


class WatchedHarness:
    """All processes of `penstock serve`, started without its patience.

    `penstock serve` waits longer after each early death, and gives up after some; here a process
    that died is back at once, because its deaths are ours.

    Args:
        directory: Data, logs and sockets; a short path.
        port: Of the gateway, the same after each of its restarts.
        arguments: Of `penstock serve`, beside those that follow from the others here.
        environment: More settings, of all processes.
        num_engines: Engines of each model.
        num_parsers: Parser processes.
    """

    def __init__(
        self,
        directory: Path,
        port: int,
        *,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str],
        num_engines: int,
        num_parsers: int,
    ) -> None:
        self.directory = directory
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.admin_key = f"psk-{secrets.token_urlsafe(32)}"
        self.num_parsers = num_parsers
        environ = {
            **without_settings(os.environ),
            "PENSTOCK_ADMIN_KEY": self.admin_key,
            "PENSTOCK_LOG_FORMAT": "json",
        }
        given = {
            "port": port,
            "auth": True,
            "engines": num_engines,
            "parsers": num_parsers,
            "data_dir": str(directory / "data"),
            "log_level": "info",
            **arguments,
        }
        settings = build_settings(given, environ)
        self._run_dir = directory / "run"
        self._environment = common_environment(settings, self._run_dir) | dict(environment)
        folders = {
            model.name: None if model.source is None else Path(model.source)
            for model in settings.models
        }
        self._specs = {
            spec.name: self._changed(spec)
            for spec in process_specs(settings, folders, self._run_dir)
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, IO[bytes]] = {}
        self._watcher: asyncio.Task[None] | None = None
        self.deaths: list[str] = []

    def _changed(self, spec: ProcessSpec) -> ProcessSpec:
        """A process as this deployment wants it."""
        return spec

    def _command(self, spec: ProcessSpec) -> list[str]:
        """How a process is started."""
        return [sys.executable, "-m", spec.module]

    def names(self, module: str) -> list[str]:
        """The processes that run a module."""
        return [name for name, spec in self._specs.items() if spec.module == module]

    def log_path(self, name: str) -> Path:
        """Where a process's log goes, through all its lives."""
        return self.directory / f"{name}.log"

    async def start(self, timeout_s: float) -> None:
        """Start everything and wait until it serves."""
        self._make_folders()
        for name in self._specs:
            self._start(name)
        self._watcher = asyncio.create_task(self._watch())
        await self.wait_ready(timeout_s)

    async def wait_ready(self, timeout_s: float) -> None:
        """Until `/ready` is 200 and every engine and parser is there.

        Raises:
            TimeoutError: They are not in time.
        """
        wanted = {
            "engine": len(self.names("engine_worker")),
            "toolparser": self.num_parsers,
            "auth": 1,
        }
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(trust_env=False, timeout=5.0) as client,
        ):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    ready = await client.get(f"{self.url}/ready")
                    metrics = (await client.get(f"{self.url}/metrics")).text
                    if ready.status_code == 200 and all(
                        f'workers{{phase="ready",role="{role}"}} {count}.0' in metrics
                        for role, count in wanted.items()
                    ):
                        return
                await asyncio.sleep(_WATCH_S)

    async def make_key(self, name: str, tenant: str = "") -> str:
        """A key without limits."""
        async with httpx.AsyncClient(trust_env=False) as client:
            reply = await client.post(
                f"{self.url}/v1/admin/keys",
                json={"name": name, "tenant": tenant},
                headers={"Authorization": f"Bearer {self.admin_key}"},
            )
            reply.raise_for_status()
            return str(reply.json()["key"])

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a process a signal."""
        self.processes[name].send_signal(number)

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory of each process."""
        return {
            name: psutil.Process(process.pid).memory_info().rss
            for name, process in self.processes.items()
        }

    async def stop(self) -> None:
        """End everything in order, as `penstock serve` does."""
        if self._watcher is not None:
            self._watcher.cancel()
        for order in sorted({spec.stop_order for spec in self._specs.values()}):
            group = [
                process
                for name, process in self.processes.items()
                if self._specs[name].stop_order == order
            ]
            for process in group:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                    process.terminate()
            for process in group:
                try:
                    await asyncio.to_thread(process.wait, 45)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for log in self._logs.values():
            log.close()

    def _make_folders(self) -> None:
        for folder in (self._run_dir, self.directory / "data"):
            folder.mkdir(parents=True, mode=0o700, exist_ok=True)

    def _start(self, name: str) -> None:
        spec = self._specs[name]
        if name not in self._logs:
            self._logs[name] = self.log_path(name).open("ab")
        log = self._logs[name]
        environment: Mapping[str, str] = {**self._environment, **spec.environment}
        self.processes[name] = subprocess.Popen(
            self._command(spec),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    async def _watch(self) -> None:
        while True:
            for name, process in list(self.processes.items()):
                if process.poll() is not None:
                    self.deaths.append(name)
                    self._start(name)
            await asyncio.sleep(_WATCH_S)


class SoakHarness(WatchedHarness):
    """A deployment of demo engines with a relay before each, which a test can cut.

    Args:
        directory: Data, logs and sockets; a short path.
        cache_dir: Compiled programs.
        port: Of the gateway.
        num_engines: Engines of the demo model.
        num_parsers: Parser processes.
    """

    def __init__(
        self, directory: Path, cache_dir: Path, port: int, *, num_engines: int, num_parsers: int
    ) -> None:
        self.relays: dict[str, Relay] = {}
        super().__init__(
            directory,
            port,
            arguments={"deterministic": True, "cache_dir": str(cache_dir)},
            # Stalls must be found, and leases of dead gateways expire, within the run.
            environment={"PENSTOCK_STALL_TIMEOUT_S": "30", "PENSTOCK_LEASE_DURATION_S": "30"},
            num_engines=num_engines,
            num_parsers=num_parsers,
        )

    def _changed(self, spec: ProcessSpec) -> ProcessSpec:
        if spec.module != "engine_worker":
            return spec
        listen = self._run_dir / f"relay-{len(self.relays)}"
        self.relays[spec.name] = Relay(listen, self._run_dir / "engine")
        environment = {**spec.environment, "PENSTOCK_ENGINE_ENDPOINT": f"ipc://{listen}"}
        return ProcessSpec(spec.name, spec.module, environment, spec.stop_order)

    async def start(self, timeout_s: float) -> None:
        """Start the relays, then everything, and wait until it serves."""
        self._make_folders()
        for relay in self.relays.values():
            await relay.start()
        await super().start(timeout_s)

    async def stop(self) -> None:
        """End everything in order, the relays last."""
        await super().stop()
        for relay in self.relays.values():
            await relay.close()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

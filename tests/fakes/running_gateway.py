"""A whole gateway in the test's event loop: real sockets, real uvicorn, scripted workers."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson

from gateway.application import Application
from gateway.config import GatewaySettings
from gateway.http.server import HttpServer, bind_socket, bind_unix_socket
from protocol.wire.endpoints import Endpoint
from protocol.wire.messages import Load
from tests.fakes.documented_answers import DocumentedTransport
from tests.fakes.fake_workers import FakeAuth, FakeEngine, FakeParser, FakeWorker

MESSAGES = [{"role": "user", "content": "hi"}]


def gateway_settings(directory: Path, **changes: Any) -> GatewaySettings:
    """Settings with sockets and data in one folder, no keys required."""
    settings = GatewaySettings(
        engine_endpoint=Endpoint(f"ipc://{directory}/engine"),
        auth_endpoint=Endpoint(f"ipc://{directory}/auth"),
        toolparser_endpoint=Endpoint(f"ipc://{directory}/toolparser"),
        require_keys=False,
        data_dir=directory / "data",
        port=0,
        request_timeout_s=20.0,
    )
    return replace(settings, **changes)


class RunningGateway:
    """The gateway under test with a client; workers are added by the test."""

    def __init__(
        self,
        directory: Path,
        application: Application,
        server: HttpServer,
        client: httpx.AsyncClient,
    ) -> None:
        self.directory = directory
        self.application = application
        self.server = server
        self.client = client
        self.workers: list[FakeWorker[Any]] = []

    @property
    def gateway_id(self) -> str:
        """As workers know it."""
        return self.application.instance_id

    async def engine(self, **options: Any) -> FakeEngine:
        """A scripted engine that is ready for work."""
        engine = FakeEngine(self.directory, **options)
        self.workers.append(engine)
        engine.start()
        await self._arrival(engine)
        return engine

    async def auth(self, **options: Any) -> FakeAuth:
        """A scripted auth worker that is ready for questions."""
        auth = FakeAuth(self.directory, **options)
        self.workers.append(auth)
        auth.start()
        await self._arrival(auth)
        return auth

    async def parser(self, **options: Any) -> FakeParser:
        """A scripted parser that is ready for sessions."""
        parser = FakeParser(self.directory, **options)
        self.workers.append(parser)
        parser.start()
        await self._arrival(parser)
        return parser

    async def chat(self, **fields: Any) -> httpx.Response:
        """A chat request of one message."""
        body = {"model": "demo", "messages": MESSAGES, **fields}
        return await self.client.post("/v1/chat/completions", json=body)

    def is_known(self, worker: FakeWorker[Any]) -> bool:
        """Whether the gateway gives a worker work."""
        return any(
            peer.instance_id == worker.worker.instance_id and peer.takes_work
            for peer in self.application.peers()
        )

    def load_of(self, worker: FakeWorker[Any]) -> Load:
        """What the gateway last heard of a worker's load."""
        return next(
            peer.load
            for peer in self.application.peers()
            if peer.instance_id == worker.worker.instance_id
        )

    async def departure(self, worker: FakeWorker[Any]) -> None:
        """Stop a worker and wait until the gateway has noticed."""
        await worker.stop()
        await self.until(lambda: not self.is_known(worker))

    async def crash(self, worker: FakeWorker[Any]) -> None:
        """Let a worker die and wait until the gateway has noticed."""
        await worker.crash()
        await self.until(lambda: not self.is_known(worker))

    async def _arrival(self, worker: FakeWorker[Any]) -> None:
        await self.until(lambda: self.is_known(worker) and bool(worker.worker.gateway_ids()))

    async def until(self, fact: Any, timeout_s: float = 60.0) -> None:
        """Let the loop run until a fact about the gateway's own state holds."""
        async with asyncio.timeout(timeout_s):
            while not fact():  # noqa: ASYNC110
                await asyncio.sleep(0.002)  # the state is the gateway's own and tells nobody


@asynccontextmanager
async def running_gateway(
    directory: Path, *further: socket.socket, **changes: Any
) -> AsyncIterator[RunningGateway]:
    """Start a gateway, yield it, and take everything down again.

    Args:
        directory: For its sockets and data.
        further: Listening sockets beside its own.
        changes: Of its settings.
    """
    settings = gateway_settings(directory, **changes)
    application = Application(settings)
    await application.hooks.start()
    application.start()
    server = HttpServer(application.parts)
    uds, scheme = settings.uds, "http" if settings.tls_cert_file is None else "https"
    with bind_socket(settings.host, 0) if uds is None else bind_unix_socket(uds) as sock:
        address = "localhost" if uds is not None else f"127.0.0.1:{sock.getsockname()[1]}"
        serving = asyncio.get_running_loop().create_task(server.serve(sockets=[sock, *further]))
        await server.has_started.wait()
        async with httpx.AsyncClient(
            base_url=f"{scheme}://{address}",
            timeout=30.0,
            trust_env=False,
            transport=DocumentedTransport(
                # A server's own certificate, where it has one.
                httpx.AsyncHTTPTransport(uds=None if uds is None else str(uds), verify=False),
                application,
            ),
        ) as client:
            gateway = RunningGateway(directory, application, server, client)
            try:
                yield gateway
            finally:
                server.should_exit = True
                await client.aclose()
                await serving
                await application.close()
                for worker in gateway.workers:
                    await worker.stop()


def events_of(text: str) -> list[Any]:
    """The `data:` events of a stream, JSON decoded but for the closing mark."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data:")]
    return [line if line == "[DONE]" else orjson.loads(line) for line in lines]


def named_events_of(text: str) -> list[Any]:
    """The same of a stream whose events have names, as those of Responses."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]
    return [line if line == "[DONE]" else orjson.loads(line) for line in lines]


def stream_text(events: list[Any], choice: int = 0) -> str:
    """The content of one choice of a chat stream."""
    return "".join(
        one["delta"].get("content") or ""
        for event in events
        if isinstance(event, dict)
        for one in event.get("choices", ())
        if one["index"] == choice
    )

"""The command around a run: signals that end it, and the key of a server of its own."""

import io
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from rich.console import Console

from penstock import run_batch
from penstock.api_client import ApiClient
from penstock.config import ServeSettings, build_settings
from penstock.errors import CommandError
from tests.fakes.batch_server import Server, request_line, write


class SilentServer:
    """Takes a connection and a request, has this process told to stop twice, and never answers.

    Attributes:
        has_ended: To be set when the run is over.
        was_late: It wasn't within a time in which anybody loses patience.
    """

    def __init__(self) -> None:
        self.has_ended = threading.Event()
        self.was_late = False
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "SilentServer":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.has_ended.set()
        self._thread.join()

    def _serve(self) -> None:
        with self._socket, self._socket.accept()[0] as connection:
            connection.recv(4096)
            main = threading.main_thread().ident
            assert main is not None
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.pthread_kill(main, number)
            self.was_late = not self.has_ended.wait(60)


def run(source: Path, url: str | None, settings: ServeSettings, console: Console) -> int:
    return run_batch.run(
        source,
        source.with_name("out"),
        url=url,
        settings=settings,
        api_key=None,
        concurrency=None,
        console=console,
    )


@pytest.fixture
def settings() -> ServeSettings:
    return build_settings({"models": ["penstock-demo"]}, {"HOME": "/home/someone"})


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO())


def test_a_second_signal_ends_the_wait_for_a_server_that_does_not_answer(
    tmp_path: Path, settings: ServeSettings, console: Console
) -> None:
    source = write(tmp_path / "in", request_line("a"))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with SilentServer() as server:
        with pytest.raises(CommandError, match="Stopped at once"):
            run(source, server.url, settings, console)
        server.has_ended.set()
    assert not server.was_late
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_server_of_its_own_is_asked_with_the_key_of_its_folder(
    tmp_path: Path, settings: ServeSettings, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in", request_line("a"))
    server, modes = Server(tmp_path), []

    @contextmanager
    def running(private: ServeSettings, *given: Any, **options: Any) -> Iterator[Any]:
        modes.append(private.data_dir.stat().st_mode & 0o777)
        (private.data_dir / "admin.key").write_text("psk-first\n", "utf-8")
        assert private.require_keys
        yield (
            "http://server",
            SimpleNamespace(signals=[], stop_requested=False, poll=lambda: None),
        )

    def client(url: str, key: str | None, **options: Any) -> ApiClient:
        return ApiClient(url, key, httpx.MockTransport(server), **options)

    monkeypatch.setenv("PENSTOCK_ADMIN_KEY", "psk-of-the-deployment")
    monkeypatch.setattr(run_batch, "running_server", running)
    monkeypatch.setattr(run_batch, "ApiClient", client)
    assert run(source, None, settings, console) == 0
    assert modes == [0o700]
    assert server.keys == {"Bearer psk-first"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch_0.jsonl", "in", "out"]

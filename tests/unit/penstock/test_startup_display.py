"""What a person sees at the start: phases, address, where the key is."""

import io
import itertools
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer

import pytest
from rich.console import Console

from penstock.config import build_settings
from penstock.errors import CommandError
from penstock.start_watch import SILENT_S, StartWatch
from penstock.startup import (
    StartupProgress,
    announce,
    keys_command,
    own_command,
    reachable_url,
    read_port,
    wait_until_ready,
)


def console(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=200), out


def test_each_phase_of_a_worker_is_one_line_without_a_terminal() -> None:
    where, out = console()
    progress = StartupProgress(where)
    with progress:
        for phase in ("loading", "loading", "compiling"):
            worker = {"role": "engine", "model": "m", "phase": phase}
            progress.show({"workers": [worker]})
    assert out.getvalue().splitlines() == ["m: loading weights", "m: compiling programs"]


def test_two_engines_in_different_phases_do_not_repeat_each_other() -> None:
    where, out = console()
    with StartupProgress(where) as progress:
        workers = [
            {"role": "engine", "phase": "loading"},
            {"role": "engine", "phase": "compiling"},
        ]
        for _ in range(3):
            progress.show({"workers": workers})
    assert out.getvalue().splitlines() == ["engine: loading weights", "engine: compiling programs"]


def test_wildcard_addresses_are_shown_as_loopback() -> None:
    assert reachable_url("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert reachable_url("::", 80) == "http://[::1]:80"
    assert reachable_url("::1", 80) == "http://[::1]:80"
    assert reachable_url("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert reachable_url("::", 443, has_tls=True) == "https://[::1]:443"


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""


def test_a_server_on_a_unix_socket_is_waited_for_there(socket_dir: Path) -> None:
    uds = socket_dir / "http"
    where, out = console()
    settings = build_settings(
        {"uds": str(uds), "data_dir": str(socket_dir)}, {"HOME": "/home/someone"}
    )
    (socket_dir / "port").write_text("0", encoding="ascii")
    with UnixStreamServer(str(uds), _Healthy) as server:
        server.get_request = lambda: (server.socket.accept()[0], ("", 0))  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = wait_until_ready(
            lambda: None, lambda: False, socket_dir, settings, where, StartWatch()
        )
        server.shutdown()
        thread.join()
    assert url == "http://localhost"
    announce(url, settings, where)
    assert out.getvalue().strip().endswith(f"on the Unix socket {uds}.")


def test_the_port_is_unknown_until_the_gateway_wrote_it(tmp_path: Path) -> None:
    assert read_port(tmp_path) is None
    (tmp_path / "port").write_text("8123", encoding="ascii")
    assert read_port(tmp_path) == 8123


@pytest.mark.parametrize("terminal", [True, False])
def test_the_admin_key_stays_in_its_file_and_only_its_path_is_printed(
    tmp_path: Path, terminal: bool
) -> None:
    settings = build_settings({"data_dir": str(tmp_path)}, {"HOME": "/home/someone"})
    (tmp_path / "admin.key").write_text("psk-secret\n", encoding="utf-8")
    where, out = console(terminal=terminal)
    announce("http://127.0.0.1:1", settings, where)
    assert "psk-secret" not in out.getvalue()
    assert str(tmp_path / "admin.key") in out.getvalue()
    assert (tmp_path / "admin.key").read_text(encoding="utf-8") == "psk-secret\n"


@pytest.mark.parametrize("is_there", [True, False])
def test_where_the_admin_key_is_missing_the_start_says_what_keys_are_made_with(
    tmp_path: Path, is_there: bool
) -> None:
    settings = build_settings({"data_dir": str(tmp_path), "auth": True}, {"HOME": "/home/someone"})
    if is_there:
        (tmp_path / "admin.key").write_text("psk-secret\n", encoding="utf-8")
    where, out = console()
    announce("http://127.0.0.1:1", settings, where)
    missing = f"Admin key: not in {tmp_path / 'admin.key'}; `penstock keys` needs it in"
    assert (missing in out.getvalue()) != is_there
    assert ("required; this makes one: " in out.getvalue()) == is_there
    assert ("required; with the admin key, this makes one: " in out.getvalue()) != is_there


def test_a_command_that_is_not_on_the_path_is_told_as_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "penstock"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n", encoding="ascii")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert own_command("bin/penstock") == "bin/penstock"
    monkeypatch.setenv("PATH", str(program.parent))
    assert own_command(str(program)) == "penstock"
    assert own_command("/elsewhere/penstock/__main__.py").endswith(" -m penstock")


def test_the_command_for_a_key_names_what_another_shell_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/x/penstock", "serve"])
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    usual = build_settings({}, {"HOME": "/home/someone"})
    assert keys_command("http://127.0.0.1:8000", usual) == "/x/penstock keys create NAME"
    other = build_settings({"data_dir": str(tmp_path)}, {"HOME": "/home/someone"})
    assert keys_command("http://127.0.0.1:81", other) == (
        f"/x/penstock keys create NAME --url http://127.0.0.1:81 --data-dir {tmp_path}"
    )


def test_a_gateway_that_never_says_where_it_is_ends_the_waiting(tmp_path: Path) -> None:
    where, _ = console()
    settings = build_settings({"data_dir": str(tmp_path)}, {"HOME": "/home/someone"})
    watch = StartWatch(clock=itertools.count(step=SILENT_S / 2).__next__)
    with pytest.raises(CommandError, match="has not answered"):
        wait_until_ready(lambda: None, lambda: False, tmp_path, settings, where, watch)

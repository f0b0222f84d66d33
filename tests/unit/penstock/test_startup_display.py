"""What a person sees at the start: phases, address, the key once."""

import io
from pathlib import Path

from rich.console import Console

from penstock.config import build_settings
from penstock.startup import StartupProgress, announce, reachable_url, read_port


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


def test_the_port_is_unknown_until_the_gateway_wrote_it(tmp_path: Path) -> None:
    assert read_port(tmp_path) is None
    (tmp_path / "port").write_text("8123", encoding="ascii")
    assert read_port(tmp_path) == 8123


def test_a_new_admin_key_is_shown_on_a_terminal_once(tmp_path: Path) -> None:
    settings = build_settings({"data_dir": str(tmp_path)}, {"HOME": "/home/someone"})
    (tmp_path / "admin.key").write_text("psk-secret\n", encoding="utf-8")
    where, out = console(terminal=True)
    announce("http://127.0.0.1:1", settings, where, admin_key_is_new=True)
    assert "psk-secret" in out.getvalue()
    assert not (tmp_path / "admin.key").exists()


def test_without_a_terminal_only_the_path_of_the_key_is_printed(tmp_path: Path) -> None:
    settings = build_settings({"data_dir": str(tmp_path)}, {"HOME": "/home/someone"})
    (tmp_path / "admin.key").write_text("psk-secret\n", encoding="utf-8")
    where, out = console()
    announce("http://127.0.0.1:1", settings, where, admin_key_is_new=True)
    assert "psk-secret" not in out.getvalue()
    assert str(tmp_path / "admin.key") in out.getvalue()
    assert (tmp_path / "admin.key").exists()

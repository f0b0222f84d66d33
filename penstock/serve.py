"""`penstock serve`: check, fetch, start, show, supervise, end."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from penstock.config import ServeSettings
from penstock.errors import CommandError, UsageError
from penstock.model_source import resolve_model
from penstock.rollout_requests import RolloutRequests
from penstock.start_watch import StartWatch
from penstock.startup import announce, wait_until_ready
from penstock.supervisor import Supervisor, common_environment, make_run_dir, process_specs
from protocol.runtime.logs import setup as setup_logs


def require_free_port(host: str, port: int, option: str = "--port") -> None:
    """Refuse an address that can't be bound, before anything is started.

    Args:
        host: Of this machine.
        port: To be bound.
        option: What says it.

    Raises:
        CommandError: The port is in use, or the address is not this machine's.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}.") from None
    with socket.socket(family, kind, number) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            hint = " (0 picks a free one)" if option == "--port" else ""
            raise CommandError(
                f"{host}:{port} can't be bound: {error.strerror}. Stop what uses it or choose "
                f"another {option}{hint}; a second server needs its own --data-dir."
            ) from None


@contextmanager
def _kept_port(settings: ServeSettings) -> Iterator[ServeSettings]:
    """Several gateways are told which port they share, also where a free one was asked for.

    Raises:
        CommandError: The port can't be bound.
    """
    if settings.num_gateways == 1:
        yield settings
        return
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            # It never listens, since connections go to the gateways: so another process with
            # SO_REUSEADDR can listen there before the first gateway does, which then says so.
            kept.bind((settings.host, settings.port))
        except OSError as error:
            raise CommandError(
                f"{settings.host}:{settings.port} can't be bound: {error.strerror}."
            ) from None
        yield replace(settings, port=kept.getsockname()[1])


def _make_dir(path: Path, setting: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UsageError(f"{setting} {path}: {error.strerror or error}.") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"{setting} {path}: not writable.")


def serve(settings: ServeSettings, console: Console) -> int:
    """Serve until SIGINT or SIGTERM.

    Returns:
        The exit code: 0 after a requested stop.

    Raises:
        CommandError: It can't be done; the message says why and what to do.
    """
    with running_server(settings, console) as (url, supervisor):
        if url is not None:
            announce(url, settings, console)
            with RolloutRequests(supervisor, settings) as rollouts:
                supervisor.run(rollouts.poll)
    return 0


@contextmanager
def running_server(
    settings: ServeSettings, console: Console, *, is_private: bool = False
) -> Iterator[tuple[str | None, Supervisor]]:
    """Start every process, wait until they serve, and end them all at the end.

    Args:
        settings: What to serve.
        console: For progress.
        is_private: The server has nothing to wait for but itself, such as a place as a standby.

    Yields:
        The server's URL, None when a stop was requested first, and the supervisor of the processes:
        its `poll` is to be called several times a second.

    Raises:
        CommandError: It can't be done; the message says why and what to do.
    """
    setup_logs("penstock", settings.log_level)
    if settings.uds is None:
        require_free_port(settings.host, settings.port)
    for port in settings.metrics_ports:
        require_free_port(settings.host, port, "--metrics-port")
    _make_dir(settings.data_dir, "--data-dir")
    _make_dir(settings.cache_dir / "compile", "--cache-dir")
    folders = {model.name: resolve_model(model, settings) for model in settings.models}
    with _kept_port(settings) as bound:
        run_dir = make_run_dir(bound.child_environment)
        supervisor = Supervisor(
            process_specs(bound, folders, run_dir),
            common_environment(bound, run_dir),
            run_dir,
            drain_timeout_s=bound.drain_timeout_s,
        )
        with supervisor:
            url = wait_until_ready(
                supervisor.poll,
                lambda: supervisor.stop_requested,
                run_dir,
                bound,
                console,
                StartWatch(is_private=is_private),
            )
            supervisor.was_ready = url is not None
            yield url, supervisor

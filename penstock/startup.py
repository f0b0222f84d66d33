"""What a person sees while the server starts: one progress line a worker, then where to go."""

import os
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from penstock.config import URL, ServeSettings, build_settings
from penstock.start_watch import StartWatch
from penstock.terminal import visible_line

_POLL_S = 0.1
_PHASES = {
    "starting": "starting",
    "downloading": "downloading",
    "loading": "loading weights",
    "compiling": "compiling programs",
    "ready": "ready",
    "draining": "draining",
}


def read_port(run_dir: Path) -> int | None:
    """The port that the gateway bound, once it is there."""
    try:
        return int((run_dir / "port").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def reachable_url(host: str, port: int, *, has_tls: bool = False) -> str:
    """Where this machine reaches a server bound to `host`."""
    scheme = "https" if has_tls else "http"
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104
    return (
        f"{scheme}://[{shown}]:{port}"
        if ":" in shown and "[" not in shown
        else f"{scheme}://{shown}:{port}"
    )


class StartupProgress:
    """Draws `/health` as bars on a terminal, as lines elsewhere.

    Args:
        console: Where to draw.
        clock: Monotonic seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._tasks: dict[str, TaskID] = {}
        self._last_phase: dict[str, str] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> "StartupProgress":
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def show(self, status: dict[str, Any]) -> None:
        """Draw one answer of `/health`; the workers of a role keep their order there."""
        numbers: Counter[str] = Counter()
        for worker in status.get("workers", []):
            phase = _PHASES.get(str(worker.get("phase")), str(worker.get("phase")))
            title = str(worker.get("model") or worker.get("role"))
            detail = str(worker.get("detail") or "")
            role = str(worker.get("role"))
            numbers[role] += 1
            key = f"{role} {numbers[role]}"
            if self._console.is_terminal:
                self._draw(key, f"{title}: {phase}", worker, detail)
            elif self._last_phase.get(key) != phase:
                self._last_phase[key] = phase
                self._console.print(
                    visible_line(f"{title}: {phase}"), highlight=False, markup=False
                )

    def _draw(self, key: str, description: str, worker: dict[str, Any], detail: str) -> None:
        description, detail = visible_line(description), visible_line(detail)
        fraction = float(worker.get("fraction", -1.0))
        if worker.get("phase") == "ready":
            fraction = 1.0
        total = None if fraction < 0 else 1.0
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(description, total=total, detail=detail)
        self._progress.update(
            self._tasks[key],
            description=description,
            total=total,
            completed=max(fraction, 0.0),
            detail=detail,
        )


def _own_client(settings: ServeSettings) -> httpx.Client:
    """Speaks to the server itself, whose certificate is for other names than loopback."""
    uds = None if settings.uds is None else str(settings.uds)
    # Where nothing is verified, no authorities need to be read.
    transport = httpx.HTTPTransport(uds=uds, verify=False)
    return httpx.Client(timeout=5.0, trust_env=False, transport=transport)


def wait_until_ready(
    poll: Callable[[], None],
    stop_requested: Callable[[], bool],
    run_dir: Path,
    settings: ServeSettings,
    console: Console,
    watch: StartWatch,
) -> str | None:
    """Supervise the processes and show progress until the server can serve.

    Args:
        poll: The supervisor's look at its children.
        stop_requested: Whether to give up waiting.
        run_dir: Where the gateway writes its port.
        settings: For the address.
        console: Where to draw.
        watch: Tells when it is hopeless.

    Returns:
        The server's URL, or None when a stop was requested first.

    Raises:
        CommandError: It won't serve.
    """
    with (
        StartupProgress(console) as progress,
        _own_client(settings) as client,
    ):
        while not stop_requested():
            poll()
            status: dict[str, Any] | None = None
            port = read_port(run_dir)
            if port is not None:
                has_tls = settings.tls_cert_file is not None
                url = reachable_url(settings.host, port, has_tls=has_tls)
                if settings.uds is not None:
                    url = f"{'https' if has_tls else 'http'}://localhost"
                try:
                    response = client.get(f"{url}/health")
                    found = response.json()
                except (httpx.TransportError, ValueError):
                    pass
                else:
                    if response.status_code == httpx.codes.OK:
                        return url
                    status = found if isinstance(found, dict) else {}
                    progress.show(status)
            watch.check(status)
            time.sleep(_POLL_S)
    return None


def own_command(called: str) -> str:
    """How a shell starts this program again.

    Args:
        called: `sys.argv[0]`.

    Returns:
        Its bare name where PATH leads to it (an active environment), else its path as it was
        called, such as `.venv/bin/penstock`.
    """
    path = Path(called)
    if path.suffix == ".py":
        return shlex.join([sys.executable, "-m", "penstock"])
    found = shutil.which(path.name)
    on_path = found is not None and path.exists() and path.samefile(found)
    return path.name if on_path else shlex.quote(called)


def keys_command(url: str, settings: ServeSettings) -> str:
    """What makes a key of this server from another shell: with the options that it needs there."""
    words = [own_command(sys.argv[0]), "keys create NAME"]
    if url != URL.default:
        words.append(f"--url {url}")
    elsewhere = {name: os.environ[name] for name in ("HOME", "XDG_DATA_HOME") if name in os.environ}
    if settings.data_dir != build_settings({}, elsewhere).data_dir:
        words.append(f"--data-dir {shlex.quote(str(settings.data_dir))}")
    return " ".join(words)


def announce(url: str, settings: ServeSettings, console: Console) -> None:
    """Print address, models, where the admin key is, and a line to try.

    The key itself is not shown: `penstock keys` reads the file, and a terminal keeps what it shows.
    """
    key_file = settings.data_dir / "admin.key"
    ports = ", ".join(str(port) for port in settings.metrics_ports)
    names = ", ".join(model.name for model in settings.models)

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    if settings.uds is not None:
        say(f"Penstock serves {names} on the Unix socket {settings.uds}.")
        return
    say(f"Penstock serves {names} at {url}/v1  (docs: {url}/docs)")
    if ports:
        say(f"Metrics, a port for each gateway: {ports}")
    has_key_file = key_file.exists()
    if has_key_file:
        say(f"Admin key: in {key_file}, where `penstock keys` finds it.")
    header = ""
    if settings.require_keys:
        way = "this" if has_key_file else "with the admin key, this"
        if not has_key_file:
            say(
                f"Admin key: not in {key_file}; `penstock keys` needs it in PENSTOCK_ADMIN_KEY or "
                "--key-file. Where it is lost, docs/runbook.md says how to get another."
            )
        say(f"API keys are required; {way} makes one: {keys_command(url, settings)}")
        header = " -H 'Authorization: Bearer YOUR_KEY'"
    else:
        say("No API key is needed from this machine.")
    body = (
        f'{{"model": "{settings.models[0].name}", '
        '"messages": [{"role": "user", "content": "Hello!"}]}'
    )
    say(
        f"Try: curl {url}/v1/chat/completions -H 'Content-Type: application/json'{header}"
        f" -d '{body}'"
    )

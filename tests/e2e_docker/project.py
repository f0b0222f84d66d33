"""One Compose project under test: commands, containers, and what its gateways say."""

import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.e2e_docker.engine import DockerEngine, run, say

ROOT = Path(__file__).parents[2]
COMPOSE_1 = ("docker-compose",)
COMPOSE_2 = ("docker", "compose")
WORKERS = ("engine_worker", "auth_worker", "toolparser_worker")
_LABEL = "com.docker.compose"


def eventually(what: str, fact: Callable[[], bool], timeout_s: float = 240.0) -> float:
    """Wait for a fact; returns the seconds it took.

    Raises:
        AssertionError: It never held.
    """
    begin = time.monotonic()
    while not fact():
        if time.monotonic() - begin > timeout_s:
            raise AssertionError(f"never came true: {what}")
        time.sleep(0.3)
    return time.monotonic() - begin


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Project:
    """A Compose project with a name of its own; a context manager that takes everything down.

    Args:
        engine: Where it runs.
        compose: `COMPOSE_1` or `COMPOSE_2`.
        files: Compose files, relative to the repository.
        settings: As a `.env` would give them.
    """

    def __init__(
        self,
        engine: DockerEngine,
        compose: Sequence[str] = COMPOSE_2,
        files: Sequence[str] = ("compose.yaml",),
        settings: dict[str, str] | None = None,
    ) -> None:
        self.engine = engine
        self.name = f"pst{secrets.token_hex(3)}"
        self._http = httpx.Client(timeout=10.0)
        self._compose = tuple(compose)
        self._files = tuple(files)
        # Ports of nobody else, whatever runs beside; few programs, so that engines are up sooner.
        self.settings = {
            "PENSTOCK_MAX_NUM_SEQS": "8",
            "PENSTOCK_PORT": "",
            "PENSTOCK_NGINX_PORT": "0",
            "PENSTOCK_PROMETHEUS_PORT": "0",
            "PENSTOCK_PROXY_SUBNET": f"172.16.{secrets.randbelow(250)}.0/24",
            **(settings or {}),
        }
        # Engines get what earlier ones with the same settings compiled.
        self._kind = "-".join(
            self.settings.get(f"PENSTOCK_{name}") or "default"
            for name in ("MAX_NUM_SEQS", "DETERMINISTIC")
        )

    def __enter__(self) -> "Project":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            say(f"logs of {self.name}:\n{self.logs()[-6000:]}")
        self.down()
        self._http.close()

    def compose(self, *arguments: str, check: bool = True, timeout_s: float = 1800.0) -> str:
        """Run a Compose command of this project and return its stdout."""
        files = [part for name in self._files for part in ("-f", str(ROOT / name))]
        command = [*self._compose, "-p", self.name, *files, *arguments]
        env = {**self.engine.environment, **self.settings}
        return run(command, env=env, check=check, timeout_s=timeout_s, cwd=ROOT)

    def as_environment(self) -> dict[str, str]:
        """What tells a Compose command, of a script, which project this is."""
        return {
            "COMPOSE": " ".join(self._compose),
            "COMPOSE_PROJECT_NAME": self.name,
            "COMPOSE_FILE": ":".join(str(ROOT / name) for name in self._files),
        }

    def up(self, **scale: int) -> None:
        """`up -d`, with so many replicas of services."""
        self.engine.give_programs(f"{self.name}_compile-cache", self._kind)
        flags = [part for name, number in scale.items() for part in ("--scale", f"{name}={number}")]
        self.compose("up", "-d", *flags)

    def down(self) -> None:
        """Take everything down, volumes too."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "15", check=False)

    def logs(self, *services: str) -> str:
        """What the services logged, without colours or names."""
        return "".join(
            self.log_of(container)
            for service in services or self.services()
            for container in self.containers(service, every=True)
        )

    def log_of(self, container: str) -> str:
        """What one container logged on stdout and stderr."""
        command = ["sh", "-c", 'docker logs "$0" 2>&1', container]
        return run(command, env=self.engine.environment, check=False)

    def services(self) -> list[str]:
        """Names of the services, as Compose reads them."""
        return self.compose("config", "--services", check=False).split()

    def containers(self, service: str, *, every: bool = False) -> list[str]:
        """Ids of a service's containers, running or, with `every`, any; in order of their names."""
        found = self.engine.docker(
            "ps", "--no-trunc", *(["--all"] if every else []),
            "--filter", f"label={_LABEL}.project={self.name}",
            "--filter", f"label={_LABEL}.service={service}",
            "--format", "{{.Names}} {{.ID}}",
        )  # fmt: skip
        return [line.split()[1] for line in sorted(found.splitlines())]

    def inspect(self, container: str, template: str) -> str:
        """What `docker inspect --format` prints."""
        return self.engine.docker("inspect", "--format", template, container).strip()

    def exec(self, container: str, *command: str, check: bool = True) -> str:
        """Run a command in a container and return its stdout."""
        return self.engine.docker("exec", container, *command, check=check)

    def url(self, service: str, port: int, number: int = 0) -> str:
        """Where this machine reaches a port of a service's container."""
        container = self.containers(service)[number]
        published = self.engine.docker("port", container, str(port)).split()[0]
        return f"http://{published.replace('0.0.0.0', '127.0.0.1')}"

    def gateway_urls(self) -> list[str]:
        """The gateways' addresses."""
        return [
            self.url("gateway", 8000, number) for number in range(len(self.containers("gateway")))
        ]

    def ready(self, url: str) -> dict[str, Any] | None:
        """What a gateway's `/ready` says; None while it does not answer."""
        try:
            answer: dict[str, Any] = self._http.get(f"{url}/ready").json()
        except (httpx.TransportError, ValueError):
            return None
        return answer

    def is_complete(self, url: str, **workers: int) -> bool:
        """Whether a gateway is ready and has so many ready workers of each role."""
        answer = self.ready(url)
        if answer is None or answer["status"] != "ready":
            return False
        phases = [(worker["role"], worker["phase"]) for worker in answer["workers"]]
        return all(phases.count((role, "ready")) == number for role, number in workers.items())

    def wait_ready(self, timeout_s: float = 900.0, **workers: int) -> float:
        """Until every gateway is ready with so many workers of each role; returns the seconds."""
        urls = self.gateway_urls()
        seconds = eventually(
            f"every gateway of {self.name} is ready with {workers}",
            lambda: all(self.is_complete(url, **workers) for url in urls),
            timeout_s,
        )
        if self.containers("engine_worker"):
            self.engine.keep_programs(f"{self.name}_compile-cache", self._kind)
        return seconds

    def new_key(self, name: str = "e2e") -> str:
        """A key, made as the README says."""
        key = self.exec(
            self.containers("auth_worker")[0], "penstock", "keys", "create", name
        ).strip()
        assert key.startswith("psk-"), key
        return key

    def kill(self, container: str) -> None:
        """SIGKILL the container's process, so that the restart policy applies, unlike `docker
        kill`."""
        os.kill(int(self.inspect(container, "{{.State.Pid}}")), signal.SIGKILL)

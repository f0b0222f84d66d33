"""A Docker engine to test with: the one that answers, else one installed, started and removed
here."""

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_PACKAGES = ("docker.io", "docker-compose", "iptables", "iproute2", "mmdebstrap")
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 60.0
_PULL_TIMEOUT_S = 120.0
_PLUGIN_SUITE = "trixie"
"""The Debian release whose docker-compose is version 2; the packages are only unpacked."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def run(
    command: Sequence[str | Path],
    *,
    env: dict[str, str] | None = None,
    stdin: str | None = None,
    check: bool = True,
    timeout_s: float = 1200.0,
    cwd: Path | None = None,
) -> str:
    """Run a command and return its stdout.

    Raises:
        RuntimeError: It failed; the message holds the end of what it said.
    """
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(env or {})},
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        cwd=cwd,
    )
    if check and done.returncode != 0:
        tail = (done.stdout + done.stderr)[-4000:]
        words = " ".join(str(part) for part in command)
        raise RuntimeError(f"`{words}` ended with {done.returncode}:\n{tail}")
    return done.stdout


class DockerEngine:
    """Docker, Compose 1.29, Compose 2 and base images; a context manager that leaves nothing.

    Args:
        work_dir: Where an engine of our own keeps its data; a new folder when None. A folder that
            is named stays, with the images in it, so that the next run is faster.

    Attributes:
        scratch: A folder for files of a run.
        python_image: A base with Python 3.11 or newer.
        environment: For every command: which docker, which plugins, which base image.
    """

    def __init__(self, work_dir: Path | None = None) -> None:
        self._keep = work_dir is not None
        self._dir = work_dir or Path(tempfile.mkdtemp(prefix="e2e-docker-"))
        self.scratch = self._dir / "scratch"
        self._daemon: subprocess.Popen[bytes] | None = None
        self._forward_policy: str | None = None
        self._prefix = f"e2e{secrets.token_hex(3)}"
        self.python_image = ""
        self.environment: dict[str, str] = {"DOCKER_BUILDKIT": "1", "COMPOSE_DOCKER_CLI_BUILD": "1"}

    def __enter__(self) -> "DockerEngine":
        self.scratch.mkdir(parents=True, exist_ok=True)
        try:
            self._find_or_install()
            self._add_compose_2()
            self.python_image = self._base_image()
        except BaseException:
            self.__exit__()
            raise
        self.environment["PENSTOCK_PYTHON_IMAGE"] = self.python_image
        return self

    def __exit__(self, *exception: object) -> None:
        for volume in self.docker("volume", "ls", "-q", check=False).split():
            if volume.startswith(self._prefix):
                self.docker("volume", "rm", volume, check=False)
        if self._daemon is not None:
            self._stop_daemon(self._daemon)
        if not self._keep:
            shutil.rmtree(self._dir, ignore_errors=True)

    def docker(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run `docker …` and return its stdout."""
        return run(["docker", *arguments], env=self.environment, stdin=stdin, check=check)

    def image_with(self, name: str, package: str, official: str) -> str:
        """An image with a Debian package on top of the base, or the official image if it is there.

        Args:
            name: Tag of the built image.
            package: Of Debian.
            official: What a machine with a registry uses.
        """
        if self._can_pull(official):
            return official
        lines = (
            f"FROM {self.python_image}",
            "RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends "
            f"{package} && rm -rf /var/lib/apt/lists/*",
        )
        self.docker("build", "--quiet", "--tag", name, "-", stdin="\n".join(lines))
        return name

    def give_programs(self, volume: str, kind: str) -> None:
        """Make a volume of what earlier engines of a kind compiled, if there were any."""
        saved = self._programs(kind)
        if self._has_volume(saved) and not self._has_volume(volume):
            self._copy_volume(saved, volume)

    def keep_programs(self, volume: str, kind: str) -> None:
        """Keep what the engines of a volume compiled; the first of a kind is enough."""
        saved = self._programs(kind)
        if not self._has_volume(saved):
            self._copy_volume(volume, saved)

    def _has_volume(self, name: str) -> bool:
        return bool(self.docker("volume", "ls", "-q", "--filter", f"name=^{name}$").strip())

    def _programs(self, kind: str) -> str:
        return f"{self._prefix}-programs-{kind}"

    def _copy_volume(self, source: str, target: str) -> None:
        self.docker(
            "run", "--rm", "--network", "none", "--user", "0",
            "--volume", f"{source}:/from:ro", "--volume", f"{target}:/to",
            "penstock-setup", "cp", "-a", "/from/.", "/to",
        )  # fmt: skip

    # ---- the engine --------------------

    def _find_or_install(self) -> None:
        if _answers({}):
            say("using the Docker engine that answers")
            return
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            sys.exit("No Docker engine answers, and only root on Debian can install one here.")
        if any(shutil.which(name) is None for name in ("dockerd", "docker-compose", "mmdebstrap")):
            say(f"installing {', '.join(_PACKAGES)}")
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            run(["apt-get", "update", "-qq"], env=quiet)
            run(
                ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *_PACKAGES],
                env=quiet,
            )
        # Another docker client may come first on the PATH; the distribution's knows BuildKit.
        self.environment["PATH"] = f"/usr/bin:{os.environ['PATH']}"
        self._forward_policy = _forward_policy()
        say("starting an engine of our own")
        socket = f"unix://{self._dir}/docker.sock"
        self.environment["DOCKER_HOST"] = socket
        with (self._dir / "dockerd.log").open("wb") as log:
            self._daemon = subprocess.Popen(
                [
                    "dockerd",
                    "--host", socket,
                    "--data-root", str(self._dir / "data"),
                    "--exec-root", str(self._dir / "exec"),
                    "--pidfile", str(self._dir / "dockerd.pid"),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + _START_TIMEOUT_S
        while not _answers(self.environment):
            if self._daemon.poll() is not None or time.monotonic() > end:
                tail = (self._dir / "dockerd.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"dockerd did not come up:\n{tail}")
            time.sleep(0.2)
        self._restore_forward_policy()

    def _stop_daemon(self, daemon: subprocess.Popen[bytes]) -> None:
        say("stopping our engine")
        for container in self.docker("ps", "-aq", check=False).split():
            self.docker("rm", "--force", "--volumes", container, check=False)
        daemon.terminate()
        try:
            daemon.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
            target = line.split()[1]
            if target.startswith(f"{self._dir}/"):
                run(["umount", "--lazy", target], check=False)
        run(["ip", "link", "delete", "docker0"], check=False)
        self._restore_forward_policy()

    def _restore_forward_policy(self) -> None:
        # dockerd sets it to DROP and never back, which breaks network namespaces beside it.
        if self._forward_policy is not None:
            run(["iptables", "--policy", "FORWARD", self._forward_policy], check=False)

    # ---- compose and images --------------------

    def _add_compose_2(self) -> None:
        version = run(["docker", "compose", "version"], env=self.environment, check=False)
        if re.search(r"version v?[2-9]\.", version):
            return
        plugins = self._dir / "client" / "cli-plugins"
        if not (plugins / "docker-compose").exists():
            say(f"unpacking Compose 2 of Debian {_PLUGIN_SUITE}")
            plugins.mkdir(parents=True, exist_ok=True)
            _unpack_plugins(self._dir / "apt", plugins)
        self.environment["DOCKER_CONFIG"] = str(plugins.parent)

    def _base_image(self) -> str:
        official = "python:3.12-slim"
        if self._can_pull(official):
            return official
        name = "penstock-e2e-python"
        if self.docker("images", "--quiet", name).strip():
            return name
        say("no registry: making a base image with mmdebstrap")
        tar = self._dir / "base.tar"
        run(
            [
                "mmdebstrap", "--quiet", "--variant=minbase",
                "--include=python3,python3-pip,python3-venv,ca-certificates",
                '--customize-hook=ln -sf python3 "$1/usr/bin/python"',
                '--customize-hook=rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED',
                "--customize-hook=copy-in /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs",
                "bookworm", tar,
            ]
        )  # fmt: skip
        self.docker("import", "--change", 'CMD ["python3"]', str(tar), name)
        tar.unlink()
        return name

    def _can_pull(self, image: str) -> bool:
        if self.docker("images", "--quiet", image).strip():
            return True
        try:
            run(["docker", "pull", image], env=self.environment, timeout_s=_PULL_TIMEOUT_S)
        except (RuntimeError, subprocess.TimeoutExpired):
            return False
        return True


def _answers(env: dict[str, str]) -> bool:
    with suppress(FileNotFoundError, RuntimeError, subprocess.TimeoutExpired):
        run(["docker", "info"], env=env, timeout_s=20.0)
        return True
    return False


def _forward_policy() -> str | None:
    for line in run(["iptables", "--list-rules", "FORWARD"], check=False).splitlines():
        if line.startswith("-P FORWARD "):
            return line.split()[-1]
    return None


def _unpack_plugins(apt_dir: Path, plugins: Path) -> None:
    """Download docker-compose and docker-buildx with a private apt configuration, and unpack
    them."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (apt_dir / folder).mkdir(parents=True, exist_ok=True)
    (apt_dir / "status").touch()
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt_dir / "sources.list").write_text(
        f"deb [signed-by={keyring}] http://deb.debian.org/debian {_PLUGIN_SUITE} main\n",
        encoding="ascii",
    )
    options = [
        "-o", f"Dir::State={apt_dir}",
        "-o", f"Dir::State::status={apt_dir}/status",
        "-o", f"Dir::Cache={apt_dir}/cache",
        "-o", f"Dir::Etc::sourcelist={apt_dir}/sources.list",
        "-o", "Dir::Etc::sourceparts=-",
        "-o", "APT::Sandbox::User=root",
    ]  # fmt: skip
    run(["apt-get", *options, "update", "-qq"])
    run(["apt-get", *options, "download", "docker-compose", "docker-buildx"], cwd=apt_dir)
    for package in apt_dir.glob("*.deb"):
        run(["dpkg", "-x", package, apt_dir / "unpacked"])
    for plugin in (apt_dir / "unpacked").rglob("cli-plugins/docker-*"):
        shutil.copy2(plugin, plugins)

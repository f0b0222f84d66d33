"""A PostgreSQL server of its own for tests: in a folder, on a Unix socket, gone with the
process."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import psycopg

USER: Final = "penstock"
SYSTEM_USER: Final = "postgres"
"""Who runs it when the tests run as root, which PostgreSQL refuses."""
MISSING: Final = (
    "PostgreSQL is not here: what it should show is not shown (Debian: apt-get install postgresql)"
)
_START_S = 60.0


def find_binaries() -> Path | None:
    """The folder of `initdb` and `postgres`, as Debian puts it or as PATH has it."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    found = shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


class PostgresServer:
    """One cluster; it can be stopped, killed and started again on what it has written.

    Args:
        binaries: Folder of `initdb` and `postgres`.
    """

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="pst-pg-"))
        self._data = self.folder / "data"
        self._identity: dict[str, Any] = {}
        self._become: tuple[str, ...] = ()
        if os.geteuid() == 0:
            entry = pwd.getpwnam(SYSTEM_USER)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
            self.folder.chmod(0o755)
            self._identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            self._become = (
                *("--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--clear-groups"),
            )
        self._process: subprocess.Popen[bytes] | None = None
        self._num_databases = 0
        self.with_tables: str | None = None  # a database that has what `StoreHarness` begins with
        self._port = 5432  # in the name of the socket; another one where it listens on TCP, too
        self._run(
            ["initdb", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"],
            ["-U", USER, "-D", str(self._data)],
        )

    def start(self, *, tls_port: int | None = None) -> None:
        """Start, and wait until it answers; kill -9 of these tests ends it as well.

        To be called in the main thread: it ends with the thread that started it.

        Args:
            tls_port: Where it listens on loopback, after `certify`; None for the socket alone.
        """
        self._port = 5432 if tls_port is None else tls_port
        settings = {
            "listen_addresses": "" if tls_port is None else "127.0.0.1",
            "port": str(self._port),
            "ssl": "off" if tls_port is None else "on",
            "unix_socket_directories": str(self.folder),
            "fsync": "off",  # no test takes the power away
            "full_page_writes": "off",
            "autovacuum": "off",  # it would visit hundreds of databases
            "bgwriter_lru_maxpages": "0",
            "shared_buffers": "16MB",
            "max_connections": "40",
        }
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    # Not by a function after the fork: jax may run threads in this process.
                    *("setpriv", "--pdeathsig", "QUIT", *self._become),
                    str(self._binaries / "postgres"),
                    *("-D", str(self._data)),
                    *(
                        part
                        for name, value in settings.items()
                        for part in ("-c", f"{name}={value}")
                    ),
                ],
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self.conninfo("postgres")).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() >= deadline:
                    raise RuntimeError((self.folder / "log").read_text(errors="replace")) from None
                time.sleep(0.02)
            else:
                return

    def certify(self) -> Path:
        """Make a certificate of 127.0.0.1 that signs itself, and talk TLS from the next start
        on."""
        certificate, key = self._data / "server.crt", self._data / "server.key"
        made = subprocess.run(
            [
                *("openssl", "req", "-new", "-x509", "-days", "2", "-nodes", "-newkey", "rsa:2048"),
                *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
                *("-keyout", str(key), "-out", str(certificate)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        for path in (certificate, key):
            path.chmod(0o600)
            if self._identity:
                os.chown(path, self._identity["user"], self._identity["group"])
        copy = self.folder / "ca.crt"
        shutil.copyfile(certificate, copy)
        copy.chmod(0o644)
        return copy

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop: SIGINT ends transactions ("fast"), SIGQUIT crashes ("immediate")."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(_START_S)
        self._process = None

    def close(self) -> None:
        """Stop, and remove everything."""
        if self._process is not None:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def conninfo(self, database: str) -> str:
        """For psycopg."""
        return f"host={self.folder} port={self._port} user={USER} dbname={database}"

    def url(self, database: str) -> str:
        """For PENSTOCK_DATABASE_URL."""
        return f"postgresql://{USER}@/{database}?host={self.folder}"

    def new_database(self, like: str | None = None) -> str:
        """The name of an empty database, or of a copy of another one."""
        self._num_databases += 1
        name = f"auth_{self._num_databases}"
        copied = "" if like is None else f" TEMPLATE {like}"
        # Files are copied in a third of the time that a log of all their pages takes.
        ((version,),) = self.execute("SHOW server_version_num")
        if int(str(version)) >= 150_000:
            copied += " STRATEGY file_copy"
        self.execute(f"CREATE DATABASE {name}{copied}")
        return name

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement by itself; its rows."""
        with psycopg.connect(self.conninfo(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return [] if cursor.description is None else cursor.fetchall()

    def _run(self, *parts: Sequence[str]) -> None:
        (name, *arguments), *more = parts
        command = [
            str(self._binaries / name),
            *arguments,
            *(part for some in more for part in some),
        ]
        done = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            **self._identity,
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr}")

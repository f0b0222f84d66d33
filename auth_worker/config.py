"""The settings of the auth worker, read once at its start."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from auth_worker.authority import Rules
from auth_worker.keys import ENVIRONMENT_KEY_NAME, weakness_of
from protocol.errors import ConfigurationError
from protocol.runtime.settings import SettingsReader
from protocol.wire.readiness import READY_FILE_SETTING

ADMIN_KEY_FILE_SETTING = "PENSTOCK_ADMIN_KEY_FILE"
_MAX_KEY_FILE_BYTES = 4096
DEFAULT_DATA_DIR = Path("~/.local/share/penstock")
LOG_LEVELS = ("debug", "info", "warning", "error")


class AdminKey:
    """An admin key that a person gave; it never shows itself in a repr, a log or an error."""

    __slots__ = ("_secret",)

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def reveal(self) -> str:
        """The key itself; for digesting only."""
        return self._secret

    def __repr__(self) -> str:
        return "AdminKey(***)"


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """What the auth worker was told.

    Attributes:
        data_dir: Holds the database, its lock and a made admin key.
        rules: What the authority decides by.
        admin_key: PENSTOCK_ADMIN_KEY, or what the file of PENSTOCK_ADMIN_KEY_FILE holds; None
            when both are unset.
        drain_timeout_s: How long a stopping worker waits for its last commits.
        log_level: One of `LOG_LEVELS`.
        ready_file: PENSTOCK_READY_FILE, there while a gateway gives this worker work.
    """

    data_dir: Path
    rules: Rules = field(default_factory=Rules)
    admin_key: AdminKey | None = None
    drain_timeout_s: float = 30.0
    log_level: str = "info"
    ready_file: Path | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "AuthSettings":
        """The settings in a mapping such as `os.environ`.

        Raises:
            ConfigurationError: A bad value; the message names the setting, never the key.
        """
        reader = SettingsReader(environ)
        return cls(
            data_dir=reader.path("PENSTOCK_DATA_DIR", DEFAULT_DATA_DIR).expanduser().absolute(),
            rules=Rules(
                allow_anonymous=reader.bool("PENSTOCK_ALLOW_ANONYMOUS", False),
                lease_duration_s=reader.float(
                    "PENSTOCK_LEASE_DURATION_S", 600.0, minimum=1.0, maximum=86_400.0
                ),
            ),
            admin_key=_admin_key(reader),
            drain_timeout_s=reader.float("PENSTOCK_DRAIN_TIMEOUT_S", 30.0, minimum=0.0),
            log_level=reader.choice("PENSTOCK_LOG_LEVEL", "info", LOG_LEVELS),
            ready_file=reader.path(READY_FILE_SETTING),
        )


def _admin_key(reader: SettingsReader) -> AdminKey | None:
    secret, setting = reader.str(ENVIRONMENT_KEY_NAME), ENVIRONMENT_KEY_NAME
    path = reader.path(ADMIN_KEY_FILE_SETTING)
    if secret is not None and path is not None:
        raise ConfigurationError(
            f"Set one of {ENVIRONMENT_KEY_NAME} and {ADMIN_KEY_FILE_SETTING}, not both."
        )
    if path is not None:
        secret, setting = _read_secret(path), ADMIN_KEY_FILE_SETTING
    if secret is None:
        return None
    weakness = weakness_of(secret)
    if weakness is not None:
        raise ConfigurationError(
            f"{setting} is too weak: {weakness}. Make one with"
            " `python3 -c \"import secrets; print('psk-' + secrets.token_urlsafe(32))\"`,"
            " or leave it unset to have one made."
        )
    return AdminKey(secret)


def _read_secret(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_FILE_BYTES).decode("utf-8", "replace").strip()
    except OSError as error:
        raise ConfigurationError(
            f"{ADMIN_KEY_FILE_SETTING}: cannot read {path} ({error.strerror})."
        ) from error

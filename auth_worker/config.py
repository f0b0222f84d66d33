"""The settings of the auth worker, read once at its start."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from auth_worker.decisions.authority import Rules
from auth_worker.principals.given_keys import weakness_of
from auth_worker.storage.audit_key import KEY_NAME
from auth_worker.storage.database_url import DatabaseUrl
from auth_worker.storage.retention import Retention
from auth_worker.tokens.token_rules import TokenRules, read_token_rules
from protocol.errors import ConfigurationError
from protocol.runtime import shared_settings as shared
from protocol.runtime.settings import Setting, read_settings, setting

_MAX_SECRET_FILE_BYTES = 4096


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
        data_dir: Holds the database, its lock and a made admin key; absolute.
        rules: What the authority decides by.
        audit_key_file: Holds the key of the audit log; None for the one in `data_dir`.
        retention: What is let go, and when.
        database_url: Of a PostgreSQL database; None for SQLite in `data_dir`.
        admin_key: PENSTOCK_ADMIN_KEY, or what the file of PENSTOCK_ADMIN_KEY_FILE holds; None
            when both are unset.
        tokens: Which bearer tokens are accepted beside keys.
    """

    data_dir: Path
    rules: Rules = field(default_factory=Rules)
    admin_key: AdminKey | None = None
    tokens: TokenRules = field(default_factory=TokenRules)
    internal_targets: tuple[str, ...] = setting(shared.INTERNAL_TARGETS)
    database_url: DatabaseUrl | None = None
    audit_key_file: Path | None = None
    retention: Retention = field(default_factory=Retention)
    key_dir: Path | None = setting(shared.KEY_DIR)
    drain_timeout_s: float = setting(shared.DRAIN_TIMEOUT_S)
    ready_file: Path | None = setting(shared.READY_FILE)
    log_level: str = setting(shared.LOG_LEVEL)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "AuthSettings":
        """The settings in a mapping such as `os.environ`.

        Raises:
            ConfigurationError: A bad value; the message names the setting, never the key.
        """
        data_dir = shared.DATA_DIR.read(environ).absolute()
        return read_settings(
            cls,
            environ,
            data_dir=data_dir,
            rules=read_settings(Rules, environ),
            admin_key=_admin_key(environ),
            tokens=read_token_rules(environ),
            database_url=database_url(environ),
            audit_key_file=audit_key_path(environ, data_dir),
            retention=read_settings(Retention, environ),
        )


def audit_key_path(environ: Mapping[str, str], data_dir: Path) -> Path:
    """Where the key is that signs checkpoints of the audit log."""
    return shared.AUDIT_KEY_FILE.read(environ) or data_dir / KEY_NAME


def database_url(environ: Mapping[str, str]) -> DatabaseUrl | None:
    """The PostgreSQL database that the settings name, if they name one.

    Raises:
        ConfigurationError: It can't be one; the message never repeats it.
    """
    found = _secret(environ, shared.DATABASE_URL, shared.DATABASE_URL_FILE)
    return None if found is None else DatabaseUrl(*found)


def _admin_key(environ: Mapping[str, str]) -> AdminKey | None:
    found = _secret(environ, shared.ADMIN_KEY, shared.ADMIN_KEY_FILE)
    if found is None:
        return None
    secret, name = found
    weakness = weakness_of(secret)
    if weakness is not None:
        raise ConfigurationError(
            f"{name} is too weak: {weakness}. Make one with"
            " `python3 -c \"import secrets; print('psk-' + secrets.token_urlsafe(32))\"`,"
            " or leave it unset to have one made."
        )
    return AdminKey(secret)


def _secret(
    environ: Mapping[str, str], direct: Setting[str | None], file: Setting[Path | None]
) -> tuple[str, str] | None:
    """A secret that one of two settings holds or names, and the name of that setting."""
    secret, path = direct.read(environ), file.read(environ)
    if secret is not None and path is not None:
        raise ConfigurationError(f"Set one of {direct.name} and {file.name}, not both.")
    if path is not None:
        return _read_secret(path, file.name), file.name
    return None if secret is None else (secret, direct.name)


def _read_secret(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_SECRET_FILE_BYTES).decode("utf-8", "replace").strip()
    except OSError as error:
        raise ConfigurationError(f"{name}: cannot read {path} ({error.strerror}).") from error

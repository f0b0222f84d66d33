"""The address of a PostgreSQL database: checked, completed, and never shown with its password."""

import ipaddress
from typing import Final
from urllib.parse import parse_qsl

from protocol.errors import ConfigurationError

EXAMPLE: Final = "postgresql://user:password@host:5432/database?sslmode=verify-full"
_SCHEMES: Final = ("postgresql", "postgres")
_NO_TLS: Final = frozenset(("disable", "allow", "prefer"))
_TLS: Final = frozenset(("require", "verify-ca", "verify-full"))


class DatabaseUrl:
    """A PostgreSQL URL as libpq takes it; it shows itself without user, password and parameters.

    Where the server is neither on a Unix socket nor on loopback, TLS is required unless the URL
    itself says `sslmode=disable`.

    Args:
        text: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
        name: Of the setting, for errors.

    Raises:
        ConfigurationError: It is none; the message doesn't repeat it.
    """

    __slots__ = ("_host", "_is_plaintext", "_name", "_text")

    def __init__(self, text: str, name: str) -> None:
        scheme, separator, rest = text.partition("://")
        scheme = scheme.removesuffix("+psycopg")
        address, _, query = rest.partition("?")
        location, slash, self._name = address.rpartition("@")[2].partition("/")
        if not separator or scheme not in _SCHEMES or not slash or not self._name:
            raise ConfigurationError(f"{name} must be a URL such as {EXAMPLE}.")
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        self._host = parameters.get("host", location)
        mode = parameters.get("sslmode")
        if mode is not None and mode not in _TLS | _NO_TLS:
            raise ConfigurationError(
                f"{name}: sslmode must be one of {', '.join(sorted(_TLS | _NO_TLS))}."
            )
        is_near = all(map(_is_near, self._host.split(",")))
        if mode in ("allow", "prefer") and not is_near:
            raise ConfigurationError(
                f"{name}: sslmode={mode} may talk in plain text without saying so; use verify-full,"
                " or disable to decide for plain text."
            )
        self._is_plaintext = mode == "disable" and not is_near
        if mode is None and not is_near:
            query = f"{query}&sslmode=require" if query else "sslmode=require"
        self._text = f"postgresql+psycopg://{address}{'?' if query else ''}{query}"

    @property
    def is_plaintext(self) -> bool:
        """Whether it says itself that another machine is talked to without TLS."""
        return self._is_plaintext

    def reveal(self) -> str:
        """The URL itself, for SQLAlchemy with psycopg; for connecting only."""
        return self._text

    def __str__(self) -> str:
        return f"postgresql://{self._host}/{self._name}"

    def __repr__(self) -> str:
        return f"DatabaseUrl({self})"


def _is_near(host: str) -> bool:
    """Whether a host is a Unix socket (a path, or nothing) or loopback."""
    if not host or host.startswith(("/", "@")):
        return True
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False

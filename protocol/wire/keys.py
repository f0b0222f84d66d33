"""CURVE keys as files: one pair for each role, read by whoever plays the role."""

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from protocol.errors import ConfigurationError
from protocol.wire.messages.control import Role

KEY_DIR_SETTING = "PENSTOCK_KEY_DIR"
KeyOwner = Literal["gateway", "engine", "auth", "toolparser"]
"""Who has a key pair: the gateway, and each role that dials it."""

_Z85_KEY = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")  # rfc.zeromq.org/32

_MAKE = "`penstock keygen` makes the keys"
_BRING = (
    "copy the folder of this role from where `penstock keygen` made the gateway's keys; "
    "a gateway refuses keys that are made apart from its own"
)


class SecretKey:
    """A secret key that its repr leaves out, so that no log or traceback holds it."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The key as 40 bytes of Z85 text."""
        return self._value

    def __repr__(self) -> str:
        return "SecretKey(***)"


@dataclass(frozen=True)
class ServerSecurity:
    """What a gateway needs: its secret, and which public keys may come as which role.

    Attributes:
        secret_key: The gateway's.
        role_keys: Public key of each role; the socket of a role takes only that role's key.
        own_public_key: The gateway's; its own sockets accept it too, for health checks.
    """

    secret_key: SecretKey
    role_keys: Mapping[Role, bytes]
    own_public_key: bytes

    @classmethod
    def load(cls, directory: Path) -> "ServerSecurity":
        """Read `gateway.secret`, `gateway.public` and the public key of each role.

        Raises:
            ConfigurationError: A file is missing, malformed, or a secret open to everybody.
        """
        return cls(
            secret_key=_read_secret(directory, "gateway", _MAKE),
            role_keys={role: read_public(directory, role) for role in get_args(Role)},
            own_public_key=read_public(directory, "gateway"),
        )

    def allowed_names(self, role: Role) -> dict[bytes, str]:
        """Public key → name, for the keys that may connect to the socket of a role."""
        return {self.role_keys[role]: role, self.own_public_key: "gateway"}


@dataclass(frozen=True)
class ClientSecurity:
    """What a worker needs: its role's key pair, and the gateway's public key."""

    public_key: bytes
    secret_key: SecretKey
    server_public_key: bytes

    @classmethod
    def load(cls, directory: Path, owner: KeyOwner) -> "ClientSecurity":
        """Read `<owner>.public`, `<owner>.secret` and `gateway.public`.

        Raises:
            ConfigurationError: A file is missing, malformed, or a secret open to everybody.
        """
        return cls(
            public_key=_read(directory / f"{owner}.public", _BRING),
            secret_key=_read_secret(directory, owner, _BRING),
            server_public_key=_read(directory / "gateway.public", _BRING),
        )


def _read_secret(directory: Path, owner: KeyOwner, way_out: str) -> SecretKey:
    path = directory / f"{owner}.secret"
    key = _read(path, way_out)
    if path.stat().st_mode & stat.S_IROTH:
        raise ConfigurationError(
            f"{KEY_DIR_SETTING}: everybody may read {path}; close it with `chmod 600 {path}`."
        )
    return SecretKey(key)


def read_public(directory: Path, owner: KeyOwner) -> bytes:
    """The public key of an owner, 40 bytes of Z85 text.

    Raises:
        ConfigurationError: It is missing or malformed.
    """
    return _read(directory / f"{owner}.public", _MAKE)


def _read(path: Path, way_out: str) -> bytes:
    try:
        with path.open("rb") as file:
            key = file.read(64).strip()
    except OSError as error:
        raise ConfigurationError(
            f"{KEY_DIR_SETTING}: cannot read {path} ({error.strerror}); {way_out}."
        ) from error
    if _Z85_KEY.fullmatch(key) is None:
        raise ConfigurationError(f"{KEY_DIR_SETTING}: {path} holds no CURVE key.")
    return key

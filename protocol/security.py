"""CURVE keys as files: one pair for each role, made once, read by whoever plays the role."""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from protocol.errors import ConfigurationError
from protocol.messages.control import Role
from protocol.transport_curve import new_key_pair

KEY_DIR_SETTING = "PENSTOCK_KEY_DIR"
KeyOwner = Literal["gateway", "engine", "auth", "toolparser"]
"""Who has a key pair: the gateway, and each role that dials it."""

_Z85_KEY = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")  # rfc.zeromq.org/32


class SecretKey:
    """A secret that shows itself only when asked for by name."""

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
        own_public_key: The gateway's; it may knock at its own sockets, for health checks.
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
            secret_key=_read_secret(directory, "gateway"),
            role_keys={role: _read_public(directory, role) for role in get_args(Role)},
            own_public_key=_read_public(directory, "gateway"),
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
            public_key=_read_public(directory, owner),
            secret_key=_read_secret(directory, owner),
            server_public_key=_read_public(directory, "gateway"),
        )


def generate_keys(directory: Path) -> tuple[Path, ...]:
    """Make the key pairs that are missing; existing ones stay, so that it may run again.

    A gateway needs its secret and all public keys; a worker its own pair and `gateway.public`.

    Args:
        directory: Created with mode 0700 if missing.

    Returns:
        The files written: `<owner>.secret` (0600) and `<owner>.public` (0644).

    Raises:
        ConfigurationError: Half a pair is there, or the folder can't be written.
    """
    written: list[Path] = []
    with _reporting(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for owner in get_args(KeyOwner):
            written.extend(_generate_pair(directory, owner))
    return tuple(written)


def generate_keys_by_role(directory: Path) -> tuple[Path, ...]:
    """Make a folder for each owner that holds just what this one needs, for machines and volumes.

    `gateway/` gets its pair and every public key; `engine/`, `auth/` and `toolparser/` get their
    own pair and `gateway.public`. Pairs that exist stay; public keys are copied anew, so that a
    role whose folder was emptied has new keys everywhere after another run.

    Args:
        directory: The folders are made in it, with mode 0700.

    Returns:
        The files written or changed.

    Raises:
        ConfigurationError: Half a pair is there, or a folder can't be written.
    """
    written: list[Path] = []
    with _reporting(directory):
        for owner in get_args(KeyOwner):
            (directory / owner).mkdir(mode=0o700, parents=True, exist_ok=True)
            written.extend(_generate_pair(directory / owner, owner))
        for role in get_args(Role):
            written.extend(_copy_public(directory / role, directory / "gateway", role))
            written.extend(_copy_public(directory / "gateway", directory / role, "gateway"))
    return tuple(written)


@contextmanager
def _reporting(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"Cannot write keys to {directory}: {error.strerror}.") from error


def _copy_public(source: Path, target: Path, owner: KeyOwner) -> tuple[Path, ...]:
    key = _read_public(source, owner)
    path = target / f"{owner}.public"
    if path.exists() and path.read_bytes().strip() == key:
        return ()
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    _write(fresh, key, 0o644)
    fresh.replace(path)
    return (path,)


def _generate_pair(directory: Path, owner: KeyOwner) -> tuple[Path, ...]:
    public_path, secret_path = directory / f"{owner}.public", directory / f"{owner}.secret"
    if public_path.exists() != secret_path.exists():
        raise ConfigurationError(
            f"Only one of {public_path.name} and {secret_path.name} is in {directory}; "
            "bring the other back, or remove both and run `penstock keygen` again."
        )
    if public_path.exists():
        return ()
    public, secret = new_key_pair()
    # The secret first: a public key without its secret would look like a finished pair to nobody.
    _write(secret_path, secret, 0o600)
    _write(public_path, public, 0o644)
    return (secret_path, public_path)


def _write(path: Path, key: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key + b"\n")


def _read_secret(directory: Path, owner: KeyOwner) -> SecretKey:
    path = directory / f"{owner}.secret"
    key = _read(path)
    if path.stat().st_mode & stat.S_IROTH:
        raise ConfigurationError(
            f"{KEY_DIR_SETTING}: everybody may read {path}; close it with `chmod 600 {path}`."
        )
    return SecretKey(key)


def _read_public(directory: Path, owner: KeyOwner) -> bytes:
    return _read(directory / f"{owner}.public")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            key = file.read(64).strip()
    except OSError as error:
        raise ConfigurationError(
            f"{KEY_DIR_SETTING}: cannot read {path} ({error.strerror}); "
            "`penstock keygen` makes the keys."
        ) from error
    if _Z85_KEY.fullmatch(key) is None:
        raise ConfigurationError(f"{KEY_DIR_SETTING}: {path} holds no CURVE key.")
    return key

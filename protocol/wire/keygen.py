"""Makes the CURVE key files: a pair for each role, once; existing ones stay."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from protocol.errors import ConfigurationError
from protocol.wire.keys import KeyOwner, read_public
from protocol.wire.messages.control import Role
from protocol.wire.transport_curve import new_key_pair


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
    own pair and `gateway.public`. Pairs that exist stay; public keys are copied again, so that a
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
    key = read_public(source, owner)
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

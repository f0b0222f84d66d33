"""Makes the first admin key as a file, for auth workers and commands that get it as a secret."""

import os
import secrets
from pathlib import Path

from penstock.durable_files import sync_folder
from penstock.errors import CommandError

_NUM_RANDOM_BYTES = 32


def make_admin_key(path: Path) -> bool:
    """Write a fresh admin key to a file with mode 0600, unless the file is there already.

    Args:
        path: What PENSTOCK_ADMIN_KEY_FILE names for the auth worker and for `penstock keys`.

    Returns:
        Whether a key was made.

    Raises:
        CommandError: The file can't be written, or it is there and empty, or a folder.
    """
    try:
        if path.is_dir():
            raise CommandError(f"{path} is a folder; name a file for the admin key.")
        if path.exists():
            if path.stat().st_size == 0:
                raise CommandError(f"{path} is empty; remove it to have an admin key made.")
            return False
        # Of this process alone: another one that makes a key at the same time has its own.
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(f"psk-{secrets.token_urlsafe(_NUM_RANDOM_BYTES)}\n")
                file.flush()
                os.fsync(descriptor)
            path.hardlink_to(fresh)
        except FileExistsError:
            if not path.exists():
                raise  # a link to nowhere
            return False  # the other one's, which may be in use
        finally:
            fresh.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise CommandError(f"Cannot write the admin key to {path}: {error.strerror}.") from error
    return True

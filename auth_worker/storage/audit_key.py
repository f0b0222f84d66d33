"""The key that signs checkpoints of the audit log, and the file that they are noted in as well."""

import logging
import secrets
from pathlib import Path
from typing import Final

from auth_worker.errors import StoreError
from auth_worker.records.audit_signing import KEY_BYTES, AuditSigner, Checkpoint
from auth_worker.storage.durable_file import unusable, write_durably

KEY_NAME: Final = "audit.key"
NOTES_NAME: Final = "audit.checkpoints"
_MAX_KEY_FILE_CHARS = 200

_logger = logging.getLogger("penstock.auth")


def load_signer(path: Path, *, may_make: bool = True) -> AuditSigner | None:
    """The key in a file, made with mode 0600 where it is missing.

    Returns:
        None when it is missing and may not be made.

    Raises:
        StoreError: It can't be read or made, or is no key.
    """
    if not path.exists():
        if not may_make:
            return None
        _make(path)
    try:
        text = path.read_text(encoding="ascii", errors="replace")[:_MAX_KEY_FILE_CHARS]
        key = bytes.fromhex(text.strip())
    except OSError as error:
        raise unusable(path, error) from error
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise StoreError(
            f"{path} holds no key for the audit log: {2 * KEY_BYTES} hexadecimal digits, as"
            f" `openssl rand -hex {KEY_BYTES}` prints them."
        )
    return AuditSigner(key)


def _make(path: Path) -> None:
    """Make a key, unless somebody who shares the folder was faster."""
    own = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    write_durably(own, secrets.token_hex(KEY_BYTES) + "\n")
    try:
        path.hardlink_to(own)
    except FileExistsError:
        pass
    except OSError as error:
        raise unusable(path, error) from error
    finally:
        own.unlink(missing_ok=True)


class CheckpointNotes:
    """Checkpoints in a file beside the database, or on another disk: it shows a cut-off end.

    Args:
        path: One checkpoint a line; only ever appended to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_failing = False

    def add(self, checkpoint: Checkpoint) -> None:
        """Note one; the database has it, too, so a file that can't be written is only said."""
        try:
            with self._path.open("a", encoding="ascii") as file:
                file.write(checkpoint.line() + "\n")
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                self._is_failing = True
                _logger.error("%s can't be written: %s", self._path, error.strerror)

    def read(self) -> list[Checkpoint]:
        """All of them; lines that are none, as a crash leaves, are passed over."""
        try:
            lines = self._path.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                found.append(Checkpoint.parse(line))
            except ValueError:
                _logger.warning("%s holds a line that is no checkpoint", self._path)
        return found

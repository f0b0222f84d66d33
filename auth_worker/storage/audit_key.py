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
MAX_NOTES_BYTES: Final = 1024 * 1024
"""A file of notes that grows beyond it is thinned out."""
WHOLE_NOTES: Final = 1000
"""So many of the newest notes are never left out."""
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

    Each of them stands for all entries before it, so that of many old ones some can go.

    Args:
        path: One checkpoint a line; appended to, and thinned out when it is too large.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._too_large = MAX_NOTES_BYTES
        self._is_failing = False

    def add(self, checkpoint: Checkpoint) -> None:
        """Note one; the database has it, too, so a file that can't be written is only said."""
        try:
            with self._path.open("a", encoding="ascii") as file:
                file.write(checkpoint.line() + "\n")
                num_bytes = file.tell()
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                self._is_failing = True
                _logger.error("%s can't be written: %s", self._path, error.strerror)
            return
        if num_bytes > self._too_large:
            self._thin_out(num_bytes)

    def _thin_out(self, num_bytes: int) -> None:
        """Leave every other one of the older ones out: the older, the fewer of a time are left.

        A file that may only be appended to stays as it is.
        """
        try:
            text = self._path.read_text(encoding="ascii", errors="replace")
            lines = text.splitlines(keepends=True)
            kept = (*lines[:-WHOLE_NOTES:2], *lines[-WHOLE_NOTES:])
            write_durably(self._path, "".join(kept))
            self._too_large = MAX_NOTES_BYTES
        except (OSError, StoreError) as error:
            _logger.warning("%s is large and can't be thinned out: %s", self._path, error)
            self._too_large = num_bytes + MAX_NOTES_BYTES

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

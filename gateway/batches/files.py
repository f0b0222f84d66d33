"""Files that tenants upload, and that batches leave: bounded by number, bytes and age.

A file is its content, `<id>.data`, and `<id>.json` beside it, which is written last: without it the
content is nobody's, and is removed by the sweep.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.batches.folders import (
    ids_in,
    is_id,
    json_of,
    new_id,
    read_json,
    read_page,
    replace_json,
    tenant_folder,
)
from gateway.errors import GatewayError, InvalidRequestError, ResourceNotFoundError

PREFIX: Final = "file-"
PURPOSES: Final = ("batch", "user_data", "assistants", "fine-tune", "vision", "evals")
_ID_DIGITS: Final = 24
_UNFINISHED_S: Final = 24 * 3600.0
"""An upload that was not finished for so long never will be."""
_MAX_KNOWN: Final = 10_000
"""Files whose descriptions aren't read again for each list."""

_NUMBERS: Final = ("num_bytes", "created_at", "expires_at")
"""Of a file's description; what else it says are texts."""


@dataclass(frozen=True, slots=True)
class FileBounds:
    """How much one tenant may keep.

    Attributes:
        max_files: Files at a time.
        max_bytes: Of all files together.
        max_file_bytes: Of one file.
        max_age_s: A file lives no longer.
    """

    max_files: int
    max_bytes: int
    max_file_bytes: int
    max_age_s: float


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What is known of a file; times are Unix seconds."""

    id: str
    filename: str
    purpose: str
    num_bytes: int
    created_at: int
    expires_at: int

    def as_object(self) -> dict[str, Any]:
        """As OpenAI's API tells it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class FileStore:
    """The files of all tenants; its methods block, so they are called beside the loop.

    Args:
        root: A folder of its own; made when it is first needed.
        bounds: Of each tenant.
        wall_clock: Unix seconds.

    Attributes:
        bounds: Of each tenant.
    """

    def __init__(
        self, root: Path, bounds: FileBounds, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._root = root
        self.bounds: Final = bounds
        self._wall_clock = wall_clock
        self._known: dict[str, StoredFile] = {}

    def begin(self, tenant: str) -> tuple[str, Path]:
        """An id for a new file and where its content is to be written.

        Raises:
            InvalidRequestError: The tenant has as many files as it may have.
        """
        folder = tenant_folder(self._root, tenant)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        num_files, num_bytes = _held(folder)
        if num_files >= self.bounds.max_files:
            raise InvalidRequestError(
                f"There are {num_files} files already, which is the limit; delete some first."
            )
        if num_bytes >= self.bounds.max_bytes:
            raise InvalidRequestError(
                f"Your files have {num_bytes} bytes together, which is over the limit of"
                f" {self.bounds.max_bytes}; delete some first."
            )
        file_id = new_id(PREFIX, self._wall_clock)
        return file_id, folder / f"{file_id}.data"

    def rename(self, tenant: str, file_id: str, made_id: str) -> tuple[str, Path]:
        """Give new content the id that a request's file has, however often that is sent.

        Args:
            tenant: Whose it is.
            file_id: Of `begin`, whose content was written.
            made_id: Of the request, 24 hex digits or more. Whoever repeats it sends the same bytes.

        Returns:
            As `begin` does.
        """
        folder = tenant_folder(self._root, tenant)
        own = f"{PREFIX}{made_id[:_ID_DIGITS]}"
        path = folder / f"{own}.data"
        (folder / f"{file_id}.data").replace(path)
        return own, path

    def check_room(self, tenant: str) -> None:
        """Look whether a tenant has no more than it may have.

        Results of batches are kept whatever there is already, so nothing else bounds them.

        Raises:
            InvalidRequestError: It has.
        """
        num_files, num_bytes = _held(tenant_folder(self._root, tenant))
        bounds = self.bounds
        if num_files > bounds.max_files or num_bytes > bounds.max_bytes:
            raise InvalidRequestError(
                f"Your files, results of batches among them, are {num_files} with {num_bytes} bytes"
                f" together, which is over the limit of {bounds.max_files} files and"
                f" {bounds.max_bytes} bytes; delete some first."
            )

    def finish(
        self,
        tenant: str,
        file_id: str,
        filename: str,
        purpose: str,
        lifetime_s: float | None = None,
        *,
        is_ours: bool = False,
    ) -> StoredFile:
        """Keep a file whose content was written; a second time changes nothing.

        Args:
            tenant: Whose it is.
            file_id: Of `begin`.
            filename: As the client called it.
            purpose: What for.
            lifetime_s: None is as long as files live.
            is_ours: The result of a batch, which is kept even where a tenant has much already.

        Raises:
            InvalidRequestError: The tenant would have more bytes than it may have.
        """
        folder = tenant_folder(self._root, tenant)
        path = folder / f"{file_id}.data"
        known = self._read(folder, file_id)
        if known is not None:
            return known
        num_bytes = path.stat().st_size
        _, held = _held(folder)  # this one among them
        if not is_ours and held > self.bounds.max_bytes:
            path.unlink(missing_ok=True)
            raise InvalidRequestError(
                f"With this file of {num_bytes} bytes your files would have {held};"
                f" {self.bounds.max_bytes} may. Delete some first."
            )
        now = int(self._wall_clock())
        age_s = self.bounds.max_age_s
        stored = StoredFile(
            id=file_id,
            filename=filename,
            purpose=purpose,
            num_bytes=num_bytes,
            created_at=now,
            expires_at=now + int(age_s if lifetime_s is None else min(lifetime_s, age_s)),
        )
        replace_json(
            folder / f"{file_id}.json",
            {name: getattr(stored, name) for name in StoredFile.__slots__},
        )
        return stored

    def find(self, tenant: str, file_id: str) -> StoredFile:
        """A file.

        Raises:
            ResourceNotFoundError: This tenant has none of this id.
            GatewayError: The disk doesn't say.
        """
        stored: StoredFile | None = None
        if is_id(file_id, PREFIX):
            try:
                stored = self._read(tenant_folder(self._root, tenant), file_id)
            except OSError as error:
                raise disk_error(error) from error
        if stored is None or stored.expires_at <= self._wall_clock():
            raise ResourceNotFoundError("file", file_id)
        return stored

    def content_path(self, tenant: str, file_id: str) -> Path:
        """Where the content of a file is.

        Raises:
            ResourceNotFoundError: This tenant has none of this id.
        """
        stored = self.find(tenant, file_id)
        return tenant_folder(self._root, tenant) / f"{stored.id}.data"

    def new_path(self, tenant: str, file_id: str) -> Path:
        """Where the content of a file of ours goes, whatever the tenant has already."""
        folder = tenant_folder(self._root, tenant)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder / f"{file_id}.data"

    def page(
        self, tenant: str, purpose: str, after: str, limit: int, *, newest_first: bool
    ) -> tuple[list[StoredFile], bool]:
        """Files of a tenant, and whether there are more behind them.

        Args:
            tenant: Whose they are.
            purpose: Of these files; empty for all.
            after: The id of the last one of the page before, be it gone by now; empty for the
                first page.
            limit: Of the page.
            newest_first: Their order.

        Raises:
            InvalidRequestError: `after` can't be the id of a file.
            OSError: The disk doesn't say.
        """
        folder, now = tenant_folder(self._root, tenant), self._wall_clock()

        def read(file_id: str) -> StoredFile | None:
            stored = self._described(folder, file_id)
            if stored is None or stored.expires_at <= now:
                return None
            return stored if purpose in ("", stored.purpose) else None

        ids = ids_in(folder, PREFIX, ".json")
        return read_page(ids, read, PREFIX, after, limit, newest_first=newest_first)

    def _described(self, folder: Path, file_id: str) -> StoredFile | None:
        """What is known of a file that is there: what was said of it once never changes."""
        stored = self._known.get(file_id)
        if stored is None:
            stored = self._read(folder, file_id)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            if stored is not None:
                self._known[file_id] = stored
        return stored

    def remove(self, tenant: str, file_id: str) -> None:
        """Forget a file; what reads it at the moment reads on.

        Raises:
            ResourceNotFoundError: This tenant has none of this id.
        """
        self.find(tenant, file_id)
        self._remove(tenant_folder(self._root, tenant), file_id)

    def sweep(self) -> int:
        """Remove what is too old, and what uploads left that never ended; how many that were."""
        now, num_removed = self._wall_clock(), 0
        for folder in self._root.glob("*"):
            for path in folder.glob(f"{PREFIX}*.json"):
                with suppress(OSError):  # it says nothing now, and isn't too old for that
                    if self._is_over(path, now):
                        self._remove(folder, path.stem)
                        num_removed += 1
            for path in folder.glob(f"{PREFIX}*.data"):
                with suppress(OSError):
                    is_old = path.stat().st_mtime + _UNFINISHED_S < now
                    if is_old and not path.with_suffix(".json").exists():
                        path.unlink()
                        num_removed += 1
            with suppress(OSError):
                folder.rmdir()  # only where nothing is left
        return num_removed

    def _is_over(self, path: Path, now: float) -> bool:
        """Whether a file whose description is there is to go.

        Raises:
            OSError: That can't be read.
        """
        described = json_of(path.read_bytes())
        stored = _stored(described)
        if stored is not None:
            return stored.expires_at <= now
        # Another release of this server on the same folder may know what that says; no release
        # keeps a file longer than this.
        return described is None or path.stat().st_mtime + self.bounds.max_age_s <= now

    def _read(self, folder: Path, file_id: str) -> StoredFile | None:
        return _stored(read_json(folder / f"{file_id}.json"))

    def _remove(self, folder: Path, file_id: str) -> None:
        self._known.pop(file_id, None)
        (folder / f"{file_id}.json").unlink(missing_ok=True)
        (folder / f"{file_id}.data").unlink(missing_ok=True)


def _held(folder: Path) -> tuple[int, int]:
    """Files and bytes of a tenant, uploads under way among them."""
    num_files = num_bytes = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".data"):
                num_files += 1
                with suppress(FileNotFoundError):
                    num_bytes += entry.stat().st_size
    return num_files, num_bytes


def _stored(value: dict[str, Any] | None) -> StoredFile | None:
    """What a description says, as far as this release knows it; None where it lacks a field."""
    known: dict[str, Any] = {name: (value or {}).get(name) for name in StoredFile.__slots__}
    is_whole = all(isinstance(one, int if name in _NUMBERS else str) for name, one in known.items())
    return StoredFile(**known) if is_whole else None


def disk_error(error: OSError) -> GatewayError:
    """What a client is told when the disk doesn't take or give something."""
    return GatewayError(f"The disk of this server failed: {error.strerror or 'unknown error'}.")

"""The batches of all tenants on disk: made, found, listed, cancelled, claimed by one gateway."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gateway.batches.files import FileStore
from gateway.batches.folders import (
    ids_in,
    is_id,
    new_id,
    read_json,
    read_page,
    replace_json,
    tenant_folder,
)
from gateway.batches.records import ENDED, PREFIX, WINDOW_S, Batch
from gateway.errors import InvalidRequestError, ResourceNotFoundError

INPUT: Final = "input.jsonl"
_STATE: Final = "batch.json"
_LOCK: Final = "lock"
_CANCEL: Final = "cancel"
_CANCELLABLE: Final = ("validating", "in_progress")
_UNRECORDED_S: Final = 24 * 3600.0
"""What was begun so long ago and has no record never will have one."""
MAX_UNFINISHED: Final = 100
MAX_BATCHES: Final = 1000
"""Of one tenant; beyond, the oldest that have ended are forgotten."""


@dataclass(slots=True)
class Claim:
    """A batch that this gateway alone works on, until `release` or its end."""

    batch: Batch
    folder: Path
    lock: int

    @property
    def input_path(self) -> Path:
        """The lines."""
        return self.folder / INPUT

    @property
    def cancelled_at(self) -> int | None:
        """When somebody asked for its end, Unix seconds; None as long as nobody has."""
        return _cancelled_at(self.folder)

    def save(self, **changes: Any) -> None:
        """Keep what the batch says, with some fields changed.

        `batch` changes only once that is on the disk: whoever looks at it after a save that failed
        must not go on from a step that the next process knows nothing of.

        Args:
            changes: New values of fields of `batch`.

        Raises:
            OSError: The disk doesn't take it; nothing has changed.
        """
        changed = replace(self.batch, **changes)
        replace_json(self.folder / _STATE, changed.as_record())
        for name, value in changes.items():
            setattr(self.batch, name, value)

    def release(self) -> None:
        """Let another gateway go on with it."""
        os.close(self.lock)


class BatchStore:
    """Batches by tenant; its methods block, so they are called beside the loop.

    Args:
        root: A folder of its own; made when it is first needed.
        files: Where inputs come from and outputs go to.
        max_age_s: A batch that ended is forgotten so long after it was made.
        wall_clock: Unix seconds.
    """

    def __init__(
        self,
        root: Path,
        files: FileStore,
        max_age_s: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._files = files
        self._max_age_s = max_age_s
        self._wall_clock = wall_clock
        # By tenant's folder: ids of batches that have ended, and what each was made by. These
        # never change, so they aren't read again, however many a tenant keeps.
        self._ended: dict[str, Mapping[str, str]] = {}

    def create(
        self,
        tenant: str,
        *,
        key_digest: str,
        key_id: str,
        address: str,
        end_user: str = "",
        made_id: str = "",
        endpoint: str,
        input_file_id: str,
        metadata: dict[str, str] | None,
        output_lifetime_s: int | None,
    ) -> Batch:
        """A new batch; it has the input for itself, whatever becomes of the file.

        One that was made before, by `made_id`, is as it is by now.

        Raises:
            InvalidRequestError: The file is for something else, too many batches are under way, or
                the tenant has too many files.
            ResourceNotFoundError: This tenant has no such file.
            OSError: The disk doesn't say, or doesn't take it.
        """
        unfinished, ended = self._survey(tenant_folder(self._root, tenant), is_whole=bool(made_id))
        made = self._made_before(tenant, made_id, unfinished, ended) if made_id else None
        if made is not None:
            return made
        stored = self._files.find(tenant, input_file_id)
        if stored.purpose != "batch":
            raise InvalidRequestError(
                f"The file `{stored.id}` has the purpose `{stored.purpose}`; it must be `batch`.",
                param="input_file_id",
            )
        num_unfinished = len(unfinished)
        if num_unfinished >= MAX_UNFINISHED:
            raise InvalidRequestError(
                f"{num_unfinished} batches are under way, which is the limit; wait or cancel some."
            )
        self._files.check_room(tenant)
        # An input stays on the disk for its batch, whatever becomes of the file.
        inputs = [self._folder(tenant, batch.id) / INPUT for batch in unfinished]
        held = _bytes_of([*inputs, self._files.content_path(tenant, stored.id)])
        if held > self._files.bounds.max_bytes:
            raise InvalidRequestError(
                f"With this one the batches under way would have {held} bytes of input;"
                f" {self._files.bounds.max_bytes} may. Wait or cancel some.",
                param="input_file_id",
            )
        num_beyond = len(unfinished) + len(ended) + 1 - MAX_BATCHES
        for batch_id in list(ended)[: max(0, num_beyond)]:
            self._forget(self._folder(tenant, batch_id))
        now = int(self._wall_clock())
        batch = Batch(
            id=new_id(PREFIX, self._wall_clock),
            tenant=tenant,
            key_digest=key_digest,
            key_id=key_id,
            address=address,
            end_user=end_user,
            made_id=made_id,
            endpoint=endpoint,
            input_file_id=stored.id,
            created_at=now,
            expires_at=now + WINDOW_S,
            metadata=metadata,
            output_lifetime_s=output_lifetime_s,
        )
        folder = self._folder(tenant, batch.id)
        folder.mkdir(mode=0o700, parents=True)
        try:
            os.link(self._files.content_path(tenant, stored.id), folder / INPUT)
            replace_json(folder / _STATE, batch.as_record())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # no sweep finds one without a record
            raise
        return batch

    def find(self, tenant: str, batch_id: str) -> Batch:
        """A batch as it was last saved, and `cancelling` from the moment when that was asked for.

        Raises:
            ResourceNotFoundError: This tenant has none of this id.
            OSError: The disk doesn't say.
        """
        batch = _told(self._folder(tenant, batch_id)) if is_id(batch_id, PREFIX) else None
        if batch is None:
            raise ResourceNotFoundError("batch", batch_id)
        return batch

    def page(self, tenant: str, after: str, limit: int) -> tuple[list[Batch], bool]:
        """Batches of a tenant, newest first, and whether there are more behind them.

        Args:
            tenant: Whose they are.
            after: The id of the last one of the page before, be it gone by now; empty for the
                first page.
            limit: Of the page.

        Raises:
            InvalidRequestError: `after` can't be the id of a batch.
            OSError: The disk doesn't say.
        """
        folder = tenant_folder(self._root, tenant)
        ids = ids_in(folder, PREFIX)
        return read_page(
            ids, lambda one: _told(folder / one), PREFIX, after, limit, newest_first=True
        )

    def cancel(self, tenant: str, batch_id: str) -> Batch:
        """Ask for the end of a batch; one that has ended stays as it is.

        Raises:
            ResourceNotFoundError: This tenant has none of this id.
            OSError: The disk doesn't say, or doesn't take it.
        """
        batch = self.find(tenant, batch_id)
        if batch.status in _CANCELLABLE:
            path, now = self._folder(tenant, batch_id) / _CANCEL, int(self._wall_clock())
            path.touch()
            os.utime(path, (now, now))
            _mark_cancelled(batch, now)
        return batch

    def unfinished(self) -> Sequence[Batch]:
        """The batches of all tenants that haven't ended, oldest first."""
        tenants = ids_in(self._root, "")
        for gone in set(self._ended) - set(tenants):
            self._ended.pop(gone, None)
        found = [batch for name in tenants for batch in self._survey(self._root / name)[0]]
        return sorted(found, key=lambda batch: batch.id)

    def claim(self, tenant: str, batch_id: str) -> Claim | None:
        """A batch for this gateway alone; None when another one has it, or it has ended.

        Raises:
            OSError: It can't be locked or read: too many files are open, for instance.
        """
        folder = self._folder(tenant, batch_id)
        try:
            lock = _try_lock(folder / _LOCK)
        except FileNotFoundError:
            return None  # it was forgotten meanwhile
        if lock is None:
            return None
        try:
            batch = _read(folder)
        except OSError:
            os.close(lock)
            raise
        if batch is None or batch.status in ENDED:
            os.close(lock)
            return None
        return Claim(batch, folder, lock)

    def sweep(self) -> int:
        """Forget batches that ended long ago, and what kills left of others; how many that were."""
        now, num_removed = self._wall_clock(), 0
        for folder in self._root.glob(f"*/{PREFIX}*"):
            try:
                batch = _read(folder)
            except OSError:
                continue  # it says nothing now
            is_old = batch is not None and batch.created_at < now - self._max_age_s
            is_over = is_old and batch is not None and batch.status in ENDED
            if is_over or _is_left_behind(folder, now):
                self._forget(folder)
                num_removed += 1
        for tenant in self._root.glob("*"):
            with suppress(OSError):
                tenant.rmdir()  # only where nothing is left
        return num_removed

    def _survey(
        self, folder: Path, *, is_whole: bool = False
    ) -> tuple[Sequence[Batch], Mapping[str, str]]:
        """A tenant's batches that haven't ended, and the ids of the others; both oldest first.

        With each of these ids stands its `made_id`.

        Args:
            folder: Of the tenant.
            is_whole: Whether all must be there; otherwise one that can't be read now costs no
                other.

        Raises:
            OSError: One of all can't be read.
        """
        before = self._ended.get(folder.name, {})
        unfinished: list[Batch] = []
        ended: dict[str, str] = {}
        for batch_id in ids_in(folder, PREFIX):
            made_id = before.get(batch_id)
            if made_id is None:
                try:
                    batch = _told(folder / batch_id)
                except OSError:
                    if is_whole:
                        raise
                    continue
                if batch is None:
                    continue
                if batch.status not in ENDED:
                    unfinished.append(batch)
                    continue
                made_id = batch.made_id
            ended[batch_id] = made_id
        self._ended[folder.name] = ended
        return unfinished, ended

    def _made_before(
        self, tenant: str, made_id: str, unfinished: Iterable[Batch], ended: Mapping[str, str]
    ) -> Batch | None:
        """The batch that a request has made already; None where it hasn't."""
        for batch in unfinished:
            if batch.made_id == made_id:
                return batch
        ids = [batch_id for batch_id, made in ended.items() if made == made_id]
        return _read(self._folder(tenant, ids[0])) if ids else None

    def _folder(self, tenant: str, batch_id: str) -> Path:
        return tenant_folder(self._root, tenant) / batch_id

    def _forget(self, folder: Path) -> None:
        with suppress(FileNotFoundError):
            (folder / _STATE).unlink()
        shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path) -> Batch | None:
    """A batch; None where there is none that this release reads.

    Raises:
        OSError: The disk doesn't say.
    """
    record = read_json(folder / _STATE)
    try:
        return None if record is None else Batch.from_record(record)
    except TypeError:
        return None


def _is_left_behind(folder: Path, now: float) -> bool:
    """Whether a folder has no record, be it readable or not, and hasn't had one for a day."""
    try:
        return not (folder / _STATE).exists() and folder.stat().st_mtime < now - _UNRECORDED_S
    except OSError:
        return False


def _told(folder: Path) -> Batch | None:
    """A batch as clients see it: whoever works on it may not know yet that it is to end."""
    batch = _read(folder)
    if batch is not None and batch.status in _CANCELLABLE:
        cancelled_at = _cancelled_at(folder)
        if cancelled_at is not None:
            _mark_cancelled(batch, cancelled_at)
    return batch


def _mark_cancelled(batch: Batch, cancelled_at: int) -> None:
    batch.status = "cancelling"
    batch.stamps["cancelling_at"] = cancelled_at


def _cancelled_at(folder: Path) -> int | None:
    try:
        return int((folder / _CANCEL).stat().st_mtime)
    except FileNotFoundError:
        return None


def _bytes_of(paths: Iterable[Path]) -> int:
    """What files hold together; one that several names lead to counts once."""
    sizes: dict[int, int] = {}
    for path in paths:
        with suppress(FileNotFoundError):  # its batch ended just now
            found = path.stat()
            sizes[found.st_ino] = found.st_size
    return sum(sizes.values())


def _try_lock(path: Path) -> int | None:
    """A lock that ends with this process, however that ends."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    return fd

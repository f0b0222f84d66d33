"""Where tenants' things lie on disk, and how a small file is replaced whole."""

import hashlib
import os
import re
import secrets
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson

from gateway.errors import InvalidRequestError

EntryT = TypeVar("EntryT")

_ID: Final = re.compile(r"[a-z]{1,16}[-_][0-9a-f]{24}")
_TIME_BYTES: Final = 6
_RANDOM_BYTES: Final = 6


def new_id(prefix: str, wall_clock: Callable[[], float] = time.time) -> str:
    """An id that sorts by the time it was made; `prefix` ends with its separator."""
    milliseconds = int(wall_clock() * 1000) % 256**_TIME_BYTES
    return f"{prefix}{milliseconds:012x}{secrets.token_hex(_RANDOM_BYTES)}"


def is_id(text: str, prefix: str) -> bool:
    """Whether a client's text may be one of our ids, and so a part of a path."""
    return text.startswith(prefix) and _ID.fullmatch(text) is not None


def tenant_folder(root: Path, tenant: str) -> Path:
    """A tenant's own folder: whoever looks there finds nothing of anybody else."""
    return root / hashlib.sha256(tenant.encode()).hexdigest()[:32]


def ids_in(folder: Path, prefix: str, suffix: str = "") -> list[str]:
    """The ids that name entries of a folder, oldest first; none where there is no folder.

    Args:
        folder: Of a tenant.
        prefix: Of the ids.
        suffix: Of the entries, behind the id.
    """
    names: list[str] = []
    with suppress(FileNotFoundError, NotADirectoryError):
        names = os.listdir(folder)  # noqa: PTH208 - a path each costs ten times as much
    return sorted(
        name.removesuffix(suffix)
        for name in names
        if name.startswith(prefix) and name.endswith(suffix)
    )


def read_page(
    ids: Sequence[str],
    read: Callable[[str], EntryT | None],
    prefix: str,
    after: str,
    limit: int,
    *,
    newest_first: bool,
) -> tuple[list[EntryT], bool]:
    """A page of a list, and whether more follows; no more is read than that takes.

    Args:
        ids: Of the list, oldest first.
        read: What one stands for; None where that is gone, or is no part of the list.
        prefix: Of the ids.
        after: The last one of the page before, which may be gone by now; empty for the first page.
        limit: Of the page.
        newest_first: The order of the list.

    Raises:
        InvalidRequestError: `after` can't be the id of anything in the list.
    """
    if after and not is_id(after, prefix):
        raise InvalidRequestError("`after` names nothing in this list.", param="after")
    # Whoever deletes what it is shown goes on where that was: ids sort by their time.
    if newest_first:
        left = ids[: bisect_left(ids, after)] if after else ids
    else:
        left = ids[bisect_right(ids, after) :]
    shown: list[EntryT] = []
    for one in map(read, reversed(left) if newest_first else left):
        if one is not None and len(shown) == limit:
            return shown, True
        if one is not None:
            shown.append(one)
    return shown, False


def replace_json(path: Path, value: Any) -> None:
    """Write a small file whole or not at all, and durably.

    Raises:
        OSError: It can't be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(orjson.dumps(value))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """A small file of ours; None when it isn't there, or holds no object of JSON.

    Raises:
        OSError: The disk doesn't say; whoever takes that for a file that is gone loses it.
    """
    try:
        return json_of(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def json_of(content: bytes) -> dict[str, Any] | None:
    """What a small file of ours holds; None when it is no object of JSON."""
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None

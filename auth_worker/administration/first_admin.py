"""Sees to it, at the start, that somebody can administer: the environment's key or a made one."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from auth_worker.clock import Clock
from auth_worker.config import AdminKey
from auth_worker.principals.keys import (
    DEFAULT_TENANT,
    ENVIRONMENT_KEY_ID,
    ENVIRONMENT_KEY_NAME,
    KeyDirectory,
    StoredKey,
    digest_of,
    hint_of,
    is_closed_by_admin,
    make_key,
    may_last,
)
from auth_worker.records.operations import (
    AddKey,
    AuditAction,
    AuditEntry,
    Operation,
    PutKey,
    Snapshot,
)
from auth_worker.storage.durable_file import write_durably
from auth_worker.storage.store import Store
from protocol.errors import ConfigurationError

ADMIN_KEY_FILE = "admin.key"

_logger = logging.getLogger("penstock.auth")


class FirstAdmin(NamedTuple):
    """What was done for there to be an administrator.

    Attributes:
        path: The file with the key, if one was made.
        has_changed: Whether the store holds other keys than before.
    """

    path: Path | None
    has_changed: bool


def ensure_admin(
    store: Store,
    known: Snapshot,
    *,
    given: AdminKey | None,
    directory: Path,
    clock: Clock,
    random_text: Callable[[int], str],
    new_key_id: Callable[[], str],
) -> "FirstAdmin":
    """Make the store hold an admin key that doesn't expire.

    A given key is stored under one fixed id: another value replaces it, and without one it ends,
    so that a secret taken out of the environment opens nothing any more; one that an administrator
    revoked opens nothing as long as it is given. When no admin key without
    an expiry is left then, one is made and written to a file before its digest is stored: a crash
    between the two leaves a file that the next start overwrites, never a key that nobody knows.

    Args:
        store: Not yet in use by a commit thread.
        known: What the store holds: keys with their users and teams, who may close them.
        given: PENSTOCK_ADMIN_KEY.
        directory: Where `admin.key` goes.
        clock: For creation times.
        random_text: `secrets.token_urlsafe`.
        new_key_id: Makes ids for keys.

    Returns:
        What was done.

    Raises:
        ConfigurationError: The given key is known already as one of another kind.
        StoreError: The file can't be written, or the store refuses the key.
    """
    wall_s = clock.wall_s()
    directory_of_keys = KeyDirectory(_looked_at(known.keys, given), known.users, known.teams)
    operations = _operations_for_given(directory_of_keys, given, wall_s)
    for operation in operations:
        directory_of_keys.put(operation.key)
    path: Path | None = None
    changes: list[Operation] = list(operations)
    if directory_of_keys.num_lasting_admins(1) == 0:
        secret = make_key(random_text)
        path = directory / ADMIN_KEY_FILE
        write_durably(path, secret + "\n")
        key = _admin_key(new_key_id(), "first admin key", secret, wall_s)
        changes.append(AddKey(key, _entry("key_created", key, wall_s)))
        _logger.info("no admin key without an expiry existed; a new one is in %s", path)
    if changes:
        store.apply(changes)
    return FirstAdmin(path, bool(changes))


def _looked_at(known: Sequence[StoredKey], given: AdminKey | None) -> list[StoredKey]:
    """The keys that matter here: to index a hundred thousand takes as long as to read them."""
    digest = b"" if given is None else digest_of(given.reveal())
    return [
        key
        for key in known
        if may_last(key)
        or key.key_id == ENVIRONMENT_KEY_ID
        or digest in (key.digest, key.previous_digest)
    ]


def _operations_for_given(
    keys: KeyDirectory, given: AdminKey | None, wall_s: float
) -> list[PutKey]:
    current = keys.get(ENVIRONMENT_KEY_ID)
    if given is None:
        if current is None or current.revoked_at is not None:
            return []
        _logger.info("%s is no longer set; its key is revoked", ENVIRONMENT_KEY_NAME)
        return [_replacing(replace(current, revoked_at=int(wall_s)), wall_s)]
    digest = digest_of(given.reveal())
    same = keys.find(digest)
    if same is not None and same.key_id != ENVIRONMENT_KEY_ID:
        if same.is_of_admin and same.is_active(wall_s) and same.takes(digest, wall_s):
            return []  # the made key, handed on through the environment
        raise ConfigurationError(
            f"{ENVIRONMENT_KEY_NAME} holds a key that was stored before ({same.key_id}) and opens"
            " nothing now, or not of role admin: it, its user or its team has ended, or it was"
            " rotated. Choose another one."
        )
    if same is not None and same.is_active(wall_s):
        return []
    if same is not None and is_closed_by_admin(same):
        _logger.error(
            "%s holds a key that was revoked; it opens nothing. Set another one.",
            ENVIRONMENT_KEY_NAME,
        )
        return []
    key = _admin_key(ENVIRONMENT_KEY_ID, ENVIRONMENT_KEY_NAME, given.reveal(), wall_s)
    if current is not None:
        key = replace(key, created_at=current.created_at)
    return [_replacing(key, wall_s)]


def _admin_key(key_id: str, name: str, secret: str, wall_s: float) -> StoredKey:
    return StoredKey(
        key_id=key_id,
        digest=digest_of(secret),
        hint=hint_of(secret),
        name=name,
        role="admin",
        tenant=DEFAULT_TENANT,
        created_at=int(wall_s),
    )


def _replacing(key: StoredKey, wall_s: float) -> PutKey:
    return PutKey(key, _entry("admin_key_changed", key, wall_s))


def _entry(action: AuditAction, key: StoredKey, wall_s: float) -> AuditEntry:
    return AuditEntry(
        at_ms=int(wall_s * 1000),
        actor_key_id="",
        action=action,
        subject=key.key_id,
        detail={"name": key.name, "hint": key.hint, "revoked_at": key.revoked_at},
    )

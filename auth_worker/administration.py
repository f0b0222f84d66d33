"""Turns admin commands into operations, after checking who asks and what may not happen."""

from collections.abc import Callable
from dataclasses import replace

from auth_worker.clock import Clock
from auth_worker.errors import ActorNotAllowedError, InvalidCommandError, KeyNotFoundError
from auth_worker.keys import (
    ANONYMOUS_KEY_ID,
    ENVIRONMENT_KEY_ID,
    ENVIRONMENT_KEY_NAME,
    KeyDirectory,
    StoredKey,
    key_from_command,
)
from auth_worker.operations import AddKey, AuditEntry, EndKey, ReadKeys
from protocol.wire.messages import CreateKey, ListKeys, RevokeKey

MAX_PAGE = 1000


class Administration:
    """Keys, as admins make and end them.

    Args:
        keys: All keys; a revocation changes it at once, before it is durable.
        clock: For creation and revocation times.
        new_key_id: Makes ids for keys.
    """

    def __init__(self, keys: KeyDirectory, *, clock: Clock, new_key_id: Callable[[], str]) -> None:
        self._keys = keys
        self._clock = clock
        self._new_key_id = new_key_id

    def create(self, command: CreateKey) -> AddKey:
        """A new key; it opens nothing before `added` is called.

        Raises:
            ActorNotAllowedError: Who asks holds no active admin key.
            InvalidCommandError: A value is out of bounds.
        """
        self._check_actor(command.actor_key_id)
        key = key_from_command(command, key_id=self._new_key_id(), wall_s=self._clock.wall_s())
        detail: dict[str, str | int | None] = {
            "name": key.name,
            "role": key.role,
            "tenant": key.tenant_id,
            "hint": key.hint,
            "requests_per_minute": key.requests_per_minute,
            "tokens_per_minute": key.tokens_per_minute,
            "expires_at": key.expires_at,
        }
        entry = AuditEntry(
            at_ms=self._wall_ms(),
            actor_key_id=command.actor_key_id,
            action="key_created",
            subject=key.key_id,
            detail=detail,
        )
        return AddKey(key, entry)

    def added(self, key: StoredKey, key_id: str) -> None:
        """The store holds the key now, under this id: it opens doors from here on."""
        if self._keys.get(key_id) is None:
            self._keys.put(replace(key, key_id=key_id))

    def revoke(self, command: RevokeKey) -> EndKey:
        """End a key. It opens nothing from this moment on, even if the disk should fail.

        Raises:
            ActorNotAllowedError: Who asks holds no active admin key.
            KeyNotFoundError: No key has this id.
            InvalidCommandError: It is the last admin key that doesn't expire, or the
                environment's.
        """
        self._check_actor(command.actor_key_id)
        key = self._keys.get(command.key_id)
        if key is None:
            raise KeyNotFoundError(f"There is no key '{command.key_id[:100]}'.", param="key_id")
        if key.key_id == ENVIRONMENT_KEY_ID and key.revoked_at is None:
            raise InvalidCommandError(
                f"This key is set by {ENVIRONMENT_KEY_NAME}; change or remove it there.",
                param="key_id",
            )
        wall_s = self._clock.wall_s()
        # Temporary ones don't count: when the last of them expires, nobody could make another.
        is_lasting = key.role == "admin" and key.revoked_at is None and key.expires_at is None
        if is_lasting and self._keys.num_lasting_admins() == 1:
            raise InvalidCommandError(
                "This is the last admin key that does not expire; create another one without "
                "'expires_at' before revoking it.",
                param="key_id",
            )
        self._keys.revoke(key.key_id, int(wall_s))
        entry = AuditEntry(
            at_ms=self._wall_ms(),
            actor_key_id=command.actor_key_id,
            action="key_revoked",
            subject=key.key_id,
        )
        return EndKey(key.key_id, int(wall_s), entry)

    def list(self, command: ListKeys) -> ReadKeys:
        """A page of keys.

        Raises:
            InvalidCommandError: The limit is out of range.
        """
        if not 1 <= command.limit <= MAX_PAGE:
            raise InvalidCommandError(f"'limit' must be 1 to {MAX_PAGE}.", param="limit")
        return ReadKeys(command.after_key_id, command.limit)

    def _check_actor(self, key_id: str) -> None:
        """The gateway asked before; a key may have been revoked in between."""
        actor = None if key_id == ANONYMOUS_KEY_ID else self._keys.get(key_id)
        if actor is None or actor.role != "admin" or not actor.is_active(self._clock.wall_s()):
            raise ActorNotAllowedError("Managing keys needs an active key of role admin.")

    def _wall_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)

"""Turns admin commands into operations, after checking who asks and what may not happen."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from auth_worker.administration.actors import (
    acting_key,
    check_lasts,
    check_page,
    check_reach,
    entry_of,
)
from auth_worker.clock import Clock
from auth_worker.errors import InvalidCommandError, KeyNotFoundError, KeyOfEnvironmentError
from auth_worker.principals.checks import check_length
from auth_worker.principals.key_definition import (
    MAX_OVERLAP_S,
    audited,
    changed,
    check_digest,
    checked,
    stored,
)
from auth_worker.principals.keys import (
    ADMINISTERING,
    ENVIRONMENT_KEY_ID,
    ENVIRONMENT_KEY_NAME,
    KeyDirectory,
    StoredKey,
    is_closed_by_admin,
    is_lasting_admin,
)
from auth_worker.records.operations import (
    AddKey,
    AuditAction,
    AuditEntry,
    ChangeKey,
    CountKeyRows,
    DropKey,
    ReadAuditRows,
    ReadKeys,
)
from auth_worker.storage.key_table import setting_values
from protocol.wire.messages import (
    Actor,
    ChangeKeyStatus,
    CountKeys,
    FindKeys,
    KeyAction,
    KeySettings,
    MakeKey,
    ReadAudit,
    RotateKey,
    Scope,
    UpdateKey,
)

_DEFAULTS = KeySettings(name="")

_ACTIONS: Mapping[KeyAction, AuditAction] = {
    "suspend": "key_suspended",
    "reactivate": "key_reactivated",
    "revoke": "key_revoked",
    "delete": "key_deleted",
}
_ENDING: Final = frozenset({"suspend", "revoke"})
"""Changes that open nothing to anybody."""


class Administration:
    """Keys and the audit log, as admins change and read them.

    What it changes holds in memory at once, before it is durable, so that the next command is
    judged by it; only a new key opens nothing until then.

    Args:
        keys: All keys.
        clock: For creation, revocation and audit times.
        new_key_id: Makes ids for keys.
    """

    def __init__(self, keys: KeyDirectory, *, clock: Clock, new_key_id: Callable[[], str]) -> None:
        self._keys = keys
        self._clock = clock
        self._new_key_id = new_key_id

    def make(self, command: MakeKey) -> AddKey:
        """A new key; it opens nothing before `added` is called.

        Raises:
            ActorNotAllowedError: Who asks may not administer keys, or not such a one.
            InvalidCommandError: A value is out of bounds.
        """
        actor = self._actor(command.actor, ADMINISTERING)
        check_digest(command.key_digest, command.hint)
        wall_s = self._clock.wall_s()
        settings = checked(command.settings, wall_s=wall_s)
        self._check_people(settings.user_id, settings.team_id)
        key = stored(
            settings,
            key_id=self._new_key_id(),
            digest=command.key_digest,
            hint=command.hint,
            created_at=int(wall_s),
        )
        check_reach(actor, key)  # whatever its user takes from it today
        check_lasts(actor, key)
        entry = self._entry(command, "key_created", key.key_id)
        said = set(_differing(command.settings))
        entry = replace(entry, detail=audited(settings, said | {"role"}))
        return AddKey(key, entry, settings, created_by=command.actor.key_id)

    def added(self, key: StoredKey, key_id: str) -> None:
        """The store holds the key now, under this id: it opens doors from here on."""
        if self._keys.get(key_id) is None:
            self._keys.put(replace(key, key_id=key_id))

    def update(self, command: UpdateKey) -> ChangeKey:
        """Other settings for a key, which keeps its secret, and another status, if that is asked.

        Raises:
            ActorNotAllowedError: Who asks may not administer keys, or not such a one.
            KeyNotFoundError: No key has this id.
            KeyOfEnvironmentError: It is the environment's.
            InvalidCommandError: A value is out of bounds, the key has ended for good, or nobody
                could administer any more.
        """
        actor = self._actor(command.actor, ADMINISTERING)
        key = self._changeable(command.key_id)
        settings = checked(command.settings, wall_s=self._clock.wall_s(), fields=command.fields)
        after = changed(key, settings, command.fields)
        if not {"user_id", "team_id"}.isdisjoint(command.fields):
            self._check_people(after.user_id, after.team_id)
            after = self._keys.attached(after)
        values = {
            name: value
            for name, value in setting_values(settings).items()
            if name in command.fields
        }
        action: AuditAction = "key_updated"
        if command.action:
            times = self._times_of(key, command.action)
            values |= times
            after = replace(after, **times)
            if any(getattr(key, name) != value for name, value in times.items()):
                action = _ACTIONS[command.action]
        self._put(actor, key, after, at=() if command.action else command.fields)
        entry = self._entry(command, action, key.key_id)
        return ChangeKey(
            key.key_id, values, replace(entry, detail=audited(settings, set(command.fields)))
        )

    def rotate(self, command: RotateKey) -> ChangeKey:
        """A new secret for a key; the old one works on for a while, one still older no more.

        Raises:
            As `update`.
        """
        actor = self._actor(command.actor, ADMINISTERING)
        key = self._changeable(command.key_id)
        check_digest(command.key_digest, command.hint)
        if not 0 <= command.overlap_s <= MAX_OVERLAP_S:
            raise InvalidCommandError(
                f"'overlap_s' must be 0 to {MAX_OVERLAP_S}.", param="overlap_s"
            )
        if self._keys.find(command.key_digest) is not None:
            raise InvalidCommandError("This key exists already.", param="key_digest")
        now = int(self._clock.wall_s())
        overlaps = command.overlap_s > 0
        after = replace(
            key,
            digest=command.key_digest,
            hint=command.hint,
            previous_digest=key.digest if overlaps else None,
            previous_until=now + command.overlap_s if overlaps else None,
        )
        self._put(actor, key, after)
        values = {
            "digest": after.digest,
            "hint": after.hint,
            "previous_digest": after.previous_digest,
            "previous_until": after.previous_until,
            "last_rotated_at": now,
            "last_rotated_by": command.actor.key_id,
        }
        entry = self._entry(command, "key_rotated", key.key_id)
        detail = {"hint": command.hint, "overlap_s": command.overlap_s}
        return ChangeKey(key.key_id, values, replace(entry, detail=detail))

    def change_status(self, command: ChangeKeyStatus) -> ChangeKey | DropKey:
        """Suspend, reactivate, revoke or delete a key; what it is already stays so.

        A key that is suspended, revoked or deleted opens nothing from this moment on, even if the
        disk should fail.

        Raises:
            As `update`; a revoked key can be deleted, and nothing else.
        """
        actor = self._actor(command.actor, ADMINISTERING)
        key = self._get(command.key_id)
        entry = self._entry(command, _ACTIONS[command.action], key.key_id)
        if command.action == "delete":
            self._check_not_of_environment(key)
            if is_closed_by_admin(key):
                raise InvalidCommandError(
                    f"This key stays, so that {ENVIRONMENT_KEY_NAME} doesn't open with it again;"
                    " set another one there, which takes its place.",
                    param="key_id",
                )
            check_reach(actor, key)
            self._check_not_last(key, None, "delete")
            self._keys.remove(key.key_id)
            return DropKey(key.key_id, entry)
        if command.action != "revoke":
            key = self._changeable(command.key_id)
        times = self._times_of(key, command.action)
        self._put(actor, key, replace(key, **times), verb=command.action)
        return ChangeKey(key.key_id, times, entry)

    def find(self, command: FindKeys) -> ReadKeys:
        """A page of keys.

        Raises:
            ActorNotAllowedError: Who asks may not administer keys.
            InvalidCommandError: The limit is out of range.
        """
        self._actor(command.actor, ADMINISTERING)
        check_page(command.limit)
        return ReadKeys(
            command.after_key_id,
            command.limit,
            key_id=command.key_id,
            role=command.role,
            status=command.status,
            owner=command.owner,
            tag=command.tag,
            user_id=command.user_id,
            team_id=command.team_id,
        )

    def count(self, command: CountKeys) -> CountKeyRows:
        """How many keys there are.

        Raises:
            ActorNotAllowedError: Who asks may not administer keys.
        """
        self._actor(command.actor, ADMINISTERING)
        return CountKeyRows()

    def read_audit(self, command: ReadAudit) -> ReadAuditRows:
        """A page of the audit log.

        Raises:
            ActorNotAllowedError: Who asks may not read it.
            InvalidCommandError: The limit is out of range, or a filter has too many values.
        """
        self._actor(command.reader, "admin.audit")
        check_page(command.limit)
        for name in ("actors", "actions", "subjects"):
            check_length(name, getattr(command, name))
        return ReadAuditRows(
            command.limit,
            key_id=command.key_id,
            actor=command.actor,
            action=command.action,
            outcome=command.outcome,
            since_ms=command.since_ms,
            until_ms=command.until_ms,
            after_seq=command.after_seq,
            oldest_first=command.oldest_first,
            actors=command.actors,
            actions=command.actions,
            subjects=command.subjects,
        )

    def _actor(self, actor: Actor, scope: Scope) -> StoredKey:
        return acting_key(self._keys, actor, scope, self._clock.wall_s())

    def _get(self, key_id: str) -> StoredKey:
        key = self._keys.get(key_id)
        if key is None:
            raise KeyNotFoundError(f"There is no key '{key_id[:100]}'.", param="key_id")
        return key

    def _changeable(self, key_id: str) -> StoredKey:
        key = self._get(key_id)
        self._check_not_of_environment(key)
        if key.ended_at is not None:
            raise InvalidCommandError(
                "This key is revoked, which is for good; make another one.", param="key_id"
            )
        return key

    def _times_of(self, key: StoredKey, action: KeyAction) -> dict[str, Any]:
        """What says in the key's row that it is suspended, works again or is revoked.

        What is so already keeps its time, and is written anyway: while the disk was stuck it may
        have come into memory alone. The store puts on record only what changes a row.
        """
        now = int(self._clock.wall_s())
        since = now if key.suspended_at is None else key.suspended_at
        if action != "revoke":
            return {"suspended_at": since if action == "suspend" else None}
        times: dict[str, Any] = {"revoked_at": now if key.ended_at is None else key.ended_at}
        if key.key_id == ENVIRONMENT_KEY_ID:
            # The next start tells by it that it wasn't just taken out of the environment.
            times["suspended_at"] = since
        return times

    def _check_people(self, user_id: str, team_id: str) -> None:
        """Refuse a key of somebody who isn't there, or of a team that its user isn't in."""
        if user_id and user_id not in self._keys.users:
            raise InvalidCommandError(f"There is no user '{user_id[:100]}'.", param="user_id")
        team = self._keys.teams.get(team_id)
        if team_id and team is None:
            raise InvalidCommandError(f"There is no team '{team_id[:100]}'.", param="team_id")
        if user_id and team is not None and user_id not in team.members:
            raise InvalidCommandError(
                f"The user '{user_id[:100]}' is no member of the team '{team_id[:100]}'; make it"
                " one first.",
                param="team_id",
            )

    def _check_not_of_environment(self, key: StoredKey) -> None:
        if key.key_id == ENVIRONMENT_KEY_ID and key.revoked_at is None:
            raise KeyOfEnvironmentError(
                f"This key is set by {ENVIRONMENT_KEY_NAME}; change or remove it there.",
                param="key_id",
            )

    def _put(
        self,
        actor: StoredKey,
        before: StoredKey,
        after: StoredKey,
        *,
        at: Iterable[str] = (),
        verb: str = "change",
    ) -> None:
        """Let a change hold, if this actor may make it and somebody can still administer."""
        for key in (before, after):
            if verb in _ENDING:
                check_reach(actor, key)
            else:
                # Its user may administer tomorrow, and whoever had it made or rotated has it.
                at_most = replace(key, user=None)
                check_reach(actor, at_most)
                check_lasts(actor, at_most)
        self._check_not_last(before, after, verb, next(iter(at), "key_id"))
        self._keys.put(after)

    def _check_not_last(
        self, before: StoredKey, after: StoredKey | None, verb: str, param: str = "key_id"
    ) -> None:
        if not is_lasting_admin(before) or (after is not None and is_lasting_admin(after)):
            return
        # Temporary and bounded ones don't count: when the last of them ends, or its network is
        # gone, nobody could make another.
        if self._keys.num_lasting_admins(2) == 1:
            raise InvalidCommandError(
                f"To {verb} this key so would leave none that administers keys from everywhere and"
                " without an end (role admin, no 'expires_at', no bounds of scopes, endpoints or"
                " addresses that keep it from it); make another such key first.",
                param=param,
            )

    def _entry(
        self,
        command: MakeKey | UpdateKey | RotateKey | ChangeKeyStatus,
        action: AuditAction,
        of: str,
    ) -> AuditEntry:
        return entry_of(command.request_id, command.actor, action, of, self._clock.wall_s())


def _differing(settings: KeySettings) -> list[str]:
    """The names of settings that aren't at their default."""
    return [
        name
        for name in KeySettings.__struct_fields__
        if getattr(settings, name) != getattr(_DEFAULTS, name)
    ]

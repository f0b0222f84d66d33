"""What was used and what is left: who may read whose, and what they are told."""

import math
from collections.abc import Iterable
from typing import Final

from msgspec import structs

from auth_worker.administration.actors import check_page
from auth_worker.clock import Clock
from auth_worker.decisions.authority import Authority
from auth_worker.decisions.meters import Meter
from auth_worker.decisions.sliced_meters import FixedMeter
from auth_worker.errors import (
    ActorNotAllowedError,
    AuthError,
    InvalidCommandError,
    KeyNotFoundError,
    ResourceNotFoundError,
)
from auth_worker.principals.definitions import limit_settings
from auth_worker.principals.keys import ANONYMOUS, ANONYMOUS_KEY_ID, StoredKey
from auth_worker.principals.limit_rules import SLIDING_S, Limit
from auth_worker.principals.projections import project
from auth_worker.records.operations import Flush, KeyPage, ReadKeys, ReadUsageRows, Result
from protocol.wire.messages import (
    Actor,
    KeyDetails,
    LimitStanding,
    ReadStanding,
    ReadUsage,
    Scope,
    Standing,
)

READING: Final[tuple[Scope, ...]] = ("usage.read", "budget.read")
MAX_SKIP = 1_000_000
MAX_SPAN_S = 10 * 366 * 86_400
MAX_MINUTES_S = 1441 * 60
"""A day, wherever in a minute it begins: every line of the ledger of that time is read."""


class Reports:
    """Usage and standing, of the reader's own key or of whom it may read.

    Everybody reads about its own key and its own user; the owner of a team about the team; an
    administrator about anybody.

    Args:
        authority: Knows keys, limits and how far each is used.
        clock: For what is left of windows.
    """

    def __init__(self, authority: Authority, clock: Clock) -> None:
        self._authority = authority
        self._clock = clock

    def usage(self, command: ReadUsage) -> ReadUsageRows:
        """What to read.

        Raises:
            ActorNotAllowedError: The reader may not, or not this.
            InvalidCommandError: A value is out of range.
        """
        reader = self._reader(command.reader)
        check_page(command.limit)
        if not 0 <= command.skip <= MAX_SKIP:
            raise InvalidCommandError(f"'after' must be 0 to {MAX_SKIP}.", param="after")
        if not 0 <= command.since_s < command.until_s <= command.since_s + MAX_SPAN_S:
            raise InvalidCommandError(
                "'until' must be after 'since', by ten years at most.", param="until"
            )
        if command.bucket == "minute" and command.until_s - command.since_s > MAX_MINUTES_S:
            raise InvalidCommandError(
                f"Usage by the minute covers {MAX_MINUTES_S // 60} minutes at most; ask for less"
                " time, or by the hour.",
                param="until",
            )
        key_id, user_id, team_id = command.key_id, command.user_id, command.team_id
        if command.is_of_all and not (key_id or user_id or team_id):
            self._check_admin(reader, "everybody")
        elif not (key_id or user_id or team_id):
            key_id = reader.key_id
        else:
            self._check_whose(reader, key_id, user_id, team_id)
        return ReadUsageRows(
            command.since_s,
            command.until_s,
            command.limit,
            bucket=command.bucket,
            group_by=command.group_by,
            key_id=key_id,
            user_id=user_id,
            team_id=team_id,
            end_user=command.end_user,
            model=command.model,
            skip=command.skip,
        )

    def standing(self, command: ReadStanding) -> ReadKeys | Flush:
        """What to read first: the record of the key that it is about, if there is one.

        Raises:
            ActorNotAllowedError: The reader may not, or not this.
            KeyNotFoundError: There is no such key, as there is no such user or team in its place.
        """
        reader = self._reader(command.reader)
        self._check_whose(reader, command.key_id, command.user_id, command.team_id)
        if command.user_id or command.team_id:
            self._limits(command, reader)
            return Flush()
        key = self._key(command, reader)
        if command.end_user and not key.may_name_end_users:
            raise InvalidCommandError("This key names no end users.", param="end_user")
        # Who needs no key, or shows a token, has no record.
        is_stored = self._authority.keys.get(key.key_id) is not None
        return ReadKeys("", 1, key_id=key.key_id) if is_stored else Flush()

    def told(self, command: ReadStanding, result: Result) -> Standing:
        """How it stands at this moment.

        Raises:
            AuthError: The key is gone meanwhile.
        """
        if isinstance(result, AuthError):
            raise result
        reader = self._reader(command.reader)
        limits = tuple(
            self._standing_of(limit, command.end_user if limit.holder == "end_user" else "")
            for limit in self._limits(command, reader)
            if limit.holder != "end_user" or command.end_user
        )
        if command.user_id or command.team_id:
            return Standing(request_id=command.request_id, limits=limits)
        key = self._key(command, reader)
        record: KeyDetails | None = None
        if isinstance(result, KeyPage):
            record = structs.replace(result.records[0], closed_by=key.closed_by)
        return Standing(
            request_id=command.request_id,
            limits=limits,
            key=record,
            scopes=tuple(sorted(key.scopes)),
            team_allowed_models=None if key.team is None else key.team.allowed_models,
        )

    def _reader(self, actor: Actor) -> StoredKey:
        """Who asks; the gateway asked before, but the key may have been revoked in between."""
        if actor.key_id == ANONYMOUS_KEY_ID:
            return ANONYMOUS
        key = self._authority.keys.acting(actor.key_id, actor.key_digest)
        is_active = key is not None and key.is_active(self._clock.wall_s())
        if key is None or not is_active or key.scopes.isdisjoint(READING):
            raise ActorNotAllowedError("This needs an active key that may read what it used.")
        return key

    def _check_whose(self, reader: StoredKey, key_id: str, user_id: str, team_id: str) -> None:
        """Refuse to tell of others than oneself, one's user and the team that one owns."""
        if key_id and key_id != reader.key_id:
            self._check_admin(reader, "another key")
        if user_id and user_id != reader.user_id:
            self._check_admin(reader, "another user")
        if team_id and not _owns(reader, team_id):
            self._check_admin(reader, "a team that it doesn't own")

    def _check_admin(self, reader: StoredKey, whom: str) -> None:
        if not reader.is_of_admin:
            raise ActorNotAllowedError(
                f"Only an administrator reads about {whom}; leave the filter out to read about this"
                " key."
            )

    def _key(self, command: ReadStanding, reader: StoredKey) -> StoredKey:
        if command.key_id in ("", reader.key_id):
            return reader
        key = self._authority.keys.principal(command.key_id)
        if key is None:
            raise KeyNotFoundError(f"There is no key '{command.key_id[:100]}'.", param="key_id")
        return key

    def _limits(self, command: ReadStanding, reader: StoredKey) -> Iterable[Limit]:
        keys, limits = self._authority.keys, self._authority.limits
        if command.user_id:
            if command.user_id not in keys.users:
                raise _missing("user", command.user_id)
            return limits.of("user", command.user_id)
        if command.team_id:
            if command.team_id not in keys.teams:
                raise _missing("team", command.team_id)
            return (
                *limits.of("team", command.team_id),
                *limits.of("end_user", command.team_id),
            )
        return self._authority.limits_of(self._key(command, reader))

    def _standing_of(self, limit: Limit, end_user: str) -> LimitStanding:
        meter, wall_s = self._authority.meter_of(limit, end_user), self._clock.wall_s()
        used = max(0, meter.total)
        begins_s, ends_s = _span(meter)
        span_s = SLIDING_S.get(limit.window.kind)
        projection = project(
            used,
            meter.amount,
            began_s=max(begins_s or 0.0, limit.counts_since),
            ends_s=ends_s,
            now_s=wall_s,
            span_s=span_s,
        )
        counts = limit.measure != "parallel"
        return LimitStanding(
            limit_id=limit.limit_id,
            settings=limit_settings(limit),
            amount=meter.amount,
            used=used,
            reserved=meter.reserved,
            begins_at=None if begins_s is None else int(begins_s),
            ends_at=None if ends_s is None else int(ends_s),
            daily_burn=projection.daily_burn if counts else 0,
            projected=projection.projected if counts else None,
            days_left=projection.days_left if counts and span_s is None else None,
            passed=tuple(
                percent for percent in limit.thresholds if used * 100 >= meter.amount * percent
            ),
        )


def _owns(reader: StoredKey, team_id: str) -> bool:
    """Whether the reader's user owns a team, and the key is good for that."""
    team = reader.team
    if team is None or team.team_id != team_id:
        return False
    return team.members.get(reader.user_id) == "owner"


def _span(meter: Meter) -> tuple[float | None, float | None]:
    """Begin and end of a window, as far as it has them."""
    if not isinstance(meter, FixedMeter):
        return None, None
    begins_s = meter.begins_s if math.isfinite(meter.begins_s) and meter.begins_s > 0 else None
    return begins_s, meter.ends_s if math.isfinite(meter.ends_s) else None


def _missing(kind: str, resource_id: str) -> ResourceNotFoundError:
    return ResourceNotFoundError(f"There is no {kind} '{resource_id[:100]}'.", param=f"{kind}_id")

"""Answers kept under an `Idempotency-Key`, for all gateways of a store and across restarts.

A row is claimed before its request is answered, by one gateway; what came of it is written into it,
sealed, so that nothing here says what anybody asked or was told. A row of a gateway that is gone is
the next one's who asks.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Container
from functools import partial
from typing import Final, Literal, NamedTuple

from gateway.errors import GatewayError
from gateway.storage.conversations import OWNER_DEAD_MS
from gateway.storage.database import Connection, Database
from gateway.storage.records import Bounds
from gateway.storage.sweeping import MAX_DROPPED, swept

TENANT_SHARE: Final = 4
"""One tenant keeps at most a quarter of the bytes."""
_ROOM_EVERY: Final = 64
"""Answers between two looks at how much a tenant keeps; a look reads all its rows."""
_MAX_UNWRITTEN: Final = 1024
UNWRITTEN_SHARE: Final = 16
"""What the store could not take is kept in memory, within this share of the bytes."""
_NOBODY: Final = ""
_logger = logging.getLogger("penstock.gateway.storage")


class Claimed(NamedTuple):
    """What is known of a request.

    Attributes:
        state: `new`: it is to be answered now. `running`: somebody answers it. `kept`: it was
            answered. `other`: its key came with another request.
        begun_ms: When it was first begun; the same when a gateway goes on with what another one,
            which is gone, began.
        answer: Of before, sealed.
        goes_on: Whether an earlier attempt may have made something: however this one ends, that
            may be there.
    """

    state: Literal["new", "running", "kept", "other"]
    begun_ms: int = 0
    answer: bytes = b""
    goes_on: bool = False


class Held(NamedTuple):
    """A row that a gateway holds: its name, whose it is, and when it was begun."""

    name: bytes
    tenant: str
    begun_ms: int

    @property
    def made_id(self) -> str:
        """Names what the request makes, so that whoever goes on with it makes that once.

        32 hex digits that sort by the time when it was begun: 12 of it, in milliseconds.
        """
        told = self.name + self.begun_ms.to_bytes(8, "big", signed=True)
        return f"{self.begun_ms % 16**12:012x}{hashlib.sha256(told).hexdigest()[:20]}"


class End(NamedTuple):
    """What came of a request.

    Attributes:
        answer: To be kept, sealed; empty where there is none.
        may_be_done: Without one, whether something may have been made: whoever repeats the request
            goes on with it, where otherwise it begins again.
    """

    answer: bytes = b""
    may_be_done: bool = False


def claim(
    connection: Connection,
    held: Held,
    fingerprint: bytes,
    owner: str,
    bounds: Bounds,
) -> Claimed:
    """Begin a request now (`held.begun_ms`), unless it was begun before."""
    now_ms = held.begun_ms
    fresh = (held.name, held.tenant, fingerprint, owner, now_ms, b"")
    for _ in range(2):
        if connection.execute(
            "INSERT INTO kept_answers (name, tenant, fingerprint, owner, begun_ms, answer,"
            " num_bytes) VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (name) DO NOTHING RETURNING name",
            fresh,
        ):
            return Claimed("new", now_ms)
        rows = connection.execute(
            "SELECT fingerprint, owner, begun_ms, answer, EXISTS (SELECT 1 FROM owners"
            "  WHERE owners.id = kept_answers.owner AND owners.alive_ms >= ?)"
            " FROM kept_answers WHERE name = ? AND tenant = ?",
            (now_ms - OWNER_DEAD_MS, held.name, held.tenant),
        )
        if rows:
            return _again(connection, held, fingerprint, owner, bounds, *rows[0])
    return Claimed("running")  # it has just ended, and begun again, and ended


def _again(
    connection: Connection,
    held: Held,
    fingerprint: bytes,
    owner: str,
    bounds: Bounds,
    before: bytes,
    holder: str,
    begun_ms: int,
    answer: bytes,
    is_alive: int,
) -> Claimed:
    is_old = begun_ms < held.begun_ms - int(bounds.replay_age_s * 1000)
    # What this gateway holds itself it would know to be running: its end could not be written.
    is_running = not answer and is_alive and holder != owner
    if is_running or (answer and not is_old):
        if before != fingerprint:
            return Claimed("other")
        return Claimed("kept", begun_ms, answer) if answer else Claimed("running")
    goes_on = not is_old and not answer and before == fingerprint
    since_ms = begun_ms if goes_on else held.begun_ms
    taken = connection.execute(
        "UPDATE kept_answers SET owner = ?, fingerprint = ?, begun_ms = ?, answer = ?,"
        " num_bytes = 0 WHERE name = ? AND tenant = ? AND owner = ? AND begun_ms = ?"
        " RETURNING name",
        (owner, fingerprint, since_ms, b"", held.name, held.tenant, holder, begun_ms),
    )
    return Claimed("new", since_ms, goes_on=goes_on) if taken else Claimed("running")


def end(connection: Connection, held: Held, owner: str, ended: End) -> bool:
    """Write what came of a request; False when it is another gateway's by now."""
    which = "name = ? AND tenant = ? AND owner = ? AND begun_ms = ? AND num_bytes = 0"
    values = (held.name, held.tenant, owner, held.begun_ms)
    if ended.answer:
        rows = connection.execute(
            f"UPDATE kept_answers SET owner = ?, answer = ?, num_bytes = ? WHERE {which}"  # noqa: S608
            " RETURNING name",
            (_NOBODY, ended.answer, len(ended.answer), *values),
        )
    elif ended.may_be_done:
        rows = connection.execute(
            f"UPDATE kept_answers SET owner = ? WHERE {which} RETURNING name",  # noqa: S608
            (_NOBODY, *values),
        )
    else:
        rows = connection.execute(
            f"DELETE FROM kept_answers WHERE {which} RETURNING name",  # noqa: S608
            values,
        )
    return bool(rows)


def release_forgotten(
    connection: Connection, owner: str, held: Callable[[], Container[bytes]]
) -> int:
    """Release what a gateway is said to hold and doesn't; how much.

    Nobody knows how that ended, so whoever repeats it goes on with it.

    Args:
        connection: To the store.
        owner: The gateway.
        held: The names that it does hold, of claims that wait for the store as well.
    """
    names = held()
    rows = connection.execute(
        "SELECT name FROM kept_answers WHERE owner = ? AND num_bytes = 0", (owner,)
    )
    forgotten = [name for (name,) in rows if name not in names]
    for name in forgotten:
        connection.execute(
            "UPDATE kept_answers SET owner = ? WHERE name = ? AND owner = ? AND num_bytes = 0",
            (_NOBODY, name, owner),
        )
    return len(forgotten)


def make_room(connection: Connection, tenant: str, bounds: Bounds) -> int:
    """Drop the oldest answers of a tenant until it keeps no more than it may; how many."""
    ((number, num_bytes),) = connection.execute(
        "SELECT COUNT(*), COALESCE(SUM(num_bytes), 0) FROM kept_answers"
        " WHERE tenant = ? AND num_bytes > 0",
        (tenant,),
    )
    more = number - bounds.max_replays
    more_bytes = num_bytes - bounds.max_replay_bytes // TENANT_SHARE
    rows = connection.execute(
        "SELECT name, num_bytes FROM kept_answers WHERE tenant = ? AND num_bytes > 0"
        " ORDER BY begun_ms LIMIT ?",
        (tenant, MAX_DROPPED if more > 0 or more_bytes > 0 else 0),
    )
    return _drop_oldest(connection, rows, more, more_bytes)


def sweep(connection: Connection, bounds: Bounds, now_ms: int) -> int:
    """Drop what is too old, and what all tenants together keep too much of; how much.

    No more than `MAX_DROPPED` of each: where it says as many or more, there is more to drop.
    """
    too_old_ms = now_ms - int(bounds.replay_age_s * 1000)
    expired = connection.execute(
        "DELETE FROM kept_answers WHERE name IN (SELECT name FROM kept_answers WHERE begun_ms < ?"
        " AND NOT EXISTS (SELECT 1 FROM owners WHERE owners.id = kept_answers.owner"
        "  AND owners.alive_ms >= ?) LIMIT ?) RETURNING name",
        (too_old_ms, now_ms - OWNER_DEAD_MS, MAX_DROPPED),
    )
    ((num_bytes,),) = connection.execute("SELECT COALESCE(SUM(num_bytes), 0) FROM kept_answers")
    more_bytes = num_bytes - bounds.max_replay_bytes
    rows = connection.execute(
        "SELECT name, num_bytes FROM kept_answers WHERE num_bytes > 0 ORDER BY begun_ms LIMIT ?",
        (MAX_DROPPED if more_bytes > 0 else 0,),
    )
    return len(expired) + _drop_oldest(connection, rows, 0, more_bytes)


def _make_rooms(connection: Connection, tenants: list[str], bounds: Bounds) -> int:
    return sum(make_room(connection, tenant, bounds) for tenant in tenants)


def _drop_oldest(
    connection: Connection, rows: list[tuple[bytes, int]], more: int, more_bytes: int
) -> int:
    num_dropped = 0
    for name, num_bytes in rows:
        if num_dropped >= more and more_bytes <= 0:
            break
        connection.execute("DELETE FROM kept_answers WHERE name = ? AND num_bytes > 0", (name,))
        num_dropped += 1
        more_bytes -= num_bytes
    return num_dropped


class AnswerStore:
    """Answers that are kept under an `Idempotency-Key`.

    Args:
        database: Where they are.
        owner: The id of this gateway.
        bounds: How much is kept.
        now_ms: Unix milliseconds.
    """

    def __init__(
        self, database: Database, owner: str, bounds: Bounds, now_ms: Callable[[], int]
    ) -> None:
        self._database = database
        self._owner = owner
        self._bounds = bounds
        self._now_ms = now_ms
        self._since_room: dict[str, int] = {}  # by tenant: answers and shares of bytes
        self._unwritten: dict[Held, End] = {}
        # Claims under way and requests that run, by name: attempts of one request may overlap.
        self._num_held: Counter[bytes] = Counter()
        self._has_forgotten = False

    async def claim(
        self, tenant: str, name: bytes, fingerprint: bytes
    ) -> tuple[Claimed, Held | None]:
        """Begin a request; what is held until `end` where it is to be answered now.

        Raises:
            GatewayError: The store can't be used.
        """
        wanted = Held(name, tenant, self._now_ms())
        self._num_held[name] += 1  # before it is not among the unwritten any more
        # Written later, they would end what is claimed now.
        ends = self._take_unwritten(tenant, name)

        def work(connection: Connection) -> Claimed:
            for held, ended in ends.items():
                end(connection, held, self._owner, ended)
            return claim(connection, wanted, fingerprint, self._owner, self._bounds)

        try:
            claimed = await self._database.run(work)
        except BaseException:
            for held, ended in ends.items():
                self._write_later(held, ended)
            self._let_go(name)
            self._has_forgotten = True  # it may have been claimed, and nobody answers it
            raise
        if claimed.state != "new":
            self._let_go(name)
            return claimed, None
        # An end that timed out meanwhile stands before this claim in the store, or never will.
        self._take_unwritten(tenant, name)
        return claimed, Held(name, tenant, claimed.begun_ms)

    async def end(self, held: Held, ended: End) -> bool:
        """Write what came of a request; False when it is another gateway's by now.

        Where the store is away, the next sweep writes it.
        """
        try:
            return await self._end(held, ended)
        finally:
            self._let_go(held.name)

    async def _end(self, held: Held, ended: End) -> bool:
        has_room = self._has_room(held.tenant, len(ended.answer))

        def work(connection: Connection) -> bool:
            is_ours = end(connection, held, self._owner, ended)
            if not has_room:
                make_room(connection, held.tenant, self._bounds)
            return is_ours

        try:
            return await self._database.run(work)
        except GatewayError as error:
            _logger.warning("the end of a request with a key is not written: %s", error.message)
            self._write_later(held, ended)
            return True
        except BaseException:
            self._write_later(held, ended)
            raise

    async def sweep(self) -> int:
        """Write what could not be written, and drop what is too old or too much; how much.

        Raises:
            GatewayError: The store can't be used.
        """
        for held, ended in list(self._unwritten.items()):
            if self._unwritten.get(held) is not ended:
                continue  # a claim has written it meanwhile
            await self._database.run(partial(end, held=held, owner=self._owner, ended=ended))
            if self._unwritten.get(held) is ended:
                del self._unwritten[held]
        await self._release_forgotten()
        tenants, now_ms = list(self._since_room), self._now_ms()
        self._since_room.clear()
        num_dropped = 0
        for start in range(0, len(tenants), _ROOM_EVERY):  # what waits beside comes in between
            some = tenants[start : start + _ROOM_EVERY]
            work = partial(_make_rooms, tenants=some, bounds=self._bounds)
            num_dropped += await self._database.run(work)
        return num_dropped + await swept(
            self._database, partial(sweep, bounds=self._bounds, now_ms=now_ms)
        )

    async def _release_forgotten(self) -> None:
        if not self._has_forgotten:
            return
        self._has_forgotten = False
        try:
            await self._database.run(
                partial(release_forgotten, owner=self._owner, held=self._held_names)
            )
        except BaseException:
            self._has_forgotten = True
            raise

    def _held_names(self) -> Container[bytes]:
        """Asked by the database's thread: copied at once, whatever the loop's thread does.

        A name may go from those that run to the unwritten meanwhile, and back.
        """
        running, unwritten = list(self._num_held), list(self._unwritten)
        return {*running, *(held.name for held in unwritten), *list(self._num_held)}

    def _let_go(self, name: bytes) -> None:
        self._num_held[name] -= 1
        if not self._num_held[name]:
            del self._num_held[name]

    def _take_unwritten(self, tenant: str, name: bytes) -> dict[Held, End]:
        found = [held for held in self._unwritten if (held.tenant, held.name) == (tenant, name)]
        return {held: self._unwritten.pop(held) for held in found}

    def _write_later(self, held: Held, ended: End) -> None:
        num_bytes = sum(len(one.answer) for one in self._unwritten.values()) + len(ended.answer)
        if num_bytes > self._bounds.max_replay_bytes // UNWRITTEN_SHARE:
            ended = End(may_be_done=True)  # so that the row is not held for good
        if len(self._unwritten) < _MAX_UNWRITTEN:
            self._unwritten[held] = ended
        else:
            if not self._has_forgotten:
                _logger.warning(
                    "more ends of requests with a key wait for the store than are kept; such"
                    " requests are told to be running until it is back"
                )
            self._has_forgotten = True

    def _has_room(self, tenant: str, num_bytes: int) -> bool:
        """Whether a tenant surely keeps no more than an eighth over its bytes, and 64 answers."""
        eighth = max(1, self._bounds.max_replay_bytes // TENANT_SHARE // 8)
        counted = 1 + num_bytes * _ROOM_EVERY // eighth
        since = self._since_room.get(tenant, 0) + (counted if num_bytes else 0)
        self._since_room[tenant] = 0 if since >= _ROOM_EVERY else since
        return since < _ROOM_EVERY

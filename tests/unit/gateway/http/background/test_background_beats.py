"""A gateway that makes background responses tells the store that it lives, whatever it is doing."""

import asyncio
from pathlib import Path
from typing import Any

from gateway.http.background.background_responses import BEAT_S, BackgroundResponses
from gateway.storage.conversations import OWNER_DEAD_MS
from gateway.storage.database import SqliteEngine
from gateway.storage.records import EventPiece, Job
from tests.fakes.store_shelf import Clock, Shelf, play
from tests.unit.gateway.storage.test_store import response

TENANT, NAME, FINGERPRINT = "t", b"n" * 32, b"f"


def background_of(store: Any, clock: Clock) -> BackgroundResponses:
    unused: Any = None
    return BackgroundResponses(store, unused, unused, unused, 1, 8, clock=clock, wall_clock=clock)


async def seconds_of(shelf: Shelf, num: int, *gateways: BackgroundResponses) -> None:
    """So many seconds of housekeeping."""
    for _ in range(num):
        shelf.clock.now_s += 1
        for gateway in gateways:
            gateway.look()
            await asyncio.gather(*filter(None, (gateway._looking, gateway._beating)))


def test_who_drains_keeps_what_its_requests_hold(tmp_path: Path) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = shelf.store("one"), shelf.store("two")
        draining, other = (background_of(store, shelf.clock) for store in (one, two))
        await seconds_of(shelf, 1, draining, other)
        claimed, held = await one.answers.claim(TENANT, NAME, FINGERPRINT)
        assert claimed.state == "new"
        assert held is not None
        await draining.stop()
        await seconds_of(shelf, 2 * OWNER_DEAD_MS // 1000, draining, other)
        claimed, _ = await two.answers.claim(TENANT, NAME, FINGERPRINT)
        assert claimed.state == "running"
        await other.stop()

    play(SqliteEngine(tmp_path / "store.sqlite3"), story)


class BusyJobs:
    """Whoever asks for a job finds none, and somebody has queued one meanwhile."""

    def __init__(self, clock: Clock) -> None:
        self.gateway: BackgroundResponses | None = None
        self.num_claims = self.num_beats = 0
        self._clock = clock

    async def beat(self) -> set[str]:
        self.num_beats += 1
        return set()

    async def claim(self) -> Job | None:
        self.num_claims += 1
        self._clock.now_s += 1
        await asyncio.sleep(0)
        if self.gateway is not None and self.num_claims < 30:
            self.gateway.look()
        return None


async def test_who_always_finds_something_to_look_for_is_heard() -> None:
    clock = Clock()
    jobs = BusyJobs(clock)
    store: Any = type("Busy", (), {"jobs": jobs})
    jobs.gateway = gateway = background_of(store, clock)
    looking = gateway.look()
    assert looking is not None
    await looking
    await gateway.stop()
    assert jobs.num_claims == 30
    assert jobs.num_beats >= 30 / BEAT_S - 1


def test_what_is_being_claimed_is_not_put_back_by_a_beat(tmp_path: Path) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store("one")
        gateway = background_of(store, shelf.clock)
        await seconds_of(shelf, 1, gateway)
        await store.jobs.enqueue(
            TENANT, response("r", status="queued"), b"x", EventPiece(0, 0, b"")
        )
        claimed, told = asyncio.Event(), asyncio.Event()
        begun: list[Job] = []
        claim = store.jobs.claim

        async def slow_claim() -> Job | None:
            job = await claim()
            claimed.set()
            await told.wait()
            return job

        def begin(job: Job) -> None:
            begun.append(job)
            gateway._takes[job.response_id] = None  # type: ignore[assignment]

        store.jobs.claim = slow_claim  # type: ignore[method-assign]
        gateway._begin = begin  # type: ignore[method-assign]
        looking = gateway.look()
        await claimed.wait()
        shelf.clock.now_s += BEAT_S
        gateway.look()
        # The store answers the beat before the claim is told, where nothing holds it back.
        await store.jobs.beat()
        await asyncio.sleep(0)
        told.set()
        assert looking is not None
        await looking
        assert gateway._beating is not None
        await gateway._beating
        assert [job.response_id for job in begun] == ["r"]
        assert await store.jobs.beat() == {"r"}
        gateway._takes.clear()
        await gateway.stop()

    play(SqliteEngine(tmp_path / "store.sqlite3"), story)

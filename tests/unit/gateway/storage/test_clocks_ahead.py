"""What a gateway held whose clock was ahead, once clocks are right again."""

from gateway.storage.conversations import OWNER_DEAD_MS
from gateway.storage.database import Engine
from gateway.storage.records import Conversation
from tests.fakes.store_shelf import Shelf, play
from tests.unit.gateway.storage.test_store import FIRST, response

DAY_S = 86_400


def test_a_gateway_that_is_gone_holds_nothing_until_its_clock_would_have_been_right(
    engine: Engine,
) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = shelf.store("one"), shelf.store("two")
        shelf.clock.now_s += DAY_S
        await one.jobs.beat()
        await one.jobs.enqueue("t", response("r", status="queued"), b"x", FIRST)
        assert await one.jobs.claim() is not None
        await one.conversations.create("t", Conversation("conv_1", 1, b"{}"), [])
        await one.conversations.begin_turn("t", "conv_1", "s")
        shelf.clock.now_s -= DAY_S
        await two.jobs.beat()
        assert await two.jobs.claim() is None  # it may live
        shelf.clock.now_s += OWNER_DEAD_MS / 1000 - 1
        assert await one.jobs.beat() == {"r"}
        await two.jobs.beat()
        assert await two.jobs.claim() is None  # it does
        shelf.clock.now_s += OWNER_DEAD_MS / 1000 + 1
        await two.jobs.beat()
        job = await two.jobs.claim()
        assert job is not None
        assert job.response_id == "r"
        assert await two.conversations.begin_turn("t", "conv_1", "s2") == []

    play(engine, story)


def test_what_was_queued_then_is_due_at_once(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store()
        shelf.clock.now_s += DAY_S
        await store.jobs.enqueue("t", response("r", status="queued"), b"x", FIRST)
        shelf.clock.now_s -= DAY_S
        await store.jobs.beat()
        assert await store.jobs.claim() is not None
        shelf.clock.now_s += DAY_S
        await store.jobs.release("r", 0.0)
        shelf.clock.now_s -= DAY_S
        assert await store.jobs.claim() is not None

    play(engine, story)


def test_what_was_put_off_then_waits_no_longer_than_anything_else(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store()
        await store.jobs.beat()
        await store.jobs.enqueue("t", response("r", status="queued"), b"x", FIRST)
        assert await store.jobs.claim() is not None
        shelf.clock.now_s += DAY_S
        await store.jobs.release("r", 2.0)
        shelf.clock.now_s -= DAY_S
        assert await store.jobs.claim() is not None
        await store.jobs.release("r", 2.0)
        assert await store.jobs.claim() is None  # by a clock that is right it is put off
        shelf.clock.now_s += 2
        assert await store.jobs.claim() is not None
        await store.jobs.release("r", DAY_S)
        assert await store.jobs.claim() is None
        shelf.clock.now_s += 60  # who has no room for a day is asked every minute
        assert await store.jobs.claim() is not None

    play(engine, story)

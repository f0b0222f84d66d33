"""Answers under an `Idempotency-Key` in the store: claimed by one gateway, kept within bounds."""

import asyncio
from typing import Any

import pytest

from gateway.errors import OverloadedError
from gateway.storage import kept_answers, responses, sweeping
from gateway.storage.conversations import OWNER_DEAD_MS
from gateway.storage.database import Engine
from gateway.storage.kept_answers import TENANT_SHARE, AnswerStore, Claimed, End, Held
from gateway.storage.records import StoredResponse
from tests.fakes.store_shelf import Shelf, play

F, G = b"f" * 32, b"g" * 32
DEAD_S = OWNER_DEAD_MS / 1000 + 0.001


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


async def begin(store: AnswerStore, number: int, tenant: str = "t", fingerprint: bytes = F) -> Held:
    claimed, held = await store.claim(tenant, name(number), fingerprint)
    assert claimed.state == "new"
    assert held is not None
    return held


async def look(store: AnswerStore, number: int, fingerprint: bytes = F, tenant: str = "t") -> Any:
    """What another gateway hears, which begins nothing where it isn't to."""
    claimed, held = await store.claim(tenant, name(number), fingerprint)
    assert (held is None) is (claimed.state != "new")
    return claimed


async def put(store: AnswerStore, number: int, size: int = 1, tenant: str = "t") -> None:
    assert await store.end(await begin(store, number, tenant), End(b"x" * size))


async def pair(shelf: Shelf, **bounds: Any) -> tuple[AnswerStore, AnswerStore]:
    """Of two gateways that live."""
    one, two = shelf.store("one", **bounds), shelf.store("two", **bounds)
    for store in (one, two):
        await store.jobs.beat()
    return one.answers, two.answers


def test_one_gateway_answers_and_all_repeat_it(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = await pair(shelf)
        held = await begin(one, 1)
        assert await look(two, 1) == Claimed("running")
        assert await look(two, 1, G) == Claimed("other")
        assert await one.end(held, End(b"answer"))
        for gateway in (one, two, shelf.store("three").answers):
            assert (await look(gateway, 1)).answer == b"answer"
            assert await look(gateway, 1, G) == Claimed("other")
        assert shelf.raw("SELECT owner, num_bytes FROM kept_answers") == [("", 6)]

    play(engine, story)


def test_of_gateways_that_ask_at_once_one_begins(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        stores = [shelf.store(f"gateway-{number}").answers for number in range(4)]
        for store in shelf.stores:
            await store.jobs.beat()
        found = await asyncio.gather(
            *(store.claim("t", name(number), F) for number in range(8) for store in stores)
        )
        begun = [held.name for _, held in found if held is not None]
        assert sorted(begun) == [name(number) for number in range(8)]
        assert {claimed.state for claimed, held in found if held is None} == {"running"}

    play(engine, story)


def test_what_a_dead_gateway_began_is_the_next_ones_to_go_on_with(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = await pair(shelf)
        three = shelf.store("three").answers
        held = await begin(one, 1)
        shelf.clock.now_s += DEAD_S
        await shelf.stores[1].jobs.beat()
        taken = await begin(two, 1)
        # It is the same thing that is made, and made once.
        assert (taken.made_id, taken.begun_ms) == (held.made_id, held.begun_ms)
        assert await look(three, 1) == Claimed("running")
        # The first one comes back from a pause: its answer isn't the one that counts.
        assert await one.end(held, End(b"late")) is False
        assert await two.end(taken, End(b"answer"))
        assert await one.end(held, End(b"later")) is False
        assert await one.end(held, End()) is False
        assert (await look(three, 1)).answer == b"answer"

    play(engine, story)


def test_another_body_after_a_death_is_another_request(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = await pair(shelf)
        held = await begin(one, 1)
        shelf.clock.now_s += DEAD_S
        await shelf.stores[1].jobs.beat()
        other = await begin(two, 1, fingerprint=G)
        assert other.made_id != held.made_id
        assert await look(one, 1) == Claimed("other")

    play(engine, story)


def test_after_a_failure_a_request_begins_anew_or_goes_on_with_what_may_be_made(
    engine: Engine,
) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = await pair(shelf)
        refused = await begin(one, 1)
        assert await one.end(refused, End())
        assert shelf.raw("SELECT name FROM kept_answers") == []
        shelf.clock.now_s += 1
        again = await begin(two, 1, fingerprint=G)
        assert again.made_id != refused.made_id
        unsure = await begin(one, 2)
        assert await one.end(unsure, End(may_be_done=True))
        shelf.clock.now_s += 1
        assert (await begin(two, 2)).made_id == unsure.made_id

    play(engine, story)


def test_an_answer_is_kept_for_a_while(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = await pair(shelf, replay_age_s=60.0)
        await put(one, 1)
        await put(one, 2)
        shelf.clock.now_s += 60
        assert (await look(two, 1)).state == "kept"
        shelf.clock.now_s += 0.001
        # Before anything was swept.
        held = await begin(two, 1, fingerprint=G)
        await shelf.stores[1].jobs.beat()
        assert await shelf.stores[0].sweep() == 1
        assert shelf.raw("SELECT name FROM kept_answers") == [(name(1),)]
        # What runs so long isn't swept while its gateway lives.
        shelf.clock.now_s += 61
        await shelf.stores[1].jobs.beat()
        assert await shelf.stores[0].sweep() == 0
        assert await two.end(held, End(b"answer"))

    play(engine, story)


def test_a_tenant_keeps_so_many_answers_and_bytes_and_all_keep_so_many_bytes(
    engine: Engine,
) -> None:
    async def story(shelf: Shelf) -> None:
        one = shelf.store("one", max_replays=10, max_replay_bytes=4000).answers
        await shelf.stores[0].jobs.beat()

        def kept(tenant: str) -> list[int]:
            rows = shelf.raw("SELECT name FROM kept_answers WHERE tenant = ?", tenant)
            return sorted(int.from_bytes(row[0], "big") for row in rows)

        running = await begin(one, 500)
        for number in range(200):
            shelf.clock.now_s += 0.01
            await put(one, number)
        # Looked at now and then only.
        assert len(kept("t")) <= 10 + 64
        await shelf.stores[0].sweep()
        assert kept("t") == [*range(190, 200), 500]
        for number in range(1000, 1008):
            shelf.clock.now_s += 0.01
            await put(one, number, 300, "u")
            assert len(kept("u")) * 300 <= 4000 // TENANT_SHARE + 300
        assert kept("u") == [1005, 1006, 1007]
        for tenant in range(6):
            shelf.clock.now_s += 0.01
            for number in range(3):
                await put(one, 2000 + 10 * tenant + number, 300, f"v{tenant}")
        await shelf.stores[0].sweep()
        ((total,),) = shelf.raw("SELECT SUM(num_bytes) FROM kept_answers")
        assert total <= 4000
        assert kept("t") == [500]  # the oldest went first, and nothing that runs
        assert kept("v5") == [2050, 2051, 2052]
        assert await one.end(running, End(b"answer"))

    play(engine, story)


def test_an_end_that_could_not_be_written_is_written_by_the_next_sweep(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = await pair(shelf)
        held, refused = await begin(one, 1), await begin(one, 2)
        database, run = one._database, one._database.run

        async def away(work: Any) -> Any:
            raise OverloadedError("too much waits")

        async def unanswered(work: Any) -> Any:
            await run(work)
            raise OverloadedError("too late")

        monkeypatch.setattr(database, "run", away)
        assert await one.end(held, End(b"answer"))
        assert await one.end(refused, End())
        monkeypatch.setattr(database, "run", unanswered)
        with pytest.raises(OverloadedError):
            await one.claim("t", name(3), F)
        monkeypatch.setattr(database, "run", run)
        assert {(await look(two, number)).state for number in (1, 2, 3)} == {"running"}
        await shelf.stores[0].sweep()
        assert (await look(two, 1)).answer == b"answer"
        assert {(await look(two, number)).state for number in (2, 3)} == {"new"}

    play(engine, story)


def test_what_a_gateway_could_not_end_it_may_begin_again(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        one, _ = await pair(shelf)
        held = await begin(one, 1)
        assert (await begin(one, 1)).made_id == held.made_id

    play(engine, story)


def test_what_waits_to_be_written_ends_nothing_that_was_begun_after_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = await pair(shelf)
        run = one._database.run

        async def unanswered(work: Any) -> Any:
            await run(work)
            raise OverloadedError("too late")

        monkeypatch.setattr(one._database, "run", unanswered)
        with pytest.raises(OverloadedError):
            await one.claim("t", name(1), F)
        monkeypatch.setattr(one._database, "run", run)
        held = await begin(one, 1)
        await shelf.stores[0].sweep()
        assert (await look(two, 1)).state == "running"
        assert await one.end(held, End(b"answer"))
        assert (await look(two, 1)).answer == b"answer"

    play(engine, story)


def test_what_goes_on_after_a_death_is_told_to(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = await pair(shelf)
        held = await begin(one, 1)
        assert await one.end(held, End(may_be_done=True))
        shelf.clock.now_s += 1
        claimed, _ = await two.claim("t", name(1), F)
        assert (claimed.state, claimed.goes_on) == ("new", True)
        claimed, _ = await two.claim("t", name(2), F)
        assert (claimed.state, claimed.goes_on) == ("new", False)

    play(engine, story)


def test_a_late_end_of_an_earlier_attempt_ends_no_later_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = await pair(shelf)
        first, run, is_late = await begin(one, 1), one._database.run, asyncio.Event()
        is_held = asyncio.Event()

        async def slow(work: Any) -> Any:
            if not is_held.is_set():
                is_held.set()
                await is_late.wait()
                raise OverloadedError("too late")  # and it is never done
            result = await run(work)
            is_late.set()
            await ending
            return result

        monkeypatch.setattr(one._database, "run", slow)
        ending = asyncio.ensure_future(one.end(first, End()))
        await is_held.wait()
        # The store is slow: its client repeats the request, and only then the end is given up.
        second = await begin(one, 1)
        monkeypatch.setattr(one._database, "run", run)
        await shelf.stores[0].sweep()
        assert (await look(two, 1)).state == "running"
        assert await one.end(second, End(b"answer"))
        assert (await look(two, 1)).answer == b"answer"

    play(engine, story)


def test_what_no_answer_came_to_of_a_claim_that_goes_on_is_let_go_by_the_next_sweep(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = await pair(shelf)
        first, run = await begin(one, 1), one._database.run
        assert await one.end(first, End(may_be_done=True))
        shelf.clock.now_s += 1

        async def unanswered(work: Any) -> Any:
            await run(work)
            raise OverloadedError("too late")

        monkeypatch.setattr(one._database, "run", unanswered)
        with pytest.raises(OverloadedError):
            await one.claim("t", name(1), F)
        monkeypatch.setattr(one._database, "run", run)
        runs = await begin(one, 2)
        assert (await look(two, 1)).state == "running"
        await shelf.stores[0].sweep()
        assert (await begin(two, 1)).made_id == first.made_id
        assert (await look(two, 2)).state == "running"
        assert await one.end(runs, End(b"answer"))

    play(engine, story)


def test_more_ends_than_are_remembered_are_let_go_by_the_next_sweep(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(shelf: Shelf) -> None:
        monkeypatch.setattr(kept_answers, "_MAX_UNWRITTEN", 2)
        one, two = await pair(shelf)
        held = [await begin(one, number) for number in range(5)]
        run = one._database.run

        async def away(work: Any) -> Any:
            raise OverloadedError("too much waits")

        monkeypatch.setattr(one._database, "run", away)
        for ended in held[:4]:
            assert await one.end(ended, End(b"answer"))
        with pytest.raises(OverloadedError):
            await shelf.stores[0].sweep()
        monkeypatch.setattr(one._database, "run", run)
        await shelf.stores[0].sweep()
        states = [(await look(two, number)).state for number in range(5)]
        assert states == ["kept", "kept", "new", "new", "running"]

    play(engine, story)


def test_a_sweep_goes_on_until_nothing_is_too_old_or_too_much(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(shelf: Shelf) -> None:
        for module in (kept_answers, responses, sweeping):
            monkeypatch.setattr(module, "MAX_DROPPED", 3)
        store = shelf.store("one", replay_age_s=60.0, max_replay_bytes=1000, max_age_s=60.0)
        await store.jobs.beat()
        for number in range(10):
            await put(store.answers, number, tenant=f"t{number}")
            response = StoredResponse(
                f"resp_{number}", "completed", None, None, 0, b"{}", b"[]", b"[]"
            )
            await store.responses.save(f"t{number}", response)
        shelf.clock.now_s += 61
        for number in range(100, 120):
            shelf.clock.now_s += 0.001
            await put(store.answers, number, 100, tenant=f"t{number}")
        await store.jobs.beat()
        assert await store.sweep() == 10 + 10 + 10
        ((number, num_bytes),) = shelf.raw("SELECT COUNT(*), SUM(num_bytes) FROM kept_answers")
        assert (number, num_bytes) == (10, 1000)

    play(engine, story)


def test_ends_beyond_those_that_are_remembered_hold_no_row_once_the_store_is_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = await pair(shelf)
        monkeypatch.setattr("gateway.storage.kept_answers._MAX_UNWRITTEN", 2)
        helds = [await begin(one, number) for number in range(9)]
        runs_on = await begin(one, 9)
        run = one._database.run

        async def away(work: Any) -> Any:
            raise OverloadedError("too much waits")

        monkeypatch.setattr(one._database, "run", away)
        for held in helds:
            assert await one.end(held, End(b"answer"))
        with pytest.raises(OverloadedError):
            await shelf.stores[0].sweep()
        monkeypatch.setattr(one._database, "run", run)
        assert {(await look(two, number)).state for number in range(10)} == {"running"}
        await shelf.stores[0].sweep()
        assert [(await look(two, number)).state for number in (0, 1)] == ["kept"] * 2
        for number in range(2, 9):  # what came of them nobody knows: they are gone on with
            assert (await begin(two, number)).made_id == helds[number].made_id
        assert (await look(two, 9)).state == "running"
        assert await one.end(runs_on, End(b"answer"))
        assert (await look(two, 9)).answer == b"answer"

    play(engine, story)


def test_a_claim_that_was_given_up_holds_no_row(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = await pair(shelf)
        run = one._database.run

        async def given_up(work: Any) -> Any:
            await run(work)
            raise asyncio.CancelledError

        monkeypatch.setattr(one._database, "run", given_up)
        with pytest.raises(asyncio.CancelledError):
            await one.claim("t", name(1), F)
        monkeypatch.setattr(one._database, "run", run)
        assert (await look(two, 1)).state == "running"
        await shelf.stores[0].sweep()
        assert (await look(two, 1)).state == "new"

    play(engine, story)

"""What the store keeps, for whom, how much of it, and who may write."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import (
    ConversationLockedError,
    DeniedError,
    GatewayError,
    InvalidRequestError,
    PreviousResponseNotFoundError,
    StoredNotFoundError,
    StoreUnavailableError,
)
from gateway.storage.conversations import OWNER_DEAD_MS
from gateway.storage.database import Database, Engine, SqliteEngine
from gateway.storage.jobs import Cancellation
from gateway.storage.postgres import PostgresEngine
from gateway.storage.records import (
    Conversation,
    ConversationItem,
    EventPiece,
    StoredResponse,
)
from gateway.storage.store import Store
from protocol.errors import ConfigurationError
from tests.fakes.postgres_server import PostgresServer
from tests.fakes.store_shelf import Shelf, play


def response(
    name: str, previous: str | None = None, *, conversation: str | None = None, **fields: Any
) -> StoredResponse:
    values: dict[str, Any] = {
        "status": "completed",
        "body": b'{"id":"%b"}' % name.encode(),
        "input": b"[1]",
        "output": b"[2]",
        **fields,
    }
    return StoredResponse(
        name, values["status"], previous, conversation, 1, *(values[one] for one in PARTS)
    )


PARTS = ("body", "input", "output")
FIRST = EventPiece(0, 1, b"[]")


def test_a_chain_is_read_oldest_first(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store()
        await store.responses.save("t", response("a"))
        await store.responses.save("t", response("b", "a"))
        await store.responses.save("t", response("c", "b"))
        await store.responses.save("t", response("fork", "a"))
        for name, expected in (("c", ["a", "b", "c"]), ("fork", ["a", "fork"])):
            found = await store.responses.chain("t", name)
            assert [one.id for one in found] == expected

    play(engine, story)


def test_a_circle_is_found(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store()
        await store.responses.save("t", response("a", "b"))
        await store.responses.save("t", response("b", "a"))
        with pytest.raises(InvalidRequestError, match="circle"):
            await store.responses.chain("t", "b")

    play(engine, story)


@pytest.mark.parametrize("status", ["queued", "in_progress", "failed", "cancelled"])
def test_what_has_not_ended_well_is_not_continued(engine: Engine, status: str) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store()
        await store.responses.save("t", response("a", status=status))
        with pytest.raises(InvalidRequestError, match=status):
            await store.responses.chain("t", "a")

    play(engine, story)


def test_a_tenant_keeps_so_much_and_loses_what_it_used_longest_ago(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store(max_stored=3)
        for name in ("a", "b", "c"):
            shelf.clock.now_s += 1
            await store.responses.save("t", response(name))
        await store.responses.save("other", response("o"))
        shelf.clock.now_s += 4000
        await store.responses.chain("t", "a")  # used again
        await store.responses.save("t", response("d"))
        kept = [row[0] for row in shelf.raw("SELECT id FROM responses ORDER BY id")]
        assert kept == ["a", "c", "d", "o"]

    play(engine, story)


def test_bytes_count_too_and_a_job_under_way_is_not_dropped(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store(max_tenant_bytes=1000)
        await store.jobs.enqueue("t", response("job", status="queued"), b"x", FIRST)
        for number in range(5):
            shelf.clock.now_s += 1
            await store.responses.save("t", response(f"r{number}", body=b"x" * 400))
        kept = [row[0] for row in shelf.raw("SELECT id FROM responses ORDER BY id")]
        assert kept == ["job", "r3", "r4"]

    play(engine, story)


def test_what_is_old_goes_and_what_all_keep_is_bounded(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store(max_age_s=100, max_bytes=3000)
        await store.responses.save("t", response("old"))
        await store.conversations.create("t", Conversation("old", 1, b"{}"), ())
        shelf.clock.now_s += 101
        for number in range(4):
            await store.responses.save("large", response(f"l{number}", body=b"x" * 900))
        await store.responses.save("small", response("s", body=b"x" * 100))
        assert await store.sweep() == 3
        kept = [row[0] for row in shelf.raw("SELECT id FROM responses ORDER BY id")]
        assert kept == ["l1", "l2", "l3", "s"]
        assert shelf.raw("SELECT id FROM conversations") == []

    play(engine, story)


def test_a_conversation_is_written_by_one(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store, other = shelf.store("one"), shelf.store("two")
        await store.jobs.beat()
        await other.conversations.create(
            "t", Conversation("c", 1, b"{}"), [ConversationItem("i", b"1")]
        )
        assert await store.conversations.begin_turn("t", "c", "r1") == [b"1"]
        with pytest.raises(ConversationLockedError):
            await other.conversations.begin_turn("t", "c", "r2")
        with pytest.raises(ConversationLockedError):
            await other.conversations.append("t", "c", [ConversationItem("j", b"2")])
        with pytest.raises(ConversationLockedError):
            await other.conversations.remove_item("t", "c", "i")
        await store.responses.save(
            "t", response("r1", conversation="c"), [ConversationItem("k", b"3")]
        )
        assert await other.conversations.begin_turn("t", "c", "r2") == [b"1", b"3"]
        # Who wrote has died: others needn't wait for ever.
        shelf.clock.now_s += OWNER_DEAD_MS / 1000 + 1
        assert await store.conversations.begin_turn("t", "c", "r3") == [b"1", b"3"]

    play(engine, story)


def test_a_conversation_has_a_bound_and_what_is_too_much_changes_nothing(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store(max_context_bytes=100)
        await store.conversations.create("t", Conversation("c", 1, b"{}"), [ITEM])
        large = [ConversationItem("j", b"2"), ConversationItem("k", b"x" * 100)]
        with pytest.raises(InvalidRequestError, match="PENSTOCK_STORE_MAX_CONTEXT_BYTES"):
            await store.conversations.append("t", "c", large)
        assert await store.conversations.read("t", "c") == [b"1"]
        assert shelf.raw("SELECT num_bytes FROM tenants") == [(3,)]
        await store.conversations.append("t", "c", [ITEM, ConversationItem("j", b"2")])
        assert await store.conversations.read("t", "c") == [b"1", b"2"]

    play(engine, story)


def test_a_job_holds_its_conversation_whoever_makes_it(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store, other = shelf.store("one"), shelf.store("two")
        await store.conversations.create("t", Conversation("c", 1, b"{}"), ())
        await store.conversations.begin_turn("t", "c", "r1")
        made = response("r1", conversation="c", status="queued")
        await store.jobs.enqueue("t", made, b"x", FIRST)
        shelf.clock.now_s += OWNER_DEAD_MS / 1000 + 1
        with pytest.raises(ConversationLockedError):
            await other.conversations.begin_turn("t", "c", "r2")
        assert await other.jobs.claim() is not None
        done = response("r1", conversation="c")
        assert await other.jobs.finish(done, None, [ConversationItem("k", b"3")])
        assert await store.conversations.begin_turn("t", "c", "r2") == [b"3"]

    play(engine, story)


def test_a_gateway_takes_no_job_again_that_it_has(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        one = shelf.store("one")
        await one.jobs.beat()
        await one.jobs.enqueue("t", response("r", status="queued"), b"x", FIRST)
        assert await one.jobs.claim() is not None
        # The store heard nothing of it for a while.
        shelf.clock.now_s += OWNER_DEAD_MS / 1000 + 1
        assert await one.jobs.claim() is None
        assert await one.jobs.beat() == {"r"}
        await one.jobs.release("r", 0.0)
        assert await one.jobs.claim() is not None

    play(engine, story)


def test_a_job_is_taken_by_one_gateway_and_again_when_that_is_gone(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        one, two = shelf.store("one"), shelf.store("two")
        await one.jobs.beat()
        await one.jobs.enqueue("t", response("r", status="queued"), b"x", FIRST)
        job = await one.jobs.claim()
        assert job is not None
        assert (job.takes, job.num_events) == (1, 2)
        assert await one.jobs.note_leases("r", ("lease-1",))
        assert await two.jobs.claim() is None
        assert await one.jobs.note_events("r", EventPiece(2, 3, b"[]"))
        shelf.clock.now_s += OWNER_DEAD_MS / 1000 + 1
        await two.jobs.beat()
        again = await two.jobs.claim()
        assert again is not None
        assert (again.takes, again.leases, again.num_events) == (2, ("lease-1",), 4)
        # The first one comes back from a long pause: nothing of it counts any more.
        assert not await one.jobs.note_events("r", EventPiece(4, 4, b"[]"))
        assert not await one.jobs.finish(response("r", body=b"stale"), None)
        assert not await one.jobs.note_leases("r", ("lease-2",))
        assert await one.jobs.beat() == set()
        assert await two.jobs.finish(response("r", body=b"right"), EventPiece(4, 4, b"[]"))
        assert (await one.responses.find("t", "r")).body == b"right"
        assert await two.jobs.claim() is None

    play(engine, story)


def test_tenants_take_turns(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store()
        await store.jobs.beat()
        for tenant in ("many", "many", "many", "few"):
            name = f"{tenant}{len(shelf.raw('SELECT * FROM jobs'))}"
            await store.jobs.enqueue(tenant, response(name, status="queued"), b"x", FIRST)
        taken = [await store.jobs.claim() for _ in range(4)]
        assert {job.tenant for job in taken[:2] if job is not None} == {"many", "few"}

    play(engine, story)


def test_a_tenant_may_have_so_many_jobs(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store(max_queued=1)
        await store.jobs.enqueue("t", response("a", status="queued"), b"x", FIRST)
        with pytest.raises(DeniedError, match="PENSTOCK_STORE_MAX_QUEUED"):
            await store.jobs.enqueue("t", response("b", status="queued"), b"x", FIRST)
        await store.jobs.enqueue("u", response("c", status="queued"), b"x", FIRST)
        with pytest.raises(StoredNotFoundError):
            await store.responses.find("t", "b")

    play(engine, story)


def test_what_fails_leaves_the_others_of_its_transaction_alone(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store()
        many = [store.responses.save("t", response(f"r{number}")) for number in range(50)]
        twice = [store.responses.save("t", response("r7")) for _ in range(2)]
        wrong = [store.responses.save("t", response("x", conversation="none"), [ITEM])]
        found = await asyncio.gather(*many, *twice, *wrong, return_exceptions=True)
        assert found[:50] == [None] * 50
        assert [type(one) for one in found[50:]] == [
            *(StoreUnavailableError, StoreUnavailableError, StoredNotFoundError),
        ]
        assert shelf.raw("SELECT COUNT(*) FROM responses") == [(50,)]
        (counted,) = shelf.raw("SELECT num_stored FROM tenants")
        assert counted == (50,)

    play(engine, story)


def test_events_are_taken_back_as_long_as_nobody_has_read_them(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        one, other = shelf.store(), shelf.store("other")
        await one.jobs.beat()
        await other.jobs.beat()
        for name in ("read", "unread", "foreign"):
            await one.jobs.enqueue("t", response(name, status="queued"), b"x", FIRST)
            job = await one.jobs.claim()
            assert job is not None
            assert (job.is_read, job.model) == (False, "")
            await one.jobs.note_events(name, EventPiece(2, 3, b"[2]"), model="demo")
            assert len(await one.jobs.told(name, -1)) == 2  # who makes it doesn't count
        await other.jobs.events_after("t", "read", -1)
        with pytest.raises(StoredNotFoundError):
            await other.jobs.events_after("another", "unread", -1)
        assert not await one.jobs.take_back_events("read")
        assert not await other.jobs.take_back_events("foreign")
        assert await one.jobs.take_back_events("unread")
        for name, expected in (
            ("read", (True, "demo", 4, 2)),
            ("unread", (False, "", 2, 1)),
            ("foreign", (False, "demo", 4, 2)),
        ):
            await one.jobs.release(name, 0)
            again = await other.jobs.claim()
            assert again is not None
            assert again.response_id == name
            pieces = await other.jobs.told(name, -1)
            assert (again.is_read, again.model, again.num_events, len(pieces)) == expected
        assert_counts(shelf)
        await other.jobs.finish(response("unread"), None)
        await other.jobs.cancel("t", "foreign", lambda _one, _number: Cancellation(b"{}", b"[]"))
        await other.responses.remove("t", "read")
        assert shelf.raw("SELECT * FROM event_logs") == []

    play(engine, story)


ITEM = ConversationItem("i", b"1")


def test_a_store_of_a_newer_version_is_refused(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        shelf.store()
        shelf.raw("UPDATE store_version SET version = 99")
        with pytest.raises(ConfigurationError, match="99"):
            shelf.store()

    play(engine, story)


def test_a_database_that_went_away_is_found_again(postgres_server: PostgresServer) -> None:
    name = postgres_server.new_database()

    async def story(shelf: Shelf) -> None:
        store = shelf.store()
        await store.responses.save("t", response("a"))
        postgres_server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        )
        await store.responses.save("t", response("b", "a"))
        assert len(await store.responses.chain("t", "b")) == 2

    play(PostgresEngine(postgres_server.url(name)), story)


def test_gateways_that_start_together_make_the_tables_once(
    postgres_server: PostgresServer,
) -> None:
    engine = PostgresEngine(postgres_server.url(postgres_server.new_database()))
    with ThreadPoolExecutor(4) as pool:
        databases = list(pool.map(lambda _: Database(engine), range(4)))

    async def end() -> None:
        for database in databases:
            await database.close()

    asyncio.run(end())
    connection = engine.connect()
    assert connection.execute("SELECT version FROM store_version") == [(1,)]
    engine.close(connection)


@pytest.mark.parametrize("url", ["postgresql://u:secret@127.0.0.1:1/x", "postgresql://%zz"])
def test_an_address_that_is_wrong_stops_the_start_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="PENSTOCK_STORE_URL") as caught:
        Database(PostgresEngine(url))
    assert "secret" not in caught.value.message


def test_what_is_no_database_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"not a database at all, but a text of some length" * 100)
    with pytest.raises(ConfigurationError, match="PENSTOCK_STORE_URL"):
        Database(SqliteEngine(tmp_path / "s"))


TENANTS = ("t", "u", "v")
ACTIONS = ("save", "continue", "delete", "enqueue", "cancel", "converse", "append", "forget")
STEPS = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.sampled_from(TENANTS), st.integers(0, 9)),
    max_size=40,
)


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_tenants_see_what_is_their_own_and_are_charged_for_it(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, int]]
) -> None:
    """Against a model of dictionaries: whatever anybody does, to whoever's things."""
    engine = SqliteEngine(tmp_path_factory.mktemp("store") / "s")
    owner_of: dict[str, str] = {}

    async def story(shelf: Shelf) -> None:
        store = shelf.store()
        await store.jobs.beat()
        for number, (action, tenant, thing) in enumerate(steps):
            name = list(owner_of)[thing % len(owner_of)] if owner_of else "none"
            try:
                await act(store, action, tenant, name, f"{action[0]}{number}", owner_of)
            except (StoredNotFoundError, PreviousResponseNotFoundError):
                assert owner_of.get(name) != tenant or name[0] not in KINDS[action]
            except GatewayError:
                assert owner_of[name] == tenant  # it has ended, isn't a job, has not ended
            for one in TENANTS:
                for stored, its_owner in owner_of.items():
                    assert await exists(store, one, stored) == (one == its_owner)
        assert_counts(shelf)

    play(engine, story)


KINDS = {
    "save": "",
    "enqueue": "",
    "converse": "",
    "continue": "sec",
    "delete": "sec",
    "cancel": "sec",
    "append": "C",
    "forget": "C",
}


async def act(
    store: Store, action: str, tenant: str, name: str, fresh: str, owner_of: dict[str, str]
) -> None:
    if action == "save":
        await store.responses.save(tenant, response(fresh))
        owner_of[fresh] = tenant
    elif action == "enqueue":
        await store.jobs.enqueue(tenant, response(fresh, status="queued"), b"x", FIRST)
        owner_of[fresh] = tenant
    elif action == "converse":
        fresh = f"C{fresh}"
        await store.conversations.create(tenant, Conversation(fresh, 1, b"{}"), [ITEM])
        owner_of[fresh] = tenant
    elif action == "continue":
        await store.responses.chain(tenant, name)
        await store.responses.save(tenant, response(fresh, name))
        owner_of[fresh] = tenant
    elif action == "delete":
        await store.responses.remove(tenant, name)
        del owner_of[name]
    elif action == "cancel":
        await store.jobs.cancel(tenant, name, lambda _one, _number: Cancellation(b"{}", b"[]"))
    elif action == "append":
        await store.conversations.append(tenant, name, [ConversationItem(fresh, b"22")])
    else:
        await store.conversations.remove(tenant, name)
        del owner_of[name]


async def exists(store: Store, tenant: str, name: str) -> bool:
    try:
        if name[0] == "C":
            await store.conversations.find(tenant, name)
            await store.conversations.page(tenant, name, "", 5, is_ascending=True)
        else:
            await store.responses.find(tenant, name)
            await store.jobs.events_after(tenant, name, -1)
    except StoredNotFoundError:
        return False
    return True


def assert_counts(shelf: Shelf) -> None:
    """What is charged to tenants is what is there."""
    charged = dict(shelf.raw("SELECT tenant, num_bytes FROM tenants WHERE num_stored > 0"))
    there = dict(
        shelf.raw(
            "SELECT tenant, SUM(size) FROM ("
            " SELECT tenant, LENGTH(body) + LENGTH(input) + LENGTH(output) AS size FROM responses"
            " UNION ALL SELECT tenant, LENGTH(events.body) FROM events"
            "  JOIN responses ON responses.id = response_id"
            " UNION ALL SELECT tenant, LENGTH(metadata) FROM conversations"
            " UNION ALL SELECT tenant, LENGTH(items.body) FROM items"
            "  JOIN conversations ON conversations.id = conversation_id) AS sizes GROUP BY tenant"
        )
    )
    assert charged == there


@pytest.mark.parametrize("after", ["\0", "msg_\0", "\ud800", "é", "x" * 200, "msg_unknown"])
def test_a_page_behind_what_can_t_be_an_item_is_not_found(engine: Engine, after: str) -> None:
    """The query of a request says it, in any characters; both databases answer the same."""

    async def story(shelf: Shelf) -> None:
        store = shelf.store()
        item = ConversationItem("msg_1", b"{}")
        await store.conversations.create("t", Conversation("conv_1", 1, b"{}"), [item])
        with pytest.raises(StoredNotFoundError, match="Item with id"):
            await store.conversations.page("t", "conv_1", after, 5, is_ascending=True)

    play(engine, story)


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ud800", "a\udfff"])
def test_a_text_that_no_database_holds_is_the_mistake_of_who_sent_it(
    engine: Engine, text: str
) -> None:
    """Not the store's failure, and what waits for the same transaction has its answer."""

    async def story(shelf: Shelf) -> None:
        store = shelf.store()
        await store.responses.save("t", response("a"))
        store_of_more = store.conversations
        wrong = [
            store.responses.find("t", text),
            store.responses.find(text, "a"),
            store.responses.remove("t", text),
            store.responses.chain("t", text),
            store.responses.save(text, response("b")),
            store_of_more.find("t", text),
            store_of_more.item("t", text, text),
            store_of_more.create(text, Conversation("conv_2", 1, b"{}"), []),
            store_of_more.begin_turn("t", text, "resp_1"),
            store.jobs.cancel("t", text, lambda _response, _number: Cancellation(b"", b"")),
        ]
        answers = await asyncio.gather(
            store.responses.find("t", "a"), *wrong, return_exceptions=True
        )
        assert isinstance(answers[0], StoredResponse)
        assert {type(answer) for answer in answers[1:]} == {InvalidRequestError}
        assert not shelf.raw("SELECT id FROM responses WHERE id = 'b'")

    play(engine, story)

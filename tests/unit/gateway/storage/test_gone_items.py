"""Pages of a conversation whose items are deleted as they are shown."""

import pytest

from gateway.errors import StoredNotFoundError
from gateway.storage import conversations
from gateway.storage.database import Engine
from gateway.storage.records import Conversation, ConversationItem
from tests.fakes.store_shelf import Shelf, play

ITEMS = [ConversationItem(f"msg_{number}", b"{}") for number in range(7)]


@pytest.mark.parametrize("is_ascending", [True, False])
def test_who_deletes_what_a_page_shows_goes_on_where_that_was(
    engine: Engine, is_ascending: bool
) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store().conversations
        await store.create("t", Conversation("conv_1", 1, b"{}"), ITEMS)
        left, after = list(ITEMS if is_ascending else reversed(ITEMS)), ""
        while left:
            page = await store.page("t", "conv_1", after, 3, is_ascending=is_ascending)
            assert list(page.items) == left[:3]
            for one in page.items:
                await store.remove_item("t", "conv_1", one.id)
            after, left = page.items[-1].id, left[3:]
            assert page.has_more == bool(left)

    play(engine, story)


def test_the_places_of_those_that_were_deleted_last_are_kept(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MAX_GONE", 2)

    async def story(shelf: Shelf) -> None:
        store = shelf.store().conversations
        await store.create("t", Conversation("conv_1", 1, b"{}"), ITEMS)
        for number in (5, 1, 3):
            shelf.clock.now_s += 1
            await store.remove_item("t", "conv_1", f"msg_{number}")
        for after, expected in (("msg_1", "msg_2"), ("msg_3", "msg_4"), ("msg_4", "msg_6")):
            page = await store.page("t", "conv_1", after, 1, is_ascending=True)
            assert page.items[0].id == expected
        for unknown in ("msg_5", "msg_nope", "no id"):
            with pytest.raises(StoredNotFoundError):
                await store.page("t", "conv_1", unknown, 1, is_ascending=True)
        # One that comes again under its id is behind all others.
        shelf.clock.now_s += 1
        await store.append("t", "conv_1", [ITEMS[3]])
        page = await store.page("t", "conv_1", "msg_3", 1, is_ascending=True)
        assert page.items == ()
        with pytest.raises(StoredNotFoundError):
            await store.page("u", "conv_1", "msg_1", 1, is_ascending=True)
        await store.remove("t", "conv_1")
        assert shelf.raw("SELECT * FROM gone_items") == []

    play(engine, story)

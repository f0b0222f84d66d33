"""A conversation near its bound: refused before anything is made, and what was made is kept."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.errors import InvalidRequestError
from gateway.http.openresponses.convert import AskedResponse, Refs
from gateway.http.openresponses.render import FinalResponse
from gateway.http.response_turns.stored_turns import StoredTurn
from gateway.storage.database import Database, SqliteEngine
from gateway.storage.records import Bounds, Conversation, ConversationItem
from gateway.storage.store import Store

REFS = Refs(conversation_id="conv_1")
CALL = b'{"id":"fc_1","type":"function_call","call_id":"c","name":"f","arguments":"{}"}'


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    database = Database(SqliteEngine(tmp_path / "store"))
    store = Store(database, "one", Bounds(max_context_bytes=200), lambda: 1_000_000.0)
    items = [ConversationItem("msg_1", b'{"id":"msg_1","text":"%b"}' % (b"x" * 100))]
    await store.conversations.create("t", Conversation("conv_1", 0, b"{}"), items)
    yield store
    await database.close()


def asking(num_characters: int) -> AskedResponse:
    text = '[{"id":"msg_2","text":"' + "x" * num_characters + '"}]'
    return AskedResponse("m", REFS, None, True, False, False, False, text, num_input_items=1)


async def test_a_question_that_has_no_room_is_refused_before_it_is_answered(store: Store) -> None:
    turn = StoredTurn(store, "resp_1", "t")
    await turn.read(b"{}", REFS)
    with pytest.raises(InvalidRequestError, match="PENSTOCK_STORE_MAX_CONTEXT_BYTES") as raised:
        turn.check(asking(80))
    assert raised.value.param == "conversation"
    turn.check(asking(40))


async def test_an_answer_that_was_paid_for_is_kept_and_the_next_question_refused(
    store: Store,
) -> None:
    turn = StoredTurn(store, "resp_1", "t")
    await turn.read(b"{}", REFS)
    asked = asking(40)
    turn.check(asked)
    output = b"[" + CALL + b"]"
    await turn.keep("t", 0, FinalResponse("completed", b"{}", output), asked)
    page = await store.conversations.page("t", "conv_1", "", 10, is_ascending=True)
    assert [item.id for item in page.items] == ["msg_1", "msg_2", "fc_1"]
    assert sum(len(item.body) for item in page.items) > 200
    next_turn = StoredTurn(store, "resp_2", "t")
    with pytest.raises(InvalidRequestError, match="delete items"):
        await next_turn.read(b"{}", REFS)
    with pytest.raises(InvalidRequestError, match="delete items"):
        await store.conversations.append("t", "conv_1", [ConversationItem("msg_3", b"{}")])
    await store.conversations.remove_item("t", "conv_1", "msg_1")
    await next_turn.read(b"{}", REFS)

"""One response and the store: what it goes on from, and what is kept of it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import orjson

from gateway.errors import (
    ConversationLockedError,
    GatewayError,
    InvalidRequestError,
    PreviousResponseNotFoundError,
    StoredNotFoundError,
    StoreUnavailableError,
)
from gateway.http.openresponses.convert import AskedResponse, Refs
from gateway.http.openresponses.render import FinalResponse, ToldEvent
from gateway.http.openresponses.replay import replayed
from gateway.http.openresponses.stored_items import (
    base_of,
    base_of_item,
    framed,
    joined,
    with_ids,
)
from gateway.json_numbers import loads
from gateway.storage.records import ConversationItem, StoredResponse, is_id
from gateway.storage.store import Store
from protocol.errors import ErrorCode

ResultT = TypeVar("ResultT")
OFF_LOOP_BYTES: Final = 16 * 1024
"""Beyond it JSON is read in a thread: long numbers take a second, slower parse."""
_SHRINKS_TO: Final = 0.7
"""What is left of a context that was too long, each time."""


@dataclass(frozen=True, slots=True)
class LocalTurn:
    """The last response of a WebSocket, which it remembers itself.

    Attributes:
        response_id: Of it.
        items: All that the next one goes on from, a JSON array.
        is_stored: Whether the store has it, too.
    """

    response_id: str
    items: bytes
    is_stored: bool


@dataclass(frozen=True, slots=True)
class ReadContext:
    """What of the store a request goes on from.

    Attributes:
        body: The request's, as the client sent it.
        items: A JSON array.
        references: JSON of items by id.
    """

    body: bytes
    items: bytes
    references: dict[str, bytes]

    def frame(self, max_item_bytes: int | None = None, progress: bytes = b"null") -> bytes:
        """For the second parse, and for those of further turns."""
        return framed(self.body, self.items, self.references, max_item_bytes, progress)


Reparse = Callable[[bytes], Awaitable[AskedResponse]]


async def shortened(
    asked: AskedResponse, context: ReadContext, error: GatewayError, reparse: Reparse
) -> AskedResponse:
    """The same request without its oldest items, after it was too long.

    Raises:
        GatewayError: The given one: it may not be shortened, or can't be any more.
    """
    shorter = await reparse(context.frame(shorter_context(asked, error)))
    if shorter.num_left_out <= asked.num_left_out:
        raise error
    return shorter


def shorter_context(asked: AskedResponse, error: GatewayError) -> int:
    """How many bytes of items to read, after a request was too long.

    Raises:
        GatewayError: The given one: it may not be shortened.
    """
    if not asked.truncates or error.code is not ErrorCode.CONTEXT_LENGTH_EXCEEDED:
        raise error
    return int(asked.num_item_bytes * _SHRINKS_TO)


class StoredTurn:
    """The dealings of one response with the store.

    Args:
        store: None where nothing is stored.
        response_id: `resp_…`.
        tenant: Whose things it may see; None as long as it needs none.
        local: What a WebSocket remembers.
    """

    def __init__(
        self,
        store: Store | None,
        response_id: str,
        tenant: str | None = None,
        local: LocalTurn | None = None,
    ) -> None:
        self._store = store
        self.response_id = response_id
        self.tenant = tenant
        self.local = local
        self._held: str | None = None
        self._num_held, self._num_held_bytes = 0, 0

    async def read(self, body: bytes, refs: Refs, *, holds: bool = True) -> ReadContext:
        """Read what a request goes on from.

        Args:
            body: Of the request.
            refs: What it names.
            holds: Whether its conversation is held until `keep` or `close`.

        Raises:
            GatewayError: Something isn't there, is too large, or is held by another response.
        """
        items = b"[]"
        if refs.previous_id is not None:
            items = await self._chain(refs.previous_id)
        elif refs.conversation_id is not None:
            items = await self._conversation(refs.conversation_id, holds=holds)
        return ReadContext(body, items, await self._items(refs.item_ids))

    def check(self, asked: AskedResponse) -> None:
        """See that an answer can be stored before it is made, and paid for.

        What it adds to a conversation beside the request's own items is kept in any case.

        Raises:
            StoreUnavailableError: It is to be stored, and can't be at the moment.
            InvalidRequestError: Its conversation has no room for the request's items.
        """
        if not asked.is_stored:
            return
        self._stored.check()
        if self._held is None:
            return
        self._stored.conversations.check_room(
            self._held,
            self._num_held + asked.num_input_items + 1,
            self._num_held_bytes + len(asked.input_json.encode()),
        )

    async def keep(
        self,
        tenant: str,
        created: int,
        final: FinalResponse,
        asked: AskedResponse,
        script: bytes = b"",
    ) -> None:
        """Store a response that has ended.

        Args:
            tenant: Whose it is.
            created: Unix seconds.
            final: What it came to.
            asked: What was asked for.
            script: How its stream has told it; empty where there was none.

        Raises:
            GatewayError: It can't be stored.
        """
        if not asked.is_stored:
            return
        if self.tenant not in (None, tenant):
            raise StoreUnavailableError(
                "This API key has changed hands during the request; please try again."
            )
        response = as_stored(self.response_id, asked, created, final)
        local = self.local
        is_local = local is not None and local.response_id == asked.refs.previous_id
        if local is not None and is_local and not local.is_stored:
            # The store can't go back to what only a connection remembers.
            whole = joined((local.items, response.input))
            response = replace(response, previous_id=None, input=whole)
        if final.status == "failed":  # its conversation stays as it was, and `close` releases it
            await self._stored.responses.save(tenant, response, [], script)
            return
        await self._stored.responses.save(tenant, response, await added_items(response), script)
        self._held = None

    def close(self) -> None:
        """It is over: what is held still is let go; idempotent."""
        held, self._held = self._held, None
        if held is not None:
            self._stored.let_go(held, self.response_id)

    def hand_over(self) -> None:
        """A background job holds the conversation from now on."""
        self._held = None

    @property
    def _stored(self) -> Store:
        if self._store is None:
            raise StoreUnavailableError("This server stores nothing.")
        return self._store

    @property
    def _owner(self) -> str:
        assert self.tenant is not None, "whoever reads is known"
        return self.tenant

    async def _chain(self, previous_id: str) -> bytes:
        if self.local is not None and self.local.response_id == previous_id:
            return self.local.items
        if not is_id(previous_id) or self._store is None:
            raise PreviousResponseNotFoundError(previous_id)
        turns = await self._stored.responses.chain(self._owner, previous_id)
        return joined(part for turn in turns for part in (turn.input, turn.output))

    async def _conversation(self, conversation_id: str, *, holds: bool) -> bytes:
        store = self._stored.conversations
        missing = StoredNotFoundError("conversation", conversation_id, param="conversation")
        if not is_id(conversation_id):
            raise missing
        try:
            if holds:
                # A store that answers too late may hold it anyway; `close` releases it.
                self._held = conversation_id
                items = await store.begin_turn(self._owner, conversation_id, self.response_id)
                self._num_held, self._num_held_bytes = len(items), sum(map(len, items))
            else:
                items = await store.read(self._owner, conversation_id)
        except StoredNotFoundError:
            self._held = None
            raise missing from None
        except ConversationLockedError:
            self._held = None  # by another one
            raise
        return b"[" + b",".join(items) + b"]"

    async def _items(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """Items by their ids, of which the id of their response or conversation is a part."""
        by_base: dict[str, list[str]] = {}
        for name in names:
            by_base.setdefault(base_of_item(name) if is_id(name) else "", []).append(name)
        found: dict[str, bytes] = {}
        num_bytes = 0
        for base, wanted in by_base.items():
            found |= await self._items_of(base, wanted)
            missing = [name for name in wanted if name not in found]
            if missing:
                raise StoredNotFoundError("item", missing[0], param="input")
            num_bytes += sum(len(found[name]) for name in wanted)
            if num_bytes > self._stored.bounds.max_context_bytes:
                raise InvalidRequestError(
                    "Invalid `input`: the items that it refers to have more than"
                    f" {self._stored.bounds.max_context_bytes} bytes"
                    " (PENSTOCK_STORE_MAX_CONTEXT_BYTES).",
                    param="input",
                )
        return found

    async def _items_of(self, base: str, wanted: list[str]) -> dict[str, bytes]:
        """Of one response, or conversation, those of its items that are wanted and there."""
        if not base:
            return {}
        try:
            response = await self._stored.responses.find(self._owner, f"resp_{base}")
        except StoredNotFoundError:
            pass
        else:
            return await off_loop(response.num_bytes, lambda: _picked(response, base, wanted))
        found: dict[str, bytes] = {}
        for name in wanted:
            with suppress(StoredNotFoundError):
                item = await self._stored.conversations.item(self._owner, f"conv_{base}", name)
                found[name] = item.body
        return found


def _picked(response: StoredResponse, base: str, wanted: list[str]) -> dict[str, bytes]:
    output: list[dict[str, Any]] = loads(response.output)
    items = (*output, *with_ids(loads(response.input), base, tells_apart=True))
    return {item["id"]: orjson.dumps(item) for item in items if item["id"] in wanted}


async def off_loop(num_bytes: int, work: Callable[[], ResultT]) -> ResultT:
    """Do something with JSON; beside the loop where it is much."""
    return await asyncio.to_thread(work) if num_bytes > OFF_LOOP_BYTES else work()


def as_stored(
    response_id: str, asked: AskedResponse, created: int, final: FinalResponse
) -> StoredResponse:
    """A response as it is kept.

    Args:
        response_id: Of it.
        asked: What was asked for.
        created: Unix seconds.
        final: What it came to, or what it is now.
    """
    return StoredResponse(
        response_id,
        final.status,
        asked.refs.previous_id,
        asked.refs.conversation_id,
        created * 1000,
        final.body,
        asked.input_json.encode(),
        final.output,
    )


async def added_items(response: StoredResponse) -> list[ConversationItem]:
    """What a response adds to its conversation, if it has one: its input, then its output."""
    if response.conversation_id is None:
        return []
    return await off_loop(response.num_bytes, lambda: _added_items(response))


async def told_again(response: StoredResponse, after: int, script: bytes) -> list[ToldEvent]:
    """The events of a response that is over, behind a number, by the script of its stream."""
    num_bytes = response.num_bytes + len(script)
    return await off_loop(num_bytes, lambda: replayed(response.body, after, script))


async def shown_input(response: StoredResponse) -> list[dict[str, Any]]:
    """The input items of a response, with ids."""

    def show() -> list[dict[str, Any]]:
        return list(with_ids(loads(response.input), base_of(response.id), tells_apart=True))

    return await off_loop(response.num_bytes, show)


def _added_items(response: StoredResponse) -> list[ConversationItem]:
    items = with_ids(loads(response.input), base_of(response.id))
    output: list[dict[str, Any]] = loads(response.output)
    return [ConversationItem(item["id"], orjson.dumps(item)) for item in (*items, *output)]

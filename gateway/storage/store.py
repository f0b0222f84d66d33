"""The store as the gateway uses it: responses, conversations and jobs, always of one tenant."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from gateway.errors import GatewayError, StoredNotFoundError, StoreUnavailableError
from gateway.housekeeping import logs_failure
from gateway.storage import conversations, responses
from gateway.storage.database import Connection, Database
from gateway.storage.job_store import JobStore
from gateway.storage.kept_answers import AnswerStore
from gateway.storage.records import (
    Bounds,
    Conversation,
    ConversationItem,
    ItemPage,
    StoredResponse,
)
from gateway.storage.sweeping import swept

_logger = logging.getLogger("penstock.gateway.storage")


class Store:
    """Four sides of one database.

    Args:
        database: Where it is.
        owner: The id of this gateway, for what it holds.
        bounds: How much is kept.
        wall_clock: Unix seconds; all gateways of a store had better agree to a few seconds.

    Attributes:
        responses: What has been answered.
        conversations: Lists of items.
        jobs: Responses that are made in the background.
        answers: Kept under an `Idempotency-Key`.
    """

    def __init__(
        self,
        database: Database,
        owner: str,
        bounds: Bounds,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self.bounds = bounds
        self._wall_clock = wall_clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._unreleased: set[tuple[str, str]] = set()  # conversations, and who held them
        self.responses = ResponseStore(database, bounds, self._now_ms)
        self.conversations = ConversationStore(database, owner, bounds, self._now_ms)
        self.jobs = JobStore(database, owner, bounds, self._now_ms)
        self.answers = AnswerStore(database, owner, bounds, self._now_ms)

    def _now_ms(self) -> int:
        return int(self._wall_clock() * 1000)

    async def sweep(self) -> int:
        """Drop what is too old or too much in all; how much that was.

        Conversations that could not be let go are, before that.

        Raises:
            GatewayError: The store can't be used.
        """
        for conversation_id, response_id in list(self._unreleased):
            await self._release(conversation_id, response_id)
        num_answers, now_ms = await self.answers.sweep(), self._now_ms()
        return num_answers + await swept(
            self._database, partial(responses.sweep, bounds=self.bounds, now_ms=now_ms)
        )

    def check(self) -> None:
        """See that what is made now can be kept afterwards, as far as anybody knows.

        Raises:
            StoreUnavailableError: The store took nothing when it was last tried.
        """
        if self.jobs.is_failing:
            raise StoreUnavailableError(
                "The store of this server can't be used at the moment; please try again, or send"
                " `store: false`."
            )

    def let_go(self, conversation_id: str, response_id: str) -> None:
        """A response that was not made releases its conversation; this waits for nothing."""
        task = asyncio.get_running_loop().create_task(self._release(conversation_id, response_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(logs_failure(f"releasing the conversation {conversation_id}"))

    async def _release(self, conversation_id: str, response_id: str) -> None:
        held = (conversation_id, response_id)
        try:
            await self.conversations.end_turn(*held)
        except GatewayError as error:
            if held not in self._unreleased:
                _logger.warning("a conversation is held until the next sweep: %s", error.message)
            self._unreleased.add(held)
        else:
            self._unreleased.discard(held)

    async def close(self) -> None:
        """Release the database."""
        await self._database.close()


class ResponseStore:
    """Responses that have ended, and those that are made in the background.

    Args:
        database: Where they are.
        bounds: How much is kept.
        now_ms: Unix milliseconds.
    """

    def __init__(self, database: Database, bounds: Bounds, now_ms: Callable[[], int]) -> None:
        self._database = database
        self._bounds = bounds
        self._now_ms = now_ms

    async def save(
        self,
        tenant: str,
        response: StoredResponse,
        items: Sequence[ConversationItem] = (),
        script: bytes = b"",
    ) -> None:
        """Keep a response that has ended; its conversation gets the items.

        Args:
            tenant: Whose it is.
            response: As it ended.
            items: Of its conversation.
            script: How its stream has told it; empty where there was none.

        Raises:
            GatewayError: The conversation can't take them, or the store can't be used.
        """
        now_ms, bounds = self._now_ms(), self._bounds

        def work(connection: Connection) -> None:
            responses.insert(connection, tenant, response, now_ms)
            if script:
                responses.insert_script(connection, tenant, response.id, script)
            conversations.close_turn(connection, tenant, response, items, bounds, now_ms)
            responses.make_room(connection, tenant, bounds, keep=response.id)

        await self._database.run(work)

    async def find(self, tenant: str, response_id: str) -> StoredResponse:
        """A response.

        Raises:
            StoredNotFoundError: This tenant has none of this id.
        """
        find = partial(responses.find, tenant=tenant, response_id=response_id)
        found = await self._database.run(find)
        if found is None:
            raise StoredNotFoundError("response", response_id)
        return found

    async def script(self, tenant: str, response_id: str) -> bytes:
        """How the stream of a response has told it; empty where there was none."""
        return await self._database.run(
            lambda connection: responses.script(connection, tenant, response_id)
        )

    async def remove(self, tenant: str, response_id: str) -> None:
        """Drop a response; one that is being made ends.

        Raises:
            StoredNotFoundError: This tenant has none of this id.
        """
        if not await self._database.run(
            lambda connection: responses.remove(connection, tenant, response_id)
        ):
            raise StoredNotFoundError("response", response_id)

    async def chain(self, tenant: str, response_id: str) -> list[StoredResponse]:
        """A response and all that it goes on from, oldest first.

        Raises:
            PreviousResponseNotFoundError: One of them isn't there.
            InvalidRequestError: They can't be continued.
        """
        now_ms = self._now_ms()
        return await self._database.run(
            lambda connection: responses.chain(
                connection, tenant, response_id, self._bounds, now_ms
            )
        )


class ConversationStore:
    """Conversations; each is written by one response at a time.

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

    async def create(
        self, tenant: str, conversation: Conversation, items: Sequence[ConversationItem]
    ) -> Conversation:
        """Begin a conversation; one that was begun before, by its id, is as it is."""
        now_ms = self._now_ms()
        return await self._database.run(
            lambda connection: conversations.create(
                connection, tenant, conversation, items, self._bounds, now_ms
            )
        )

    async def find(self, tenant: str, conversation_id: str) -> Conversation:
        """A conversation.

        Raises:
            StoredNotFoundError: This tenant has none of this id.
        """
        find = partial(conversations.existing, tenant=tenant, conversation_id=conversation_id)
        return await self._database.run(find)

    async def set_metadata(
        self, tenant: str, conversation_id: str, metadata: bytes
    ) -> Conversation:
        """Replace the labels.

        Raises:
            StoredNotFoundError: This tenant has none of this id.
        """
        now_ms = self._now_ms()
        return await self._database.run(
            lambda connection: conversations.set_metadata(
                connection, tenant, conversation_id, metadata, now_ms
            )
        )

    async def remove(self, tenant: str, conversation_id: str) -> None:
        """Drop a conversation with its items.

        Raises:
            StoredNotFoundError: This tenant has none of this id.
        """
        if not await self._database.run(
            lambda connection: responses.remove_conversation(connection, tenant, conversation_id)
        ):
            raise StoredNotFoundError("conversation", conversation_id)

    async def append(
        self, tenant: str, conversation_id: str, items: Sequence[ConversationItem]
    ) -> list[ConversationItem]:
        """Add items; they come back as they are kept.

        Raises:
            GatewayError: There is no such conversation, somebody writes, or it is full.
        """
        now_ms = self._now_ms()
        return await self._database.run(
            lambda connection: conversations.append(
                connection, tenant, conversation_id, items, self._bounds, now_ms
            )
        )

    async def page(
        self, tenant: str, conversation_id: str, after: str, limit: int, *, is_ascending: bool
    ) -> ItemPage:
        """Some items.

        Raises:
            StoredNotFoundError: This tenant has no such conversation, or item to go on from.
        """
        return await self._database.run(
            lambda connection: conversations.page(
                connection,
                tenant,
                conversation_id,
                after=after,
                limit=limit,
                is_ascending=is_ascending,
            )
        )

    async def item(self, tenant: str, conversation_id: str, item_id: str) -> ConversationItem:
        """One item.

        Raises:
            StoredNotFoundError: This tenant has none of this id there.
        """
        return await self._database.run(
            lambda connection: conversations.item(connection, tenant, conversation_id, item_id)
        )

    async def remove_item(self, tenant: str, conversation_id: str, item_id: str) -> Conversation:
        """Drop one item.

        Raises:
            GatewayError: This tenant has none of this id there, or a response is being made.
        """
        now_ms = self._now_ms()
        return await self._database.run(
            lambda connection: conversations.remove_item(
                connection, tenant, conversation_id, item_id, now_ms
            )
        )

    async def begin_turn(self, tenant: str, conversation_id: str, response_id: str) -> list[bytes]:
        """Hold a conversation for a response; all its items.

        Raises:
            GatewayError: There is none, another response holds it, or it is too large.
        """
        now_ms = self._now_ms()
        return await self._database.run(
            lambda connection: conversations.begin_turn(
                connection, tenant, conversation_id, response_id, self._owner, self._bounds, now_ms
            )
        )

    def check_room(self, conversation_id: str, num_items: int, num_bytes: int) -> None:
        """Refuse a response before it is made: what ends it is kept, whatever it comes to.

        Args:
            conversation_id: Of the conversation that it holds.
            num_items: That it would have at least.
            num_bytes: Likewise.

        Raises:
            InvalidRequestError: It is too much.
        """
        conversations.check_room(conversation_id, num_items, num_bytes, self._bounds)

    async def read(self, tenant: str, conversation_id: str) -> list[bytes]:
        """All items of a conversation, oldest first.

        Raises:
            GatewayError: There is none, or it is too large.
        """
        return await self._database.run(
            lambda connection: conversations.read(connection, tenant, conversation_id, self._bounds)
        )

    async def end_turn(self, conversation_id: str, response_id: str) -> None:
        """Release it; idempotent."""
        await self._database.run(
            lambda connection: conversations.end_turn(connection, conversation_id, response_id)
        )

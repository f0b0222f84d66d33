"""`Idempotency-Key`: a request that generates, makes or administers something is answered once.

The first success is kept and repeated, byte by byte, to whoever repeats the request with the same
key within the tenant (of administrators: with the same API key): in memory, see
`request/idempotency/replays.py`, and where all gateways find it, see `stored_claims.py` and, for
administrators, `kept_answers.py`. A client that leaves doesn't end such a request: it will come
back for the answer.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import orjson
from fastapi import Request, Response

from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.parts import parts_of
from gateway.request.idempotency.replays import Asked, KeptAnswer, ReplayName, ReplayTable
from protocol.wire.messages import Authorize

HEADER: Final = "Idempotency-Key"
REPLAYED_HEADER: Final = "Idempotent-Replayed"
"""As Stripe says it."""
MAX_KEY_CHARS = 255
_KEPT_HEADERS: Final = frozenset(
    {
        "content-type",
        "cache-control",
        "x-penstock-ignored-fields",
        "x-penstock-unenforced",
        "x-penstock-label-mass",
        "x-penstock-model",
    }
)


class Replayed(Exception):  # noqa: N818 - no error: it ends the reading of a body early
    """The answer is known already."""

    def __init__(self, answer: KeptAnswer) -> None:
        super().__init__()
        self.answer = answer


class Claim(Protocol):
    """A request's place where more than this process knows of it."""

    @property
    def made_id(self) -> str:
        """Names what the request makes, by whichever gateway; empty where nothing is to be."""
        ...

    async def claim(self, fingerprint: bytes) -> KeptAnswer | None:
        """What came of it before; None when it is to be done now.

        Raises:
            GatewayError: Its key means another request, or it is running, or nobody can say.
        """
        ...

    async def end(self, answer: KeptAnswer | None, error: BaseException | None) -> bool:
        """Keep what came of it; False when it is somebody else's by now."""
        ...


class Replay:
    """One request that came with a key.

    Args:
        table: Of this gateway.
        owner: Whose answers are one: the caller's tenant, or its key.
        key: As it was sent.
        where: Method and path.
        query: Of its address; a part of the request.
        durable: Where it is claimed as well; None for what is done once by this process alone.
        on_begun: Called when it is to be done now, before it is.
    """

    def __init__(
        self,
        table: ReplayTable,
        owner: str,
        key: str,
        where: str,
        query: bytes = b"",
        durable: Claim | None = None,
        on_begun: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._table = table
        named = hashlib.sha256(f"{where}\0{key}".encode()).digest()
        self._name = ReplayName(owner, named)
        self._query = query
        self._is_claimed = False
        self._durable = durable
        self._on_begun = on_begun

    @property
    def made_id(self) -> str:
        """Names what the request makes, whichever gateway goes on with it; or empty."""
        return "" if self._durable is None else self._durable.made_id

    async def on_body(self, body: bytes) -> None:
        """The body was read, and nothing of it was looked at.

        Raises:
            Replayed: It was answered before.
            GatewayError: The key means another request, or this one is running.
        """
        await self._begin(hashlib.sha256(body).digest())

    async def on_form(self, parts: object, file_digest: bytes) -> None:
        """The same for a form, whose bytes are others each time that it is sent.

        Args:
            parts: What it says beside its file, for JSON.
            file_digest: Of the file.

        Raises:
            Replayed: It was answered before.
            GatewayError: The key means another request, or this one is running.
        """
        told = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
        await self._begin(hashlib.sha256(file_digest + told).digest())

    async def _begin(self, fingerprint: bytes) -> None:
        if self._is_claimed:
            return
        if self._query:
            fingerprint = hashlib.sha256(fingerprint + self._query).digest()
        kept = self._table.claim(self._name, fingerprint)
        if kept is None and self._durable is not None:
            try:
                kept = await self._durable.claim(fingerprint)
            except BaseException:
                self._table.drop(self._name)
                raise
            if kept is not None:
                self._table.drop(self._name)
                self._table.num_replayed += 1
        if kept is not None:
            raise Replayed(kept)
        self._is_claimed = True
        if self._on_begun is not None:
            await self._on_begun()

    async def end(
        self,
        response: Response | None,
        asked: tuple[Authorize, ...],
        error: BaseException | None = None,
    ) -> None:
        """What became of it; only a success is kept: nothing else costs or changes anything.

        Args:
            response: None where there is none.
            asked: What was granted for it.
            error: Why there is none.
        """
        if not self._is_claimed:
            return
        kept: KeptAnswer | None = None
        if response is not None and 200 <= response.status_code < 300:
            kept = KeptAnswer(
                response.status_code,
                {name: value for name, value in response.headers.items() if name in _KEPT_HEADERS},
                bytes(response.body),
                tuple(
                    Asked(one.model, one.asked_tokens, one.is_streaming, one.uses_tools)
                    for one in asked
                ),
            )
        is_ours = False
        try:
            is_ours = self._durable is None or await self._durable.end(kept, error)
        finally:
            if kept is not None and is_ours:
                self._table.keep(self._name, kept)
            else:
                self._table.drop(self._name)


def idempotency_key(request: Request) -> str | None:
    """The key that a request came with; None without one.

    Raises:
        InvalidRequestError: It is none, or there are several.
    """
    values = request.headers.getlist(HEADER)
    if not values:
        return None
    key = values[0].strip()
    if len(set(values)) > 1:
        raise InvalidRequestError(f"Several {HEADER} headers differ; send one.", param=HEADER)
    if not 0 < len(key) <= MAX_KEY_CHARS or not all(" " <= char <= "~" for char in key):
        raise InvalidRequestError(
            f"The {HEADER} must have 1 to {MAX_KEY_CHARS} printable ASCII characters.",
            param=HEADER,
        )
    return key


def replay_of(request: Request) -> Replay | None:
    """The request's place among those with a key; None when it came without one."""
    replay: Replay | None = request.scope["state"].get("replay")
    return replay


def made_id(request: Request) -> str:
    """Names what a request makes; the same when another gateway goes on with what one began."""
    replay, request_id = replay_of(request), request.state.request_id
    made: str = request_id if replay is None else replay.made_id or request_id
    return made


async def answered_once(
    request: Request,
    replay: Replay,
    answer: Callable[[], Awaitable[Response]],
    judge: Callable[[KeptAnswer], Awaitable[object]],
    asked: list[Authorize],
) -> Response:
    """Answer a request, or repeat the answer of before.

    Args:
        request: Whose caller is known.
        replay: Its place.
        answer: Makes the answer.
        judge: Asks whether the caller may still have what was kept; a repetition reserves nothing,
            so nobody else would.
        asked: Where what is granted meanwhile is noted.
    """
    request.scope["state"]["replay"] = replay
    response: Response | None = None
    failure: BaseException | None = None
    try:
        response = await answer()
    except Replayed as replayed:
        kept = replayed.answer
        await judge(kept)
        headers = {**kept.headers, REPLAYED_HEADER: "true"}
        return Response(kept.body, kept.status, headers)
    except BaseException as error:
        failure = error
        raise
    finally:
        await replay.end(response, tuple(asked), failure)
    return response


def refuse_stream(request: Request) -> None:
    """A stream can't be repeated.

    Raises:
        UnsupportedFieldError: The request came with a key.
    """
    if replay_of(request) is not None:
        raise UnsupportedFieldError(
            f"A streamed answer can't be repeated: leave {HEADER} or `stream` out.", param=HEADER
        )


def table_of(request: Request) -> ReplayTable:
    """The answers that this gateway keeps."""
    return parts_of(request).replays

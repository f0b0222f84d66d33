"""Who may use a route: authorised by default, open only by name, and before a body is read."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import bridge
from gateway.errors import (
    ClientDisconnectedError,
    DeniedError,
    WorkerUnavailableError,
)
from gateway.http.access.guarded_request import GuardedRequest, head_of
from gateway.http.access.hooking import SHOWN, shown_to_hooks
from gateway.http.access.kept_answers import DurableClaim
from gateway.http.access.kind_of_body import METHODS_WITH_BODY, check_kind_of_body, takes_body
from gateway.http.access.presented import is_token, presented_key
from gateway.http.access.replaying import (
    HEADER,
    Claim,
    Replay,
    answered_once,
    idempotency_key,
    table_of,
)
from gateway.http.access.route_rules import (
    RESERVED_FIRST,
    ROUTE_RULES,
    Access,
    RouteRule,
    scope_of,
)
from gateway.http.access.stored_claims import StoredClaim
from gateway.http.bodies.parsers import BodyKind
from gateway.http.bodies.reading import SMALL_BYTES, Bodies, BodyPlace
from gateway.http.connections.disconnect import watch
from gateway.http.parts import parts_of
from gateway.http.schemas.base.beside_loop import BesideLoopError
from gateway.request.callers.caller import Caller, end_user_of
from gateway.request.callers.identity import Identity
from gateway.request.idempotency.replays import Asked, KeptAnswer
from protocol.errors import NO_API_KEY, ErrorCode
from protocol.wire.endpoints import is_loopback
from protocol.wire.messages import Actor, Authorize, Granted, KeyRole

ResultT = TypeVar("ResultT")


class GuardedRoute(APIRoute):
    """A route that knows its caller before its handler runs, unless `ROUTE_RULES` opens it.

    Handlers take the request and read it themselves, so nothing of FastAPI's own reading of
    parameters and bodies runs for them.

    Attributes:
        answered_methods: The declared ones, and HEAD wherever there is GET.
    """

    @property
    def rule(self) -> RouteRule:
        """What this route asks of its caller.

        Raises:
            LookupError: Nobody has said so.
        """
        rule = ROUTE_RULES.get(self.path)
        if rule is None:
            raise LookupError(f"ROUTE_RULES doesn't say who may use {self.path}")
        return rule

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler behind the guard."""
        guard, endpoint = _GUARDS[self.rule.access], self.endpoint
        path = self.path
        reads_body = takes_body(self)
        is_replayable = reads_body and guard is not None
        # A repetition doesn't count: such a request counts when it is begun.
        guard_of_key = _guard_user if self.rule.access is Access.COUNTED else guard

        async def guarded(request: Request) -> Response:
            has_key = is_replayable and HEADER in request.headers
            is_once = has_key and request.method in METHODS_WITH_BODY
            first = guard_of_key if is_once else guard
            if first is not None:
                await first(request, path)
            if reads_body:
                check_kind_of_body(request)
            if is_once and (key := idempotency_key(request)) is not None:
                return await _answer_once(request, path, key, endpoint)
            response: Response = await endpoint(request, **request.path_params)
            return response

        return guarded

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, without the context managers that FastAPI keeps for dependencies."""
        if scope["method"] not in self.answered_methods:
            await super().handle(scope, receive, send)
            return
        request = GuardedRequest(scope, receive, send)
        response = await self._guarded(request)
        answer: ASGIApp = head_of(response) if scope["method"] == "HEAD" else response
        await answer(scope, receive, send)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether this route answers a request; HEAD as GET (RFC 9110 §9.3.2).

        The server sends no body in answer to HEAD, whatever the route says.
        """
        match, child_scope = super().matches(scope)
        if match is Match.PARTIAL and scope["method"] in self.answered_methods:
            match = Match.FULL
        return match, child_scope

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        declared = frozenset(self.methods or ())
        self.answered_methods = declared | {"HEAD"} if "GET" in declared else declared
        self._guarded = self.get_route_handler()


async def _guard_metered(request: Request, path: str) -> None:
    """Know the caller before more than a little of the body is read.

    Where the body alone decides what is answered before a reservation, what is served here among
    it, the caller is always known first.

    Raises:
        DeniedError: There is no key, or it was unknown a moment ago or is so now.
    """
    parts = parts_of(request)
    if not parts.settings.require_keys:
        return
    caller = caller_of(request)
    if caller.key_digest is None:
        raise DeniedError(NO_API_KEY, code=ErrorCode.INVALID_API_KEY)
    refusal = parts.identities.refusal(caller.key_digest, caller.address)
    if refusal is not None:
        raise _again(refusal)
    # Nothing is reserved for a handshake, though it may say that it has a body.
    has_body = request.method in METHODS_WITH_BODY and _has_small_body(request)
    # Code of other packages runs for nobody who is not known.
    is_reserved_first = path in RESERVED_FIRST and has_body and not parts.hooks
    if not is_reserved_first and _known_caller(request, path) is None:
        await _identify(request, path)


async def _answer_once(
    request: Request, path: str, key: str, endpoint: Callable[..., Coroutine[Any, Any, Response]]
) -> Response:
    """Answer a request with an `Idempotency-Key`; who asks is known before its body is read."""
    parts, access = parts_of(request), ROUTE_RULES[path].access
    role: KeyRole = "admin" if access is Access.ADMIN else "user"
    where = f"{request.method} {request.scope['path']}"
    table = table_of(request)
    durable: Claim | None = None
    if access is Access.ADMIN:
        # Never another administrator's: the answer may hold the secret of a new key.
        owner = f"key {request.state.granted.key_id}"
        caller, presented = caller_of(request), presented_key(request)
        if presented is not None:
            actor = Actor(
                key_id=request.state.granted.key_id,
                address=caller.address,
                key_digest=caller.key_digest,
            )
            durable = DurableClaim(request, actor, f"{owner}\0{where}\0{key}", presented)
    else:
        owner = await tenant_of(request, path)
        if parts.store is not None:
            durable = StoredClaim(parts.store.answers, owner, where, key, table.max_answer_bytes)
    state: dict[str, Any] = request.scope["state"]
    asked: list[Authorize] = []
    state["caller"] = replace(caller_of(request), asked=asked)

    async def judge(kept: KeptAnswer) -> None:
        """By what the key may do now: the route, and the model and all else that was asked for."""
        for like in kept.asked or (None,):
            await _identify(request, path, role=role, like=like)

    return await answered_once(
        request,
        Replay(
            table,
            owner,
            key,
            where,
            request.scope["query_string"],
            durable,
            partial(_guard_counted, request, path) if access is Access.COUNTED else None,
        ),
        lambda: endpoint(request, **request.path_params),
        judge,
        asked,
    )


async def _guard_user(request: Request, path: str) -> None:
    request.state.granted = await _identify(request, path)


async def _guard_counted(request: Request, path: str) -> None:
    request.state.granted = await _identify(request, path, is_counted=True)


async def _guard_admin(request: Request, path: str) -> None:
    request.state.granted = await _identify(request, path, role="admin")


async def _guard_local(request: Request, path: str) -> None:
    """Let everybody on this machine in, but no web page that a browser here shows.

    Raises:
        DeniedError: Elsewhere, or under a foreign name, there is no good key.
        ForbiddenOriginError: The request has a foreign `Host` or `Origin`, and no key at all.
    """
    parts = parts_of(request)
    if is_loopback(parts.settings.host):
        foreign = parts.host_guard.refusal(request.headers)
        if foreign is None:
            return
        if presented_key(request) is None:
            raise foreign
    await _guard_user(request, path)


_GUARDS: dict[Access, Callable[[Request, str], Coroutine[Any, Any, None]] | None] = {
    Access.OPEN: None,
    Access.LOCAL: _guard_local,
    Access.USER: _guard_user,
    Access.COUNTED: _guard_counted,
    Access.METERED: _guard_metered,
    Access.ADMIN: _guard_admin,
}


async def _identify(
    request: Request,
    endpoint: str,
    *,
    role: KeyRole = "user",
    is_counted: bool = False,
    like: Asked | None = None,
    question_id: str = "",
) -> Granted:
    """Ask the auth worker who a caller is, and whether it may use a route; that reserves nothing.

    Args:
        request: Of the caller.
        endpoint: The template of its route.
        role: That it needs.
        is_counted: Whether it counts as a request.
        like: What was granted before, of whose model and kind this is.
        question_id: Instead of the request's own id, where others may ask by that meanwhile.

    Raises:
        DeniedError: Nobody who may use this.
        WorkerUnavailableError: Nobody answers, so nobody gets in.
    """
    parts, caller = parts_of(request), caller_of(request)
    # Where no key is asked for, one that administers is, and may be guessed as elsewhere.
    if caller.key_digest is not None and (parts.settings.require_keys or role == "admin"):
        refusal = parts.identities.refusal(caller.key_digest, caller.address)
        if refusal is not None:
            raise _again(refusal)
    try:
        granted = await parts.auth.authorize(
            bridge.authorize(
                question_id or request.state.request_id,
                key_digest=caller.key_digest,
                endpoint=endpoint,
                address=caller.address,
                wait_s=parts.auth.timeout_s,
                trace_id=caller.trace_id,
                role=role,
                scope=scope_of(endpoint),
                is_token=bool(caller.token),
                is_metered=is_counted,
                model="" if like is None else like.model,
                asked_tokens=0 if like is None else like.asked_tokens,
                is_streaming=like is not None and like.is_streaming,
                uses_tools=like is not None and like.uses_tools,
            ),
            caller.token,
        )
    except DeniedError as error:
        request.state.log.key_id = error.key_id
        if role == "user" or error.code is ErrorCode.INVALID_API_KEY:
            parts.identities.note_denied(caller.key_digest, error, caller.address)
        raise
    request.state.log.key_id = granted.key_id
    parts.identities.note_granted(
        caller.key_digest, granted, scope_of(endpoint), endpoint, caller.address
    )
    return granted


def _known_caller(request: Request, path: str) -> Identity | None:
    """Who a caller is that was let in a moment ago, on this route and from where it is."""
    caller = caller_of(request)
    identities = parts_of(request).identities
    return identities.find(caller.key_digest, scope_of(path), path, caller.address)


def _again(refusal: DeniedError) -> DeniedError:
    """The same refusal for another request; one that was raised knows the frames of the first."""
    return DeniedError(refusal.message, code=refusal.code, retry_after_s=refusal.retry_after_s)


def _has_small_body(request: Request) -> bool:
    """Whether the body is on its way with the head, or nearly so, whoever sends it."""
    if "expect" in request.headers:
        return False  # it comes when we ask for it
    length = request.headers.get("content-length", "")
    return (
        length.isascii() and length.isdecimal() and len(length) < 9 and int(length) <= SMALL_BYTES
    )


def caller_of(request: Request) -> Caller:
    """Digest of the presented key, the client's address, and its own id for the request."""
    state: dict[str, Any] = request.scope["state"]
    caller: Caller | None = state.get("caller")
    if caller is None:
        key, client = presented_key(request), request.scope.get("client")
        caller = state["caller"] = Caller(
            None if key is None else hashlib.sha256(key.encode()).digest(),
            "" if client is None else client[0],
            state["trace_id"],
            key if key is not None and is_token(key) else "",
            end_user_of(request.headers.getlist, parts_of(request).settings.end_user_headers),
            trace=None if (trace := state.get("trace")) is None else trace.context,
        )
    return caller


async def tenant_of(request: Request, path: str) -> str:
    """Whose things a request may see; asked of the auth worker unless it was a moment ago.

    Args:
        request: Of the caller.
        path: The template of its route.

    Raises:
        DeniedError: Nobody who may use this.
        WorkerUnavailableError: Nobody answers, so nobody gets in.
    """
    granted: Granted | None = getattr(request.state, "granted", None)
    if granted is not None:
        return granted.tenant
    known = _known_caller(request, path)
    return (await _identify(request, path)).tenant if known is None else known.tenant


async def key_id_of(request: Request, path: str) -> str:
    """Whose key a request came with; empty where none is asked for and nobody knows.

    Asked of the auth worker unless it was a moment ago: a body may take a minute to come, and a
    WebSocket is open for an hour.

    Args:
        request: Of the caller.
        path: The template of its route.

    Raises:
        DeniedError: Nobody who may use this.
        WorkerUnavailableError: Nobody answers, so nobody gets in.
    """
    parts, digest = parts_of(request), caller_of(request).key_digest
    if not parts.settings.require_keys:
        return parts.identities.key_id(digest)
    known = _known_caller(request, path)
    return (await _identify(request, path)).key_id if known is None else known.key_id


async def check_still_allowed(request: Request, tenant: str) -> None:
    """See that whoever reads something for long may still do so; a silent auth worker ends nobody.

    Raises:
        DeniedError: Its key has ended, or may not use the route or see this tenant any more.
    """
    # What a request began in the background asks for its own grant by the request's id.
    question_id = f"{request.state.request_id}:still_allowed"
    path = request.scope["route"].path
    try:
        granted = await _identify(request, path, question_id=question_id)
    except WorkerUnavailableError:
        return
    if granted.tenant != tenant:
        raise DeniedError("This key may not read this any more.", code=ErrorCode.PERMISSION_DENIED)


async def parsed_body(request: Request, kind: BodyKind[ResultT]) -> ResultT:
    """What the body of a request says; parsing ends when its client leaves.

    Raises:
        InvalidRequestError: It is wrong.
        ClientDisconnectedError: The client disconnected.
        GatewayError: It is too large, or too much is under way.
    """
    return (await body_and_parsed(request, kind))[1]


async def body_and_parsed(request: Request, kind: BodyKind[ResultT]) -> tuple[bytes, ResultT]:
    """The same, with the body itself, for a route that has to parse it again."""
    parts, caller = parts_of(request), caller_of(request)
    with parts.bodies.place(caller.name) as place:
        body = await _read(request, parts.bodies, place)
        if parts.hooks and kind.name in SHOWN:
            identify = partial(key_id_of, request, request.scope["route"].path)
            body = await shown_to_hooks(
                parts.hooks, body, request, caller, request.state.log, identify
            )
        return body, await _parsed(request, parts.bodies, caller.name, body, kind)


async def parsed(request: Request, body: bytes, kind: BodyKind[ResultT]) -> ResultT:
    """What bytes say; as `parsed_body` does it with a request's own body, which has been read."""
    return await _parsed(request, parts_of(request).bodies, caller_of(request).name, body, kind)


async def _parsed(
    request: Request, bodies: Bodies, caller: bytes, body: bytes, kind: BodyKind[ResultT]
) -> ResultT:
    if not bodies.takes_long(body):
        with contextlib.suppress(BesideLoopError):
            return bodies.parse_small(body, kind)
    if getattr(request.state, "granted", None) is None:
        # The reservation, which would tell a stranger, comes after the work.
        await key_id_of(request, request.scope["route"].path)
    task = asyncio.get_running_loop().create_task(bodies.parse_beside(body, caller, kind))
    stop = watch(request.scope, request.receive, partial(_cancel, task))
    try:
        await asyncio.wait((task,))
    finally:
        stop()
        task.cancel()
    if task.cancelled():
        raise ClientDisconnectedError("The client disconnected.")
    return task.result()


def _cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()


async def read_body(request: Request) -> bytes:
    """The body of a request, within the bounds of its caller."""
    bodies = parts_of(request).bodies
    with bodies.place(caller_of(request).name) as place:
        return await _read(request, bodies, place)


async def _read(request: Request, bodies: Bodies, place: BodyPlace) -> bytes:
    state = request.scope["state"]
    state["has_read_body"] = False
    body = await bodies.read(request.receive, place)
    state["has_read_body"] = True
    replay: Replay | None = state.get("replay")
    if replay is not None:
        await replay.on_body(body)
    return body


def leaves_body_unread(request: Request) -> bool:
    """Whether a body that is large, or late, is on its way: the connection had better end."""
    has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
    has_read: bool | None = getattr(request.state, "has_read_body", None)
    if not has_body or has_read:
        return False
    return has_read is not None or not _has_small_body(request)

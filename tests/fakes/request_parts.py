"""All that requests are made of, over wires that only take notes: the test plays every worker."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

from gateway import bridge
from gateway.dispatch.admission import Admission
from gateway.dispatch.quarantine import Quarantine
from gateway.dispatch.routing import PrefixRouter
from gateway.dispatch.slots import EngineHandle
from gateway.errors import GatewayError
from gateway.ledger.outbox import Outbox
from gateway.request.callers.caller import Caller
from gateway.request.callers.identity import IdentityTable
from gateway.request.choices.launcher import EnginePool
from gateway.request.factory import RequestFactory, RequestRules
from gateway.request.jobs.answer_options import PLAIN_ANSWER, AnswerOptions
from gateway.request.jobs.job import COMPLETION_ENDPOINT, GenerationJob
from gateway.request.jobs.model_names import ModelNames
from gateway.request.kinds.generation import GenerationWork
from gateway.request.lifecycle.request import Request
from gateway.request.lifecycle.sessions import SessionTable
from gateway.telemetry.metrics import Metrics
from gateway.workers.auth import AuthLink, AuthNews
from gateway.workers.engine_directory import EngineDirectory
from gateway.workers.engines import EngineLink
from gateway.workers.parsers import ParserLink
from protocol.errors import ErrorCode
from protocol.version import CANCEL_VERSION, PROTOCOL_VERSION, ProtocolVersion
from protocol.wire.messages import (
    Adjust,
    Adjusted,
    AuthOffer,
    Authorize,
    Cancel,
    Credits,
    Delta,
    Denied,
    EngineOffer,
    Failure,
    Finished,
    FinishReason,
    Generate,
    Granted,
    LimitState,
    Message,
    ParserOffer,
    Prepare,
    Prepared,
    Role,
    SamplingParams,
    Settle,
    StepOutput,
    Usage,
)
from protocol.wire.peers import LossReason, Peer
from tests.fakes.virtual_time import idle

MessageT = TypeVar("MessageT")

DIGEST = b"d" * 32
CALLER = Caller(key_digest=DIGEST, address="192.0.2.1", trace_id="trace")


class NotedWire:
    """A wire that notes what is sent to whom."""

    def __init__(self) -> None:
        self.sent: list[tuple[Peer, Message]] = []
        self.sent_at: list[float] = []

    def send(self, peer: Peer, message: Message) -> None:
        self.sent.append((peer, message))
        self.sent_at.append(asyncio.get_running_loop().time())

    def cancel(self, peer: Peer, request_id: str) -> bool:
        if peer.protocol_version >= CANCEL_VERSION:
            self.send(peer, Cancel(request_id=request_id))
        return False

    def of(self, kind: type[MessageT]) -> list[MessageT]:
        return [message for _, message in self.sent if isinstance(message, kind)]


class NotedOutbox(Outbox):
    """Keeps settlements in a list, and has room unless a test says why not."""

    def __init__(self) -> None:
        self.settles: list[Settle] = []
        self.refusal: GatewayError | None = None

    def check_room(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def put(self, settle: Settle) -> None:
        self.settles.append(settle)


def peer(role: Role, name: str, version: tuple[int, int] = PROTOCOL_VERSION, **offer: Any) -> Peer:
    return Peer(
        identity=name.encode(),
        role=role,
        instance_id=name,
        protocol_version=ProtocolVersion(*version),
        build="",
        last_heard=0.0,
        progress_since=0.0,
        phase_since=0.0,
        phase="ready",
        **offer,
    )


def engine_offer(*, max_requests: int = 4, max_tokens: int = 100_000, **fields: Any) -> EngineOffer:
    defaults = {
        "model": "m",
        "fingerprint": "f",
        "resume_version": 1,
        "max_model_len": 1000,
        "created": 0,
        "max_logprobs": 20,
        "credits": Credits(max_requests=max_requests, max_tokens=max_tokens),
    }
    return EngineOffer(**{**defaults, **fields})


def generation_job(
    *texts: str,
    max_tokens: int | None = 8,
    options: AnswerOptions = PLAIN_ANSWER,
    **fields: Any,
) -> GenerationJob:
    prompts = texts or ("hello",)
    defaults = {
        "endpoint": COMPLETION_ENDPOINT,
        "model": "m",
        "prepares": tuple(bridge.prompt("completion", text=text) for text in prompts),
        "sampling": SamplingParams(seed=1),
        "prompt_bytes": sum(map(len, prompts)),
    }
    return GenerationJob(**{**defaults, **fields}, max_tokens=max_tokens, options=options)


class Parts:
    """A gateway's parts, and the workers that the test plays."""

    def __init__(
        self,
        *,
        slice_tokens: int = 16,
        timeout_s: float = 60.0,
        max_answer_bytes: int = 1_000_000,
        routes_by_prefix: bool = False,
        max_queue: int = 100,
        clock: Callable[[], float] | None = None,
        aliases: dict[str, str] | None = None,
        fallbacks: dict[str, tuple[str, ...]] | None = None,
    ) -> None:
        now = clock or asyncio.get_running_loop().time
        self.engine_wire, self.auth_wire, self.parser_wire = NotedWire(), NotedWire(), NotedWire()
        self.prefixes = PrefixRouter()
        self.routed: list[tuple[str, str]] = []
        self.directory = EngineDirectory(lambda model: self.admission.pump(model))
        self.admission = Admission(self.directory.engines, max_queue, now)
        self.quarantine = Quarantine(now)
        self.link = EngineLink(
            self.engine_wire, self.directory, self.prefixes, lambda _orphans: None
        )
        self.outbox = NotedOutbox()
        self.auth = AuthLink(
            self.auth_wire,
            timeout_s=5.0,
            require_keys=False,
            news=AuthNews(
                on_settled=lambda _lease_id: None,
                on_settle_refused=lambda _request_id: None,
                on_ready=lambda: None,
                on_orphans_noted=lambda _noted: None,
            ),
        )
        self.parsers = ParserLink(self.parser_wire)
        self.identities = IdentityTable(now)
        self.sessions = SessionTable()
        self.metrics = Metrics()
        self.pool = EnginePool(
            link=self.link,
            directory=self.directory,
            admission=self.admission,
            prefixes=self.prefixes if routes_by_prefix else None,
            quarantine=self.quarantine,
            on_routed=lambda model, outcome: self.routed.append((model, outcome)),
        )
        self.factory = RequestFactory(
            auth=self.auth,
            outbox=self.outbox,
            identities=self.identities,
            sessions=self.sessions,
            pool=self.pool,
            parsers=self.parsers,
            metrics=self.metrics,
            names=ModelNames(aliases or {}, fallbacks or {}, self.directory),
            rules=RequestRules(
                timeout_s=timeout_s,
                slice_tokens=slice_tokens,
                max_answer_bytes=max_answer_bytes,
                thinking_budgets={},
                allows_templates=False,
                models=("m", "later"),
                scopes=defaultdict(lambda: "chat.completions"),
            ),
            clock=now,
        )
        self.auth_peer = peer("auth", "auth", auth=AuthOffer(epoch=1))
        self.auth.on_peer_ready(self.auth_peer)

    # Workers come and go.

    def engine(
        self, name: str = "e", version: tuple[int, int] = PROTOCOL_VERSION, **offer: Any
    ) -> Peer:
        one = peer("engine", name, version, engine=engine_offer(**offer))
        self.link.on_peer_ready(one)
        return one

    def handle(self, one: Peer) -> EngineHandle:
        found = self.directory.handle(one)
        assert found is not None
        return found

    def lose(self, one: Peer, reason: LossReason = "disconnected") -> None:
        one.loss_reason = reason
        self.link.on_peer_lost(one)

    def parser(self, name: str = "p") -> Peer:
        offer = ParserOffer(tool_formats=("hermes",), reasoning_formats=("think",))
        one = peer("toolparser", name, parser=offer)
        self.parsers.on_peer_ready(one)
        return one

    @property
    def num_slots(self) -> int:
        return sum(
            one.num_requests + one.num_questions
            for name in self.directory.models()
            for one in self.directory.engines(name)
        )

    # Requests begin.

    def know_caller(self, tenant: str = "t", priority: int = 0, key_id: str = "k") -> None:
        granted = Granted(
            request_id="",
            lease_id="",
            tenant=tenant,
            key_id=key_id,
            role="user",
            priority=priority,
        )
        self.identities.note_granted(
            DIGEST, granted, "chat.completions", COMPLETION_ENDPOINT, CALLER.address
        )

    async def generation(
        self, job: GenerationJob | None = None, request_id: str = "r"
    ) -> "Generation":
        """A generation that has asked for its grant."""
        request, work = self.factory.generation(job or generation_job(), CALLER, request_id)
        started = Generation(self, request, work)
        await idle()
        return started

    async def prepared_generation(self, job: GenerationJob | None = None) -> "Generation":
        """A generation whose prompts an engine is tokenising."""
        started = await self.generation(job)
        await self.grant()
        return started

    async def running(self, job: GenerationJob | None = None, **grant: Any) -> "Generation":
        """A generation whose first choice, at least, is at an engine."""
        started = await self.generation(job)
        await self.grant(**grant)
        for _ in self.engine_wire.of(Prepare):
            await self.prepare_next()
        await started.task
        return started

    # What the auth worker says.

    async def grant(self, lease_id: str = "lease", tenant: str = "t", **fields: Any) -> None:
        asked = self.auth_wire.of(Authorize)[-1]
        granted = Granted(
            request_id=asked.request_id,
            lease_id=lease_id,
            tenant=tenant,
            role="user",
            **{"key_id": "k", **fields},
        )
        self.auth.on_event(self.auth_peer, granted)
        await idle()

    async def deny(self, code: ErrorCode, message: str = "no", **fields: Any) -> None:
        asked = self.auth_wire.of(Authorize)[-1]
        denied = Denied(request_id=asked.request_id, code=code, message=message, **fields)
        self.auth.on_event(self.auth_peer, denied)
        await idle()

    async def adjust(self, limits: LimitState | None = None) -> None:
        asked = self.auth_wire.of(Adjust)[-1]
        adjusted = Adjusted(
            request_id=asked.request_id, lease_id=asked.lease_id, limits=limits or LimitState()
        )
        self.auth.on_event(self.auth_peer, adjusted)
        await idle()

    async def refuse_adjust(self, code: ErrorCode, *, is_denied: bool = True) -> None:
        asked = self.auth_wire.of(Adjust)[-1]
        kind = Denied if is_denied else Failure
        self.auth.on_event(
            self.auth_peer, kind(request_id=asked.request_id, code=code, message="no more")
        )
        await idle()

    # What engines say.

    async def prepare_next(self, num_tokens: int = 5, **fields: Any) -> None:
        """Answer the oldest prompt that has no answer yet."""
        one, asked = next(
            (one, message)
            for one, message in self.engine_wire.sent
            if isinstance(message, Prepare)
            and self.link._questions.is_open(message.request_id, one)
        )
        prepared = Prepared(
            request_id=asked.request_id,
            prompt_token_ids=tuple(range(num_tokens)),
            **{"max_output_tokens": 100, **fields},
        )
        self.link.on_event(one, prepared)
        await idle()

    async def fail(self, one: Peer, request_id: str, code: ErrorCode, **fields: Any) -> None:
        message = fields.pop("message", "it failed")
        failure = Failure(request_id=request_id, code=code, message=message, **fields)
        self.link.on_event(one, failure)
        await idle()

    async def output(
        self,
        one: Peer,
        num_tokens: int = 1,
        text: str = "x",
        *,
        request_id: str = "r",
        choice: int = 0,
        attempt: int = 1,
        **fields: Any,
    ) -> None:
        delta = Delta(
            request_id=request_id,
            choice=choice,
            attempt=attempt,
            text=text,
            token_ids=(7,) * num_tokens,
            **fields,
        )
        self.link.on_event(one, StepOutput(deltas=(delta,)))
        await idle()

    async def finish(
        self,
        one: Peer,
        finish_reason: FinishReason = "stop",
        usage: Usage | None = None,
        *,
        request_id: str = "r",
        choice: int = 0,
        attempt: int = 1,
        stop_reason: str | int | None = None,
    ) -> None:
        end = Finished(
            request_id=request_id,
            choice=choice,
            attempt=attempt,
            finish_reason=finish_reason,
            usage=usage or Usage(prompt_tokens=5, completion_tokens=1),
            stop_reason=stop_reason,
        )
        self.link.on_event(one, StepOutput(ends=(end,)))
        await idle()

    def generates(self) -> list[Generate]:
        return self.engine_wire.of(Generate)


class Generation:
    """A generation that was started, as its route has it."""

    def __init__(self, parts: Parts, request: Request, work: GenerationWork) -> None:
        self.parts = parts
        self.request = request
        self.work = work
        self.task = asyncio.create_task(request.start())

    async def error(self) -> BaseException | None:
        """How the start failed; None when it went well."""
        (outcome,) = await asyncio.gather(self.task, return_exceptions=True)
        return outcome

    async def events(self) -> list[Any]:
        """What there is to read now."""
        return await self.work.next_events(0.0) or []

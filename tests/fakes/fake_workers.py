"""Scripted workers that speak the real protocol over real sockets, for tests of the gateway."""

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from protocol.errors import ErrorCode
from protocol.wire.codec import (
    Decoder,
    auth_command_decoder,
    engine_command_decoder,
    parser_command_decoder,
)
from protocol.wire.endpoints import parse_endpoint
from protocol.wire.messages import (
    Abort,
    Adjust,
    Adjusted,
    AnswerClaimed,
    AnswerKept,
    AuditPage,
    AuthCommand,
    AuthOffer,
    Authorize,
    CacheCleared,
    Cancel,
    ChangeKeyStatus,
    ChangeResource,
    ClaimAnswer,
    Classified,
    Classify,
    ClearCache,
    CloseParse,
    CountKeys,
    Credits,
    Delta,
    Denied,
    Detokenize,
    Detokenized,
    EngineCommand,
    EngineOffer,
    Extend,
    Failure,
    FindKeys,
    FindResources,
    Finished,
    FinishReason,
    Generate,
    Granted,
    KeepAnswer,
    KeyDetails,
    KeysFound,
    LimitState,
    LimitWarning,
    Load,
    MakeKey,
    MakeResource,
    Message,
    OpenParse,
    OrphanUsage,
    OrphanUsageNoted,
    ParseBatch,
    ParsedBatch,
    ParsedDelta,
    ParseEvent,
    ParseOpened,
    ParserCommand,
    ParserOffer,
    Prepare,
    Prepared,
    ReadAudit,
    ReadStanding,
    ReadUsage,
    Renew,
    ResourcesFound,
    Role,
    RotateKey,
    Score,
    Scored,
    SetMember,
    Settle,
    Settled,
    StepOutput,
    Thought,
    TokenLogprob,
    TokenLogprobs,
    UpdateKey,
    UpdateResource,
    Usage,
)
from protocol.wire.worker import Worker, WorkerSettings
from protocol.wire.worker_loop import EXIT_FAILED

CommandT = TypeVar("CommandT")

VOCAB_SIZE = 1000
_CALL = re.compile(r"<call(?::([^>]*))?>")


_OF_ONE_THING = (
    FindResources
    | MakeResource
    | UpdateResource
    | ChangeResource
    | SetMember
    | UpdateKey
    | RotateKey
    | CountKeys
    | ReadStanding
    | ReadUsage
)
"""Administration that a scripted auth worker has nothing for."""


class FakeWorker(Generic[CommandT]):
    """The part that all roles share: records commands, and wakes a test that waits for one."""

    def __init__(
        self,
        role: Role,
        directory: Path,
        decoder: Decoder[CommandT],
        instance_id: str | None = None,
        heartbeat_interval_s: float = 0.05,
    ) -> None:
        self.commands: list[CommandT] = []
        self.gateway_id = ""
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        endpoint = parse_endpoint(f"ipc://{directory}/{role}", setting="test", secured=False)
        self.worker: Worker[CommandT] = Worker(
            role=role,
            decoder=decoder,
            handler=self,
            endpoints=(endpoint,),
            settings=WorkerSettings(
                heartbeat_interval_s=heartbeat_interval_s, handle_signals=False
            ),
            instance_id=instance_id,
        )

    def of(self, kind: type[Any]) -> list[Any]:
        """The commands of one kind so far."""
        return [command for command in list(self.commands) if isinstance(command, kind)]

    async def until(self, fact: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until a command makes the fact true."""
        async with asyncio.timeout(timeout_s):
            while not fact():
                self._changed.clear()
                await self._changed.wait()

    def send(self, message: Message) -> None:
        self.worker.send(self.gateway_id, message)

    async def stop(self) -> None:
        await asyncio.to_thread(self.worker.stop)

    async def crash(self) -> None:
        """End as a worker that broke: to a gateway the same as a killed one."""
        await asyncio.to_thread(self.worker.stop, "broke", EXIT_FAILED)

    def on_command(self, gateway_id: str, command: CommandT) -> None:
        self.gateway_id = gateway_id
        self.answer(command)
        self.commands.append(command)
        self._loop.call_soon_threadsafe(self._changed.set)

    def answer(self, command: CommandT) -> None:
        raise NotImplementedError

    def on_gateway_lost(self, gateway_id: str) -> None: ...

    def on_drain(self, timeout_s: float) -> None: ...

    def num_unfinished(self) -> int:
        return 0

    def load(self) -> Load:
        return Load()

    def credits(self, gateway_id: str) -> Credits | None:
        return None

    def progress_counter(self) -> int:
        return len(self.commands)


class FakeEngine(FakeWorker[EngineCommand]):
    """Says what it is told to: at once (`text` set), or as a test emits it (`text` None)."""

    def __init__(
        self,
        directory: Path,
        *,
        model: str = "demo",
        text: Sequence[str] | None = ("Hello", ", world"),
        max_requests: int = 64,
        max_model_len: int = 4096,
        tool_format: str | None = None,
        reasoning_format: str | None = None,
        fingerprint: str = "0123456789abcdef",
        resume_version: int = 1,
        is_mute: bool = False,
        max_logprobs: int = 20,
        max_token_bytes: int = 0,
        tokenizer_info_json: str = "",
        capabilities: tuple[str, ...] = ("chat", "completions"),
        labels: tuple[str, ...] = (),
        instance_id: str | None = None,
        heartbeat_interval_s: float = 0.05,
    ) -> None:
        super().__init__(
            "engine", directory, engine_command_decoder(), instance_id, heartbeat_interval_s
        )
        self.text = text
        self.script: list[Sequence[str]] = []  # what it says one after another, before `text`
        self.fails_after_script: ErrorCode | None = None
        self.logprob_of_choice: dict[int, float] = {}
        self.wanted_logprobs: dict[int, float] = {}
        self.finish_reason: FinishReason = "stop"
        self.stop_reason: str | int | None = None
        self.prepare_failure: Failure | None = None
        self.generate_failure: ErrorCode | None = None
        self.is_mute = is_mute
        self.answers_aborts = True
        self.block_hashes: tuple[bytes, ...] = ()
        self.stop_token_ids: tuple[int, ...] = ()
        self.running = Load()
        self.offer = EngineOffer(
            model=model,
            fingerprint=fingerprint,
            resume_version=resume_version,
            max_model_len=max_model_len,
            created=1_700_000_000,
            credits=Credits(max_requests=max_requests, max_tokens=10**6),
            tool_format=tool_format,
            reasoning_format=reasoning_format,
            has_chat_template=True,
            capabilities=capabilities,
            labels=labels,
            vocab_size=VOCAB_SIZE,
            max_logprobs=max_logprobs,
            max_token_bytes=max_token_bytes,
            tokenizer_info_json=tokenizer_info_json,
        )

    def start(self, *, announce: bool = True) -> None:
        self.worker.start()
        if announce:
            self.worker.announce(self.offer)

    def credits(self, gateway_id: str) -> Credits | None:
        return self.offer.credits

    def load(self) -> Load:
        return self.running

    def answer(self, command: EngineCommand) -> None:
        if isinstance(command, Cancel):
            if command.request_id in {one.request_id for one in self.of(Score)}:
                told = Scored(command.request_id, logprobs=b"", num_prompt_tokens=7)
                self.send(told)
            if command.request_id in {one.request_id for one in self.of(Classify)}:
                self.send(Classified(command.request_id, 0, logits=b"", num_tokens=(7,)))
            return
        if self.is_mute:
            return
        if isinstance(command, Prepare):
            self._prepare(command)
        elif isinstance(command, ClearCache):
            self.send(CacheCleared(request_id=command.request_id, num_blocks=0))
        elif isinstance(command, Detokenize):
            text = "".join(f"t{one}" for one in command.token_ids)
            self.send(Detokenized(request_id=command.request_id, text=text))
        elif isinstance(command, Generate):
            if self.generate_failure is not None:
                self.fail(command, self.generate_failure)
            elif self.script:
                self._say_all(command, self.script.pop(0))
            elif self.fails_after_script is not None:
                self.fail(command, self.fails_after_script)
            elif self.text is not None:
                self._say_all(command, self.text)
        elif isinstance(command, Abort) and self.answers_aborts:
            for generate in self.of(Generate):
                same = generate.request_id == command.request_id
                if same and command.choice in (-1, generate.choice):
                    self.finish(generate, "abort")

    def emit(
        self,
        generate: Generate,
        text: str,
        num_tokens: int = 1,
        *,
        token_ids: tuple[int, ...] | None = None,
    ) -> None:
        """One step's output of one choice; each token ends where the text does.

        With log probabilities, the first token is the text and the others make none.
        """
        ids = tuple(range(num_tokens)) if token_ids is None else token_ids
        logprobs: tuple[TokenLogprobs, ...] = ()
        if generate.sampling.logprobs is not None:
            texts = (text, *("",) * (len(ids) - 1))
            logprobs = tuple(map(self._logprobs, (generate,) * len(ids), ids, texts))
        delta = self._delta(generate, text=text, token_ids=ids, logprobs=logprobs)
        self.send(StepOutput(deltas=(delta,)))

    def tell_prompt(self, generate: Generate, *token_ids: int) -> None:
        """The log probabilities of some tokens of the prompt."""
        told = tuple(self._logprobs(generate, one, f"t{one}") for one in token_ids)
        self.send(StepOutput(deltas=(self._delta(generate, prompt_logprobs=told),)))

    def finish(
        self, generate: Generate, reason: FinishReason = "stop", completion_tokens: int = 2
    ) -> None:
        self.send(StepOutput(ends=(self._end(generate, reason, completion_tokens),)))

    def fail(self, generate: Generate, code: ErrorCode) -> None:
        failure = Failure(
            request_id=generate.request_id,
            code=code,
            message="scripted",
            choice=generate.choice,
            attempt=generate.attempt,
        )
        self.send(StepOutput(ends=(failure,)))

    def _prepare(self, prepare: Prepare) -> None:
        if self.prepare_failure is not None:
            fields = {
                name: getattr(self.prepare_failure, name) for name in Failure.__struct_fields__
            }
            self.send(Failure(**{**fields, "request_id": prepare.request_id}))
            return
        prompt = (1, 2, 3, 4, 5)
        self.send(
            Prepared(
                request_id=prepare.request_id,
                prompt_token_ids=prompt,
                block_hashes=self.block_hashes,
                max_output_tokens=self.offer.max_model_len - len(prompt),
                prompt_tail="<|assistant|>",
                template_time=7,
                tokens=tuple(f"t{one}" for one in prompt) if prepare.return_tokens else (),
                prompt_text="" if prepare.kind == "chat" else "t1t2t3t4t5",
                stop_token_ids=self.stop_token_ids,
            )
        )

    def _say_all(self, generate: Generate, pieces: Sequence[str]) -> None:
        wanted = generate.sampling.prompt_logprobs is not None
        told = generate.prompt_token_ids[1:] if wanted else ()
        deltas = [
            self._delta(
                generate,
                prompt_logprobs=tuple(self._logprobs(generate, one, f"t{one}") for one in told),
            )
        ]
        num_characters = 0
        for index, piece in enumerate(pieces):
            num_characters += len(piece)
            wants = generate.sampling.logprobs is not None
            deltas.append(
                self._delta(
                    generate,
                    text=piece,
                    token_ids=(index,),
                    token_ends=(num_characters,),
                    logprobs=(self._logprobs(generate, index, piece),) if wants else (),
                )
            )
        end = self._end(generate, self.finish_reason, len(pieces))
        self.send(StepOutput(deltas=tuple(deltas[not told :]), ends=(end,)))

    @staticmethod
    def _delta(generate: Generate, **fields: Any) -> Delta:
        return Delta(
            request_id=generate.request_id,
            choice=generate.choice,
            attempt=generate.attempt,
            **fields,
        )

    def _logprobs(self, generate: Generate, token_id: int, text: str) -> TokenLogprobs:
        """A token with two likelier ones, as many of them as the most that was asked for."""
        sampling = generate.sampling
        chosen = self.logprob_of_choice.get(generate.choice, -1.5)
        num_top = max(sampling.logprobs or 0, sampling.prompt_logprobs or 0)
        top = (
            TokenLogprob(token_id=900, text=" yes", data=b" yes", logprob=-0.5, rank=1),
            TokenLogprob(token_id=901, text="\ufffd", data=b"\xf0\x9f", logprob=-1.0, rank=2),
        )
        return TokenLogprobs(
            chosen=TokenLogprob(
                token_id=token_id, text=text, data=text.encode(), logprob=chosen, rank=3
            ),
            top=top[:num_top],
            wanted=tuple(
                TokenLogprob(one, f"w{one}", b"w%d" % one, self.wanted_logprobs.get(one, -9.0))
                for one in sampling.logprob_token_ids
            ),
        )

    def _end(self, generate: Generate, reason: FinishReason, completion_tokens: int) -> Finished:
        return Finished(
            request_id=generate.request_id,
            choice=generate.choice,
            attempt=generate.attempt,
            finish_reason=reason,
            stop_reason=self.stop_reason,
            usage=Usage(
                prompt_tokens=len(generate.prompt_token_ids),
                completion_tokens=completion_tokens,
                cached_tokens=1,
            ),
        )


class FakeAuth(FakeWorker[AuthCommand]):
    """Grants everything, unless told otherwise; acknowledges settlements unless told not to."""

    def __init__(self, directory: Path, *, allow_anonymous: bool = True) -> None:
        super().__init__("auth", directory, auth_command_decoder())
        self.offer = AuthOffer(epoch=1, allow_anonymous=allow_anonymous)
        self.denial: ErrorCode | None = None
        self.good_keys: tuple[str, ...] | None = None
        self.tenants: dict[str, str] = {}
        self.denied_models: tuple[str, ...] = ()
        self.allowed_models: tuple[str, ...] | None = None
        self.denied_endpoints: tuple[str, ...] = ()
        self.adjust_denial: ErrorCode | None = None
        self.retry_after_s: float | None = None
        self.limits = LimitState()
        self.warnings: tuple[LimitWarning, ...] = ()
        self.acknowledges = True
        self.is_mute = False
        self.records: list[KeyDetails] = []
        self.kept: dict[bytes, tuple[bytes, bytes]] = {}
        self.claim_age_s: float | None = None
        """For how long requests that were claimed have been running; None as before wire 1.5."""

    def start(self) -> None:
        self.worker.start()
        self.worker.announce(self.offer)

    def settled(self) -> list[Settle]:
        return self.of(Settle)

    def answer(self, command: AuthCommand) -> None:
        if self.is_mute:
            return
        if isinstance(command, Authorize):
            self._authorize(command)
        elif isinstance(command, Adjust):
            self._adjust(command)
        elif isinstance(command, Settle):
            if self.acknowledges:
                self.send(Settled(lease_id=command.lease_id))
        elif isinstance(command, OrphanUsage):
            self.send(OrphanUsageNoted(report_id=command.report_id, engine_id=command.engine_id))
        elif isinstance(command, MakeKey | FindKeys | ChangeKeyStatus):
            self._keys(command)
        elif isinstance(command, ClaimAnswer):
            known = self.kept.get(command.name)
            if known is None:
                self.kept[command.name] = (command.fingerprint, b"")
                self.send(AnswerClaimed(command.request_id, "new"))
            else:
                is_same, is_kept = known[0] == command.fingerprint, bool(known[1])
                state = "other" if not is_same else "kept" if is_kept else "running"
                age_s = self.claim_age_s if state == "running" else None
                self.send(AnswerClaimed(command.request_id, state, known[1], age_s=age_s))  # type: ignore[arg-type]
        elif isinstance(command, KeepAnswer):
            if command.answer:
                self.kept[command.name] = (self.kept[command.name][0], command.answer)
            else:
                del self.kept[command.name]
            self.send(AnswerKept(command.request_id))
        elif isinstance(command, FindResources) and not command.resource_id:
            self.send(ResourcesFound(request_id=command.request_id, resources=()))
        elif isinstance(command, ReadAudit):
            self.send(AuditPage(request_id=command.request_id, entries=()))
        elif isinstance(command, _OF_ONE_THING):
            missing, message = ErrorCode.NOT_FOUND, "There is no such thing."
            self.send(Failure(request_id=command.request_id, code=missing, message=message))

    def _authorize(self, command: Authorize) -> None:
        code = self.denial
        good = None if self.good_keys is None else [key_digest(one) for one in self.good_keys]
        if good is not None and command.key_digest not in good:
            code = ErrorCode.INVALID_API_KEY
        if code is None and command.required_role == "admin" and command.key_digest is None:
            code = ErrorCode.INVALID_API_KEY
        if command.model in self.denied_models or command.endpoint in self.denied_endpoints:
            code = ErrorCode.PERMISSION_DENIED
        if code is not None:
            self.send(self._denied(command.request_id, code))
            return
        metered = command.completion_tokens > 0
        before = [one for one in self.of(Authorize) if one.request_id == command.request_id]
        again = f"-{len(before)}" if before else ""
        tenants = {key_digest(key): tenant for key, tenant in self.tenants.items()}
        self.send(
            Granted(
                request_id=command.request_id,
                lease_id=f"lease-{command.request_id}{again}" if metered else "",
                tenant=tenants.get(command.key_digest or b"", "local"),
                key_id="key-1",
                role=command.required_role,
                limits=self.limits,
                warnings=self.warnings,
                allowed_models=self.allowed_models,
            )
        )

    def _adjust(self, command: Adjust) -> None:
        if self.adjust_denial is not None:
            self.send(self._denied(command.request_id, self.adjust_denial))
        else:
            self.send(Adjusted(request_id=command.request_id, lease_id=command.lease_id))

    def _keys(self, command: MakeKey | FindKeys | ChangeKeyStatus) -> None:
        if isinstance(command, MakeKey):
            made = KeyDetails(
                key_id=f"key-{len(self.records) + 1}",
                hint=command.hint,
                status="active",
                settings=command.settings,
                tenant_id=command.settings.tenant,
                created_at=1,
            )
            self.records.append(made)
            self.send(KeysFound(request_id=command.request_id, keys=(made,)))
            return
        found = tuple(one for one in self.records if command.key_id in ("", one.key_id))
        if found or not command.key_id:
            self.send(KeysFound(request_id=command.request_id, keys=found))
        else:
            self.send(
                Failure(
                    request_id=command.request_id,
                    code=ErrorCode.NOT_FOUND,
                    message="There is no such key.",
                )
            )

    def _denied(self, request_id: str, code: ErrorCode) -> Denied:
        return Denied(
            request_id=request_id,
            code=code,
            message="scripted denial",
            retry_after_s=self.retry_after_s,
            limits=self.limits,
        )


def key_digest(key: str) -> bytes:
    """As gateways send it."""
    return hashlib.sha256(key.encode()).digest()


class FakeParser(FakeWorker[ParserCommand]):
    """A tiny grammar: `<think>…</think>` in whole pieces, `<call>` begins a call of `f`.

    `<call:NAME>` begins a call of another tool, also behind a call.

    Text up to `<call>` is content; what follows it is the call's arguments. It keeps the text of
    each choice, so that what it says depends on the text alone, not on its cuts.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tool_formats: tuple[str, ...] = ("hermes",),
        is_mute: bool = False,
    ) -> None:
        super().__init__("toolparser", directory, parser_command_decoder())
        self.offer = ParserOffer(tool_formats=tool_formats, reasoning_formats=("think",))
        self.open_failure: ErrorCode | None = None
        self.thought: Thought | None = None
        self.is_mute = is_mute
        self._num_calls: dict[tuple[str, int, int], int] = {}
        self._offsets: dict[tuple[str, int, int], int] = {}

    def start(self) -> None:
        self.worker.start()
        self.worker.announce(self.offer)

    def answer(self, command: ParserCommand) -> None:
        if isinstance(command, OpenParse):
            if self.open_failure is not None:
                failure = Failure(
                    request_id=command.request_id,
                    attempt=command.attempt,
                    code=self.open_failure,
                    message="scripted",
                )
                self.send(failure)
                return
            opened = ParseOpened(
                request_id=command.request_id,
                attempt=command.attempt,
                keep_special_tokens=("<call>",),
                thought=self.thought,
            )
            self.send(opened)
        elif isinstance(command, ParseBatch) and not self.is_mute:
            deltas = tuple(
                ParsedDelta(
                    request_id=delta.request_id,
                    choice=delta.choice,
                    attempt=delta.attempt,
                    events=tuple(
                        self._events(
                            (delta.request_id, delta.choice, delta.attempt),
                            delta.text,
                            is_final=delta.final,
                        )
                    ),
                    num_reasoning_tokens=3 if delta.final else 0,
                    final=delta.final,
                )
                for delta in command.deltas
            )
            self.send(ParsedBatch(deltas=deltas))

    def num_closed(self) -> int:
        return len(self.of(CloseParse))

    def _events(self, key: tuple[str, int, int], text: str, *, is_final: bool) -> list[ParseEvent]:
        offset = self._offsets.get(key, 0)
        self._offsets[key] = offset + len(text)
        if key in self._num_calls:
            return self._within_calls(key, text, offset, is_final=is_final)
        events = []
        if text.startswith("<think>"):
            offset += len("<think>")
            reasoning, _, text = text.removeprefix("<think>").partition("</think>")
            events.append(_found("reasoning", reasoning, offset))
            offset += len(reasoning) + len("</think>")
        match = _CALL.search(text)
        before = text if match is None else text[: match.start()]
        if before:
            events.append(_found("content", before, offset))
        if match is not None:
            self._num_calls[key] = 0
            rest = text[match.start() :]
            events += self._within_calls(key, rest, offset + match.start(), is_final=is_final)
        return events

    def _within_calls(
        self, key: tuple[str, int, int], text: str, offset: int, *, is_final: bool
    ) -> list[ParseEvent]:
        events: list[ParseEvent] = []
        place, index = 0, self._num_calls[key] - 1
        for match in _CALL.finditer(text):
            before = text[place : match.start()]
            if before:
                events.append(_found("tool_call_arguments", before, offset + place, index))
            start, place = offset + match.start(), match.end()
            if index >= 0:
                events.append(ParseEvent(kind="tool_call_end", index=index, start=start, end=start))
            index += 1
            events.append(
                ParseEvent(
                    kind="tool_call_start",
                    index=index,
                    id=f"call_{index + 1}",
                    name=match[1] or "f",
                    start=start,
                    end=offset + place,
                )
            )
        self._num_calls[key] = index + 1
        if text[place:]:
            events.append(_found("tool_call_arguments", text[place:], offset + place, index))
        if is_final:
            end = offset + len(text)
            events.append(ParseEvent(kind="tool_call_end", index=index, start=end, end=end))
        return events


def _found(
    kind: Literal["content", "reasoning", "tool_call_arguments"],
    text: str,
    start: int,
    index: int = 0,
) -> ParseEvent:
    return ParseEvent(kind=kind, index=index, text=text, start=start, end=start + len(text))


def extended_tokens(engine: FakeEngine) -> list[int]:
    """What leases grew to, in order."""
    return [extend.lease_tokens for extend in engine.of(Extend)]


def renewals(auth: FakeAuth) -> list[Renew]:
    """The lease reports so far."""
    return auth.of(Renew)

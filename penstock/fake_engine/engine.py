"""The scripted engine as an ordinary object: commands in, one StepOutput a gateway and step out."""

import itertools
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from penstock.fake_engine.script import (
    NUM_DIMENSIONS,
    VOCAB_SIZE,
    Fault,
    Script,
    decode,
    embedding,
    encode,
    find_fault,
    word_of,
)
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Abort,
    Credits,
    Delta,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    EngineCommand,
    EngineOffer,
    Extend,
    Failure,
    Finished,
    FinishReason,
    Generate,
    Load,
    Message,
    Prepare,
    Prepared,
    SamplingParams,
    StepOutput,
    Usage,
)

FINGERPRINT: Final = "scripted-1"
_PROMPT_TAIL_CHARACTERS: Final = 64
_UNSUPPORTED: Final = ("stop", "logprobs", "prompt_logprobs")
"""Sampling parameters that would change what a client gets, and that a script can't honour."""

_WANTED_FAILURE: Final = "The prompt asked for this failure."

StreamKey = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class FakeEngineSettings:
    """How a scripted engine behaves.

    Attributes:
        model: Public name.
        tokens_per_s: Of each stream; 0 is as fast as it goes.
        prefill_tokens_per_s: Of prompts; 0 takes no time.
        max_num_seqs: Streams that run at a time; others wait.
        max_model_len: Prompt and output, tokens.
        num_output_tokens: Where an output ends by itself, unless `ignore_eos`.
    """

    model: str = "fake"
    tokens_per_s: float = 50.0
    prefill_tokens_per_s: float = 0.0
    max_num_seqs: int = 64
    max_model_len: int = 65_536
    num_output_tokens: int = 64


@dataclass(slots=True)
class _Stream:
    command: Generate
    script: Script
    num_tokens: int
    limit: int
    reason: FinishReason
    ready_at: float
    lease_tokens: int
    fault: Fault | None
    num_characters: int = 0


@dataclass(slots=True)
class _Output:
    deltas: list[Delta] = field(default_factory=list)
    ends: list[Finished | Failure] = field(default_factory=list)


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class FakeEngine:
    """Streams of scripted tokens; all methods are called in one thread.

    Args:
        settings: How it behaves.
        send: Sends a gateway a message.
        clock: Monotonic seconds.
        crash: What `[[crash]]` does.
    """

    def __init__(
        self,
        settings: FakeEngineSettings,
        send: Callable[[str, Message], None],
        *,
        clock: Callable[[], float],
        crash: Callable[[], None] = _kill_self,
    ) -> None:
        self._settings = settings
        self._send = send
        self._clock = clock
        self._crash = crash
        # In order of arrival: the first `max_num_seqs` run.
        self._streams: dict[StreamKey, _Stream] = {}
        self._outputs: dict[str, _Output] = {}
        self._step_due = clock()
        self.is_hanging = False
        self.num_steps = 0

    @property
    def offer(self) -> EngineOffer:
        """What it announces."""
        settings = self._settings
        return EngineOffer(
            model=settings.model,
            fingerprint=FINGERPRINT,
            resume_version=1,
            max_model_len=settings.max_model_len,
            created=0,
            credits=self.credits(1),
            architecture="Script",
            has_chat_template=True,
            vocab_size=VOCAB_SIZE,
            capabilities=("chat", "completions", "embeddings"),
            max_num_seqs=settings.max_num_seqs,
            num_embedding_dimensions=NUM_DIMENSIONS,
            pooling="mean",
        )

    def credits(self, num_gateways: int) -> Credits:
        """The window of each of so many gateways: twice what runs, split evenly."""
        share = max(1, num_gateways)
        max_requests = max(1, 2 * self._settings.max_num_seqs // share)
        return Credits(
            max_requests=max_requests, max_tokens=max_requests * self._settings.max_model_len
        )

    def load(self) -> Load:
        """How busy it is."""
        num_running = min(len(self._streams), self._settings.max_num_seqs)
        return Load(num_running=num_running, num_waiting=len(self._streams) - num_running)

    @property
    def num_unfinished(self) -> int:
        """Streams without an end."""
        return len(self._streams)

    def wait_s(self) -> float | None:
        """Seconds until `step` has something to do; None without work."""
        if self.is_hanging or not self._streams:
            return None
        return max(0.0, self._step_due - self._clock())

    def handle(self, gateway_id: str, command: EngineCommand) -> None:
        """Do what a gateway wants."""
        stranger = _unknown_token_id(command)
        if stranger is not None:
            self._refuse(
                gateway_id,
                stranger[0],
                ErrorCode.INVALID_REQUEST,
                f"The token id {stranger[1]} is not below {VOCAB_SIZE}.",
            )
        elif isinstance(command, Prepare):
            self._prepare(gateway_id, command)
        elif isinstance(command, Detokenize):
            text = decode(command.token_ids)
            self._send(gateway_id, Detokenized(request_id=command.request_id, text=text))
        elif isinstance(command, Embed):
            self._embed(gateway_id, command)
        elif isinstance(command, Generate):
            self._generate(gateway_id, command)
        elif isinstance(command, Extend):
            stream = self._streams.get((gateway_id, command.request_id, command.choice))
            if stream is not None and stream.command.attempt == command.attempt:
                stream.lease_tokens = max(stream.lease_tokens, command.lease_tokens)
        elif isinstance(command, Abort):
            self._abort(gateway_id, command)
        elif hasattr(command, "request_id"):
            self._refuse(
                gateway_id,
                command.request_id,
                ErrorCode.UNSUPPORTED_PARAMETER,
                "A scripted engine can't do that.",
            )
        self._flush()

    def forget_gateway(self, gateway_id: str) -> None:
        """Drop what a lost gateway wanted."""
        for key in [key for key in self._streams if key[0] == gateway_id]:
            del self._streams[key]

    def step(self) -> None:
        """One token for each running stream whose time has come."""
        now = self._clock()
        if self.is_hanging or now < self._step_due or not self._streams:
            return
        rate = self._settings.tokens_per_s
        # Late steps are not made up for: an engine under load slows down, it doesn't sprint.
        self._step_due = now + (1.0 / rate if rate else 0.0)
        running = list(self._streams.items())[: self._settings.max_num_seqs]
        for key, stream in running:
            if now >= stream.ready_at and stream.num_tokens < stream.lease_tokens:
                self._advance(key, stream)
        self.num_steps += 1
        self._flush()

    def _advance(self, key: StreamKey, stream: _Stream) -> None:
        output = self._outputs.setdefault(key[0], _Output())
        if stream.num_tokens < stream.limit:
            if stream.fault is not None and stream.num_tokens >= stream.fault.num_tokens:
                self._make_trouble(key, stream, stream.fault)
                return
            token_id = stream.script.token(stream.num_tokens)
            text = word_of(token_id)
            stream.num_tokens += 1
            stream.num_characters += len(text)
            # A resumed stream may have sent part of this text before it moved here.
            num_sent = stream.command.num_sent_characters
            begin = max(0, num_sent - (stream.num_characters - len(text)))
            output.deltas.append(
                Delta(
                    request_id=key[1],
                    choice=key[2],
                    attempt=stream.command.attempt,
                    text=text[begin:],
                    token_ids=(token_id,),
                    token_ends=(stream.num_characters,),
                )
            )
        if stream.num_tokens >= stream.limit:
            self._finish(key, stream, stream.reason)

    def _make_trouble(self, key: StreamKey, stream: _Stream, fault: Fault) -> None:
        if fault.kind == "crash":
            self._crash()
        elif fault.kind == "hang":
            self.is_hanging = True
        else:
            del self._streams[key]
            self._outputs[key[0]].ends.append(
                Failure(
                    request_id=key[1],
                    choice=key[2],
                    attempt=stream.command.attempt,
                    code=ErrorCode.INTERNAL_ERROR,
                    message=_WANTED_FAILURE,
                    usage=_usage(stream),
                )
            )

    def _finish(self, key: StreamKey, stream: _Stream, reason: FinishReason) -> None:
        del self._streams[key]
        self._outputs.setdefault(key[0], _Output()).ends.append(
            Finished(
                request_id=key[1],
                choice=key[2],
                attempt=stream.command.attempt,
                finish_reason=reason,
                usage=_usage(stream),
            )
        )

    def _prepare(self, gateway_id: str, command: Prepare) -> None:
        if command.prompt_token_ids is not None:
            token_ids = command.prompt_token_ids
        else:
            token_ids = encode(command.prompt or _rendered(command.messages_json))
        room = self._settings.max_model_len - len(token_ids)
        if room < 1 and command.kind != "count":
            self._refuse(
                gateway_id,
                command.request_id,
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"The prompt has {len(token_ids)} tokens; this model takes "
                f"{self._settings.max_model_len} with the output.",
            )
            return
        text = decode(token_ids)
        self._send(
            gateway_id,
            Prepared(
                request_id=command.request_id,
                prompt_token_ids=token_ids,
                prompt_tail=text[-_PROMPT_TAIL_CHARACTERS:],
                max_output_tokens=max(0, room),
                prompt_text=text if command.kind == "completion" else "",
                tokens=tuple(decode((t,)) for t in token_ids) if command.return_tokens else (),
            ),
        )

    def _embed(self, gateway_id: str, command: Embed) -> None:
        inputs = command.token_ids or tuple(encode(text) for text in command.texts)
        longest = max(map(len, inputs))
        if longest > self._settings.max_model_len:
            self._refuse(
                gateway_id,
                command.request_id,
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"An input has {longest} tokens; this model takes {self._settings.max_model_len}.",
            )
            return
        num_dimensions = min(command.dimensions or NUM_DIMENSIONS, NUM_DIMENSIONS)
        faults = [find_fault(decode(token_ids)) for token_ids in inputs]
        fault = next((one for one in faults if one is not None), None)
        if fault is not None and fault.kind == "crash":
            self._crash()
        elif fault is not None and fault.kind == "hang":
            self.is_hanging = True
        elif fault is not None:
            self._refuse(gateway_id, command.request_id, ErrorCode.INTERNAL_ERROR, _WANTED_FAILURE)
        else:
            self._send(
                gateway_id,
                Embedded(
                    request_id=command.request_id,
                    num_dimensions=num_dimensions,
                    vectors=b"".join(embedding(ids, num_dimensions) for ids in inputs),
                    num_tokens=tuple(map(len, inputs)),
                ),
            )

    def _refuse(self, gateway_id: str, request_id: str, code: ErrorCode, message: str) -> None:
        self._send(gateway_id, Failure(request_id=request_id, code=code, message=message))

    def _generate(self, gateway_id: str, command: Generate) -> None:
        key = (gateway_id, command.request_id, command.choice)
        old = self._streams.get(key)
        if old is not None and old.command.attempt >= command.attempt:
            return
        refusal = _refusal(command)
        script = Script(command.prompt_token_ids, command.sampling.seed, command.choice)
        num_tokens = len(command.output_token_ids)
        if refusal is None and any(
            script.token(place) != token_id
            for place, token_id in enumerate(command.output_token_ids)
        ):
            refusal = (ErrorCode.INTERNAL_ERROR, "The resumed tokens are not those of the script.")
        if refusal is not None:
            self._outputs.setdefault(gateway_id, _Output()).ends.append(
                Failure(
                    request_id=command.request_id,
                    choice=command.choice,
                    attempt=command.attempt,
                    code=refusal[0],
                    message=refusal[1],
                )
            )
            return
        limit, reason = self._limit(command)
        rate = self._settings.prefill_tokens_per_s
        prefill_s = (len(command.prompt_token_ids) + num_tokens) / rate if rate else 0.0
        self._streams[key] = _Stream(
            command=command,
            script=script,
            num_tokens=num_tokens,
            limit=limit,
            reason=reason,
            ready_at=self._clock() + prefill_s,
            lease_tokens=command.lease_tokens,
            fault=find_fault(decode(command.prompt_token_ids)),
            num_characters=len(script.text(num_tokens)),
        )

    def _limit(self, command: Generate) -> tuple[int, FinishReason]:
        """Where the output ends, and why."""
        sampling = command.sampling
        limit = self._settings.max_model_len - len(command.prompt_token_ids)
        if sampling.max_tokens is not None:
            limit = min(limit, sampling.max_tokens)
        end = max(self._settings.num_output_tokens, sampling.min_tokens)
        if sampling.ignore_eos or limit < end:
            return limit, "length"
        return end, "stop"

    def _abort(self, gateway_id: str, command: Abort) -> None:
        for key, stream in list(self._streams.items()):
            if (
                key[:2] == (gateway_id, command.request_id)
                and command.choice in (-1, key[2])
                and stream.command.attempt <= command.attempt
            ):
                self._finish(key, stream, "abort")

    def _flush(self) -> None:
        outputs, self._outputs = self._outputs, {}
        for gateway_id, output in outputs.items():
            if output.deltas or output.ends:
                self._send(
                    gateway_id,
                    StepOutput(
                        deltas=tuple(output.deltas),
                        ends=tuple(output.ends),
                        progress_counter=self.num_steps,
                        load=self.load(),
                    ),
                )


def _unknown_token_id(command: EngineCommand) -> tuple[str, int] | None:
    """The id of a request whose prompt no script can read, and the first unknown token id."""
    if isinstance(command, Embed):
        token_ids = itertools.chain.from_iterable(command.token_ids)
    elif isinstance(command, Detokenize):
        token_ids = itertools.chain(command.token_ids)
    elif isinstance(command, Prepare):
        token_ids = itertools.chain(command.prompt_token_ids or ())
    else:
        return None
    unknown = next((one for one in token_ids if not 0 <= one < VOCAB_SIZE), None)
    return None if unknown is None else (command.request_id, unknown)


def _rendered(messages_json: str | None) -> str:
    """A chat as text, one line a message."""
    messages = json.loads(messages_json or "[]")
    return "".join(f"{entry.get('role')}: {_content(entry)}\n" for entry in messages)


def _content(message: dict[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def _refusal(command: Generate) -> tuple[ErrorCode, str] | None:
    """Why a script can't give what is asked for; None when it can."""
    neutral = SamplingParams()
    for name in _UNSUPPORTED:
        if getattr(command.sampling, name) != getattr(neutral, name):
            return ErrorCode.UNSUPPORTED_PARAMETER, f"A scripted engine has no '{name}'."
    if command.grammar is not None:
        return ErrorCode.UNSUPPORTED_GRAMMAR, "A scripted engine follows no grammar."
    return None


def _usage(stream: _Stream) -> Usage:
    return Usage(
        prompt_tokens=len(stream.command.prompt_token_ids), completion_tokens=stream.num_tokens
    )

"""The scripted engine as an ordinary object: commands in, one StepOutput a gateway and step out."""

import json
import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from penstock.fake_engine.choice import Choice
from penstock.fake_engine.embedding import NUM_DIMENSIONS, POOLING, embed, wanted_trouble
from penstock.fake_engine.script import (
    FINGERPRINT,
    MAX_TOKEN_BYTES,
    VOCAB_SIZE,
    Script,
    decode,
    encoded,
    find_fault,
)
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    ALL_CHOICES,
    Abort,
    Cancel,
    Credits,
    Delta,
    Detokenize,
    Detokenized,
    Embed,
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
)

_PROMPT_TAIL_CHARACTERS: Final = 64
_NEUTRAL: Final = SamplingParams()
_UNSUPPORTED: Final = ("stop", "logprobs", "prompt_logprobs")
"""Sampling parameters that would change what a client gets, and that a script can't honour."""

_WANTED_FAILURE: Final = "The prompt asked for this failure."

ChoiceKey = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class FakeEngineSettings:
    """How a scripted engine behaves.

    Attributes:
        model: Public name.
        tokens_per_s: Of each choice. 0 makes no pauses: a step follows a step, and outputs that
            nobody reads as they come take one step altogether.
        prefill_tokens_per_s: Of prompts; 0 takes no time.
        max_num_seqs: Choices that run at a time; others wait.
        max_model_len: Prompt and output, tokens.
        num_output_tokens: Where an output ends by itself, unless `ignore_eos`.
        fingerprint: Of the weights that it plays; another one says other words.
    """

    model: str = "fake"
    tokens_per_s: float = 50.0
    prefill_tokens_per_s: float = 0.0
    max_num_seqs: int = 64
    max_model_len: int = 65_536
    num_output_tokens: int = 64
    fingerprint: str = FINGERPRINT


@dataclass(slots=True)
class _Output:
    deltas: list[Delta] = field(default_factory=list)
    ends: list[Finished | Failure] = field(default_factory=list)


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class FakeEngine:
    """Choices of scripted tokens; all methods are called in one thread.

    It is long because it answers every command of an engine, each with a few lines.

    Args:
        settings: How it behaves.
        send: Sends a gateway a message.
        clock: Monotonic seconds.
        num_gateways: How many are connected now; they share the credits.
        crash: What `[[crash]]` does.
    """

    def __init__(
        self,
        settings: FakeEngineSettings,
        send: Callable[[str, Message], None],
        *,
        clock: Callable[[], float],
        num_gateways: Callable[[], int] = lambda: 1,
        crash: Callable[[], None] = _kill_self,
    ) -> None:
        self._settings = settings
        self._send = send
        self._clock = clock
        self._num_gateways = num_gateways
        self._crash = crash
        self._choices: dict[ChoiceKey, Choice] = {}
        # Of those, in order of arrival; what is over leaves them after the step.
        self._running: list[Choice] = []
        self._waiting: deque[Choice] = deque()
        self._num_held: dict[str, int] = {}
        self._outputs: dict[str, _Output] = {}
        self._step_due = clock()
        self._step_s = 1.0 / settings.tokens_per_s if settings.tokens_per_s else 0.0
        self.is_hanging = False
        self.num_steps = 0

    @property
    def offer(self) -> EngineOffer:
        """What it announces."""
        settings = self._settings
        return EngineOffer(
            model=settings.model,
            fingerprint=settings.fingerprint,
            resume_version=1,
            max_model_len=settings.max_model_len,
            created=0,
            credits=self._whole,
            architecture="Script",
            has_chat_template=True,
            vocab_size=VOCAB_SIZE,
            capabilities=("chat", "completions", "embeddings"),
            max_num_seqs=settings.max_num_seqs,
            num_embedding_dimensions=NUM_DIMENSIONS,
            pooling=POOLING,
            max_token_bytes=MAX_TOKEN_BYTES,
        )

    @property
    def _whole(self) -> Credits:
        """The window of a gateway that is alone: twice what runs."""
        num_requests = 2 * self._settings.max_num_seqs
        return Credits(
            max_requests=num_requests, max_tokens=num_requests * self._settings.max_model_len
        )

    def credits(self) -> Credits:
        """The window of each gateway: the whole, split evenly."""
        max_requests = max(1, 2 * self._settings.max_num_seqs // max(1, self._num_gateways()))
        return Credits(
            max_requests=max_requests, max_tokens=max_requests * self._settings.max_model_len
        )

    def load(self) -> Load:
        """How busy it is."""
        num_running = len(self._running)
        return Load(num_running=num_running, num_waiting=len(self._choices) - num_running)

    @property
    def num_unfinished(self) -> int:
        """Choices without an end."""
        return len(self._choices)

    def wait_s(self) -> float | None:
        """Seconds until `step` has something to do; None as long as no command comes."""
        if self.is_hanging:
            return None
        ready_at = min((one.ready_at for one in self._running if not one.is_paused), default=None)
        return None if ready_at is None else max(0.0, max(self._step_due, ready_at) - self._clock())

    def handle(self, gateway_id: str, command: EngineCommand) -> None:
        """Do what a gateway wants."""
        if isinstance(command, Generate):
            self._generate(gateway_id, command)
        elif isinstance(command, Prepare):
            self._prepare(gateway_id, command)
        elif isinstance(command, Detokenize):
            self._detokenize(gateway_id, command)
        elif isinstance(command, Embed):
            self._embed(gateway_id, command)
        elif isinstance(command, Extend):
            choice = self._choices.get((gateway_id, command.request_id, command.choice))
            if choice is not None and choice.attempt == command.attempt:
                choice.lease_tokens = max(choice.lease_tokens, command.lease_tokens)
        elif isinstance(command, Abort):
            self._abort(gateway_id, command)
        elif isinstance(command, Cancel):
            pass  # What it could drop was answered before it came: nothing waits here.
        elif hasattr(command, "request_id"):
            message = "A scripted engine can't do that."
            code = ErrorCode.UNSUPPORTED_PARAMETER
            self._fail(gateway_id, command.request_id, code, message)
        self._flush()

    def forget_gateway(self, gateway_id: str) -> None:
        """Drop what a lost gateway wanted."""
        for choice in [one for one in self._choices.values() if one.gateway_id == gateway_id]:
            self._remove(choice)
        self._num_held.pop(gateway_id, None)
        self._fill_up()

    def step(self) -> None:
        """One token for each running choice whose time has come; all where nobody reads along."""
        now = self._clock()
        if self.is_hanging or now < self._step_due or not self._choices:
            return
        # Late steps are not made up for: an engine under load slows down, it doesn't sprint.
        self._step_due = now + self._step_s
        outputs = self._outputs
        num_before = len(self._choices)
        for choice in self._running:
            if now < choice.ready_at or choice.is_paused:
                continue
            output = outputs.get(choice.gateway_id)
            if output is None:
                output = outputs[choice.gateway_id] = _Output()
            delta = choice.next_delta()
            if delta is not None:
                output.deltas.append(delta)
            elif choice.num_tokens < choice.limit:
                self._make_trouble(choice, output)
                continue
            if choice.num_tokens >= choice.limit:
                self._finish(choice, choice.reason)
        self.num_steps += 1
        if len(self._choices) != num_before:
            self._fill_up()
        self._flush()

    def _make_trouble(self, choice: Choice, output: _Output) -> None:
        kind = choice.fault_kind
        if kind == "crash":
            self._crash()
        elif kind == "hang":
            self.is_hanging = True
        else:
            self._remove(choice)
            output.ends.append(
                Failure(
                    request_id=choice.request_id,
                    choice=choice.index,
                    attempt=choice.attempt,
                    code=ErrorCode.INTERNAL_ERROR,
                    message=_WANTED_FAILURE,
                    usage=choice.usage,
                )
            )

    def _remove(self, choice: Choice) -> None:
        """Count it no more; `_fill_up` takes it from the lists."""
        choice.is_over = True
        del self._choices[choice.key]
        self._num_held[choice.gateway_id] -= 1

    def _fill_up(self) -> None:
        """Choices that wait take the place of those that are over."""
        self._running = [one for one in self._running if not one.is_over]
        while self._waiting and len(self._running) < self._settings.max_num_seqs:
            choice = self._waiting.popleft()
            if not choice.is_over:
                self._running.append(choice)

    def _finish(self, choice: Choice, reason: FinishReason) -> None:
        self._remove(choice)
        self._output(choice.gateway_id).ends.append(
            Finished(
                request_id=choice.request_id,
                choice=choice.index,
                attempt=choice.attempt,
                finish_reason=reason,
                usage=choice.usage,
            )
        )

    def _output(self, gateway_id: str) -> _Output:
        return self._outputs.setdefault(gateway_id, _Output())

    def _detokenize(self, gateway_id: str, command: Detokenize) -> None:
        refusal = _unknown_tokens(command.token_ids)
        if refusal is not None:
            self._fail(gateway_id, command.request_id, *refusal)
            return
        text = decode(command.token_ids)
        self._send(gateway_id, Detokenized(request_id=command.request_id, text=text))

    def _embed(self, gateway_id: str, command: Embed) -> None:
        fault = wanted_trouble(command)
        if fault is None:
            self._send(gateway_id, embed(command, self._settings.max_model_len))
        elif fault.kind == "crash":
            self._crash()
        elif fault.kind == "hang":
            self.is_hanging = True
        else:
            self._fail(gateway_id, command.request_id, ErrorCode.INTERNAL_ERROR, _WANTED_FAILURE)

    def _fail(self, gateway_id: str, request_id: str, code: ErrorCode, message: str) -> None:
        self._send(gateway_id, Failure(request_id=request_id, code=code, message=message))

    def _prepare(self, gateway_id: str, command: Prepare) -> None:
        text = b""
        token_ids = command.prompt_token_ids
        if token_ids is None:
            text = encoded(command.prompt or _rendered(command.messages_json))
        num_tokens = len(text if token_ids is None else token_ids)
        room = self._settings.max_model_len - num_tokens
        refusal = None
        if room < 1 and command.kind != "count":
            # Before an id is made of each of ten million bytes, which would hold all streams up.
            refusal = (
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"The prompt has {num_tokens} tokens; this model takes "
                f"{self._settings.max_model_len} with the output.",
            )
        elif token_ids is not None:
            refusal = _unknown_tokens(token_ids)
        if refusal is not None:
            self._fail(gateway_id, command.request_id, *refusal)
            return
        if token_ids is None:
            token_ids = tuple(text)
        # A character has at most four bytes, which are a token each.
        tail = decode(token_ids[-4 * _PROMPT_TAIL_CHARACTERS :])[-_PROMPT_TAIL_CHARACTERS:]
        self._send(
            gateway_id,
            Prepared(
                request_id=command.request_id,
                prompt_token_ids=token_ids,
                prompt_tail=tail,
                max_output_tokens=max(0, room),
                prompt_text=decode(token_ids) if command.kind == "completion" else "",
                tokens=tuple(decode((t,)) for t in token_ids) if command.return_tokens else (),
            ),
        )

    def _generate(self, gateway_id: str, command: Generate) -> None:
        key = (gateway_id, command.request_id, command.choice)
        old = self._choices.get(key)
        if old is not None and old.attempt >= command.attempt:
            return
        refusal = self._refusal(gateway_id, command)
        if refusal is None:
            script = Script(
                command.prompt_token_ids,
                command.sampling.seed,
                command.choice,
                self._settings.fingerprint,
            )
            num_tokens = len(command.output_token_ids)
            if tuple(script.tokens(0, num_tokens)) != command.output_token_ids:
                message = "The resumed tokens are not those of the script."
                refusal = (ErrorCode.INTERNAL_ERROR, message)
        if refusal is not None:
            self._output(gateway_id).ends.append(
                Failure(
                    request_id=command.request_id,
                    choice=command.choice,
                    attempt=command.attempt,
                    code=refusal[0],
                    message=refusal[1],
                )
            )
            return
        if old is not None:
            self._remove(old)
        self._begin(key, command, script)

    def _begin(self, key: ChoiceKey, command: Generate, script: Script) -> None:
        limit, reason = self._limit(command)
        num_tokens = len(command.output_token_ids)
        rate = self._settings.prefill_tokens_per_s
        prefill_s = (len(command.prompt_token_ids) + num_tokens) / rate if rate else 0.0
        choice = Choice(
            key,
            command,
            script,
            limit=limit,
            reason=reason,
            ready_at=self._clock() + prefill_s,
            fault=find_fault(decode(command.prompt_token_ids)),
            reads_nobody=not command.is_streaming and not self._step_s,
        )
        self._choices[key] = choice
        self._num_held[key[0]] = self._num_held.get(key[0], 0) + 1
        self._waiting.append(choice)
        self._fill_up()

    def _refusal(self, gateway_id: str, command: Generate) -> tuple[ErrorCode, str] | None:
        """Why a script can't give what is asked for; None when it can."""
        num_held = self._num_held.get(gateway_id, 0)
        window = self.credits().max_requests
        # Windows shrink while requests are under way: what there is room for is taken.
        if num_held >= window and len(self._choices) >= self._whole.max_requests:
            message = f"The gateway has {num_held} requests here; its credit is {window}."
            return ErrorCode.CREDIT_EXCEEDED, message
        for name in _UNSUPPORTED:
            if getattr(command.sampling, name) != getattr(_NEUTRAL, name):
                return ErrorCode.UNSUPPORTED_PARAMETER, f"A scripted engine has no '{name}'."
        if command.grammar is not None:
            return ErrorCode.UNSUPPORTED_GRAMMAR, "A scripted engine follows no grammar."
        return _unknown_tokens(command.prompt_token_ids)

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
        for choice in list(self._choices.values()):
            if (
                choice.key[:2] == (gateway_id, command.request_id)
                and command.choice in (ALL_CHOICES, choice.index)
                and choice.attempt <= command.attempt
            ):
                self._finish(choice, "abort")
        self._fill_up()

    def _flush(self) -> None:
        if not self._outputs:
            return
        outputs, self._outputs = self._outputs, {}
        load, window = self.load(), self.credits()
        for gateway_id, output in outputs.items():
            if output.deltas or output.ends:
                self._send(
                    gateway_id,
                    StepOutput(
                        deltas=tuple(output.deltas),
                        ends=tuple(output.ends),
                        progress_counter=self.num_steps,
                        load=load,
                        credits=window,
                    ),
                )


def _unknown_tokens(token_ids: tuple[int, ...]) -> tuple[ErrorCode, str] | None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < VOCAB_SIZE):
        message = f"There are token ids that are not from 0 to {VOCAB_SIZE - 1}."
        return ErrorCode.INVALID_REQUEST, message
    return None


def _rendered(messages_json: str | None) -> str:
    """A chat as text, one line a message."""
    messages = json.loads(messages_json or "[]")
    return "".join(f"{entry.get('role')}: {_content(entry)}\n" for entry in messages)


def _content(message: dict[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")

"""The engine as an ordinary object: add, abort and extend requests, step, and collect outputs."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from engine_worker.core.acceptance import AcceptanceLimits, accept, check_first_token
from engine_worker.core.choice.batch import ModelRunner, StepResult, TokenScores
from engine_worker.core.choice.request import Request
from engine_worker.core.choice.token_mask import MaskWords
from engine_worker.core.decoding.decode_plan import DecodePlanner
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.core.engine_output import (
    EngineOutput,
    GatewayOutput,
    aborted_unseen,
    failed,
    finished,
    refused,
)
from engine_worker.core.metrics import EngineMetrics, TokenRate
from engine_worker.core.request_log import about, log_accepted, log_ended, log_refused
from engine_worker.core.scheduling.block_pool import BlockPool, ContentChanges
from engine_worker.core.scheduling.scheduler import (
    Schedule,
    ScheduledRow,
    Scheduler,
    SchedulerLimits,
)
from engine_worker.core.stream import Stream, resumed_stream
from engine_worker.core.stream_table import StreamTable
from engine_worker.core.tombstones import StreamKey, Tombstones
from engine_worker.errors import RequestError
from engine_worker.grammar.compiler import GrammarCompiler
from engine_worker.grammar.constraint import Constraint
from engine_worker.text.tokenizer import Tokenizer
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Abort,
    Extend,
    Failure,
    Finished,
    FinishReason,
    Generate,
    Load,
)

RESUME_VERSION = 1
"""Streams move only between engines that agree on it: it grows when sampling, detokenising or
stopping change in a way that an output's continuation would show."""

_NOTHING_ALLOWED = (
    "The request's parameters (allowed_token_ids, bad_words, min_tokens, grammar) leave no token"
    " that could come next."
)

_log = logging.getLogger("penstock.engine")


class Engine:
    """Schedules, computes and detokenises for all requests; owned by one thread.

    Every attempt that `add` takes ends in exactly one `Finished` or `Failure`.

    Args:
        runner: The compute side.
        tokenizer: Turns tokens into text.
        vocab_size: Token ids at or above it are refused.
        max_model_len: Prompt and output together, tokens; cut to what the KV cache holds.
        prefix_cache: Whether requests of one tenant share the blocks of equal beginnings; if not,
            only the choices of one request do.
        speculation: Whether requests guess their next tokens: where it pays, never, or always.
        grammars: Compiles what requests are constrained by; one of its own when None.
        metrics: Told what happens; of its own when None.
        clock: Monotonic seconds, for deadlines and rates.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        max_model_len: int,
        prefix_cache: bool = True,
        speculation: SpeculationMode = SpeculationMode.OFF,
        grammars: GrammarCompiler | None = None,
        metrics: EngineMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._clock = clock
        self._has_prefix_cache = prefix_cache
        self._pool = BlockPool(runner.num_blocks, runner.block_size)
        self.max_model_len = min(max_model_len, self._pool.num_token_capacity)
        self._limits = AcceptanceLimits(vocab_size, self.max_model_len, tokenizer.eos_token_ids)
        self._scheduler = Scheduler(
            SchedulerLimits(
                max_num_seqs=runner.max_num_seqs,
                max_num_batched_tokens=runner.max_num_batched_tokens,
                prefill_chunk_size=runner.prefill_chunk_size,
                max_model_len=self.max_model_len,
            ),
            self._pool,
        )
        self._metrics = metrics or EngineMetrics(self.load)
        self.grammars = grammars or GrammarCompiler(
            tokenizer, vocab_size, on_compiled=self._metrics.on_grammar_compiled
        )
        self._decodes = DecodePlanner(runner, self._scheduler, speculation, self._metrics.on_drafts)
        self._streams: StreamTable[Stream] = StreamTable()
        self._tombstones = Tombstones()
        self._output = EngineOutput(tokenizer)
        self._num_arrivals = 0
        self._rate = TokenRate()
        self.num_steps = 0

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    @property
    def num_preemptions(self) -> int:
        """How often a request gave up its blocks so far."""
        return self._scheduler.num_preemptions

    def has_work(self) -> bool:
        """Whether `step` would compute something or has something to tell."""
        return bool(self._output) or self._scheduler.has_work()

    def next_deadline(self) -> float | None:
        """The earliest deadline of all requests, on the engine's clock."""
        return self._streams.next_deadline()

    def load(self) -> Load:
        """How busy the engine is; a request that waits for its lease counts as waiting."""
        num_running = self._scheduler.num_runnable
        return Load(
            num_running=num_running,
            num_waiting=self._scheduler.num_unfinished - num_running,
            num_free_blocks=self._pool.num_free,
            num_blocks=self._pool.num_blocks,
            tokens_per_s=self._rate.tokens_per_s if num_running else 0.0,
        )

    def held(self) -> dict[str, tuple[int, int]]:
        """By gateway: unfinished requests and the tokens, prompts and outputs, that they have."""
        return self._streams.held()

    def add(
        self,
        gateway_id: str,
        command: Generate,
        *,
        received_at: float | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """Take a request; if something is wrong with it, it ends with a Failure at once.

        A newer attempt of a running stream replaces it. The same attempt a second time changes
        nothing, an older one is refused.

        Args:
            gateway_id: Who wants it.
            command: What is wanted.
            received_at: When it came, on the engine's clock; now when None.
            constraint: Of its grammar; compiled here and now when None.
        """
        key = (gateway_id, command.request_id, command.choice)
        if not self._is_new(key, gateway_id, command):
            return
        self._tombstones.put_started(key, command.attempt)
        live = self._streams.get(key)
        if live is not None:
            self._finish(live, "abort")
        try:
            request = accept(
                gateway_id,
                command,
                self._limits,
                self._tokenizer.word_sequences,
                received_at=self._clock() if received_at is None else received_at,
                arrival=self._num_arrivals,
            )
            self._num_arrivals += 1
            # The names of blocks are the border between tenants, so the engine makes them itself.
            # Without the cache, only the choices of one request share them.
            own = repr((command.tenant, gateway_id, command.request_id))
            request.cache_salt = command.tenant if self._has_prefix_cache else own
            if constraint is None and command.grammar is not None:
                constraint = self.grammars.start(command.grammar, command.sampling)
            stream = self._make_stream(request, command, constraint)
            self._scheduler.add(request)
            self._streams.add(stream)
            self._metrics.on_added(request, request.deadline - command.deadline_s)
            log_accepted(request)
        except RequestError as error:
            self.refuse(gateway_id, command, error.code, error.message, param=error.param)
            return
        # A grammar may force the first tokens; or the earlier attempt died before it could end.
        self._go_on(stream)

    def knows(self, gateway_id: str, command: Generate) -> bool:
        """Whether `add` would begin nothing: this attempt runs, is over, aborted or stale."""
        key = (gateway_id, command.request_id, command.choice)
        live = self._streams.get(key)
        return (
            (live is not None and live.request.attempt == command.attempt)
            or self._tombstones.has_ended(key, command.attempt)
            or self._tombstones.is_aborted(key, command.attempt)
            or self._tombstones.is_stale(key, command.attempt)
        )

    def refuse(
        self,
        gateway_id: str,
        command: Generate,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
    ) -> None:
        """End a request that was not taken."""
        key = (gateway_id, command.request_id, command.choice)
        self._tombstones.put_ended(key, command.attempt)
        end = refused(command, code, message, param)
        log_refused(command, end)
        self._output.end(gateway_id, end)

    def cached_blocks(self) -> tuple[bytes, ...]:
        """Names of all blocks that a request could find computed."""
        return self._pool.contents() if self._has_prefix_cache else ()

    def take_cache_changes(self) -> ContentChanges | None:
        """How `cached_blocks` changed since the last call; None when it did not."""
        changes = self._pool.take_changes()
        return changes if self._has_prefix_cache else None

    def extend(self, gateway_id: str, command: Extend) -> None:
        """Raise a request's lease; a smaller one than before is ignored, so order can't matter."""
        stream = self._streams.get((gateway_id, command.request_id, command.choice))
        if stream is not None and stream.request.attempt == command.attempt:
            request = stream.request
            request.lease_tokens = max(request.lease_tokens, command.lease_tokens)
            if stream.append_forced():
                self._go_on(stream)
            if stream.stop is None:
                self._scheduler.extend(request, command.lease_tokens)

    def abort(self, gateway_id: str, command: Abort) -> None:
        """Stop a request's choice, or all of them, up to this attempt; idempotent.

        Also works ahead of its Generate, which then ends as aborted when it comes.
        """
        key = (gateway_id, command.request_id, command.choice)
        self._tombstones.put_aborted(key, command.attempt)
        for stream in self._streams.of_request(key):
            if stream.request.attempt <= command.attempt:
                self._finish(stream, "abort")

    def forget_gateway(self, gateway_id: str) -> None:
        """Drop all that a gateway wanted, without a word: nobody listens."""
        for stream in self._streams.of_gateway(gateway_id):
            self._scheduler.finish(stream.request)
            self._streams.remove(stream)
            self._metrics.forget(stream.request)
        self._output.forget_gateway(gateway_id)
        self._tombstones.forget_gateway(gateway_id)

    def step(self) -> dict[str, GatewayOutput]:
        """Compute one step, if there is work, and return what each gateway is to be told.

        A row that fails ends alone. A step that raises ends the requests that were in it; all
        others start over from their tokens on a fresh cache.

        Raises:
            Exception: The runner could not be reset after a failed step; the engine is broken.
        """
        started = self._clock()
        self._end_expired(started)
        schedule = self._scheduler.schedule()
        if schedule.rows:
            scheduled = self._clock()
            self._metrics.on_admitted(schedule.admitted, scheduled)
            result = self._run(schedule)
            computed = self._clock()
            if result is None:
                self._fail_step(schedule.rows)
            else:
                num_sampled = self._take_result_or_fail(schedule.rows, result)
                duration_s = self._clock() - started
                self._decodes.measure(result, duration_s)
                self._rate.measure(num_sampled, duration_s)
            self._count_step(schedule, result, started, scheduled, computed)
            self.num_steps += 1
        return self._output.take()

    def close(self) -> None:
        """End the helper process that grammars are tried in, if one was needed, and what compiles."""
        self.grammars.close()
        self._runner.close()

    def _run(self, schedule: Schedule) -> StepResult | None:
        """What the runner computed; None when it raised."""
        try:
            for request in schedule.admitted:
                assert request.slot is not None
                self._runner.assign_slot(
                    request.slot, request.prompt_token_ids, request.output_token_ids
                )
            return self._runner.run(self._decodes.batch(schedule.rows))
        except Exception:  # noqa: BLE001 - whatever the compute side raises, others go on
            _log.exception("a step of %d requests failed", len(schedule.rows))
            return None

    def _is_new(self, key: StreamKey, gateway_id: str, command: Generate) -> bool:
        """Whether this attempt is to be worked on; answers it otherwise, but never twice."""
        attempt = command.attempt
        live = self._streams.get(key)
        if self._tombstones.has_ended(key, attempt) or (
            live is not None and live.request.attempt == attempt
        ):
            return False
        if self._tombstones.is_aborted(key, attempt):
            self._tombstones.put_ended(key, attempt)
            self._output.end(gateway_id, aborted_unseen(command))
            return False
        if self._tombstones.is_stale(key, attempt):
            self.refuse(
                gateway_id,
                command,
                ErrorCode.UNKNOWN_REQUEST,
                f"Attempt {attempt} of this request is over.",
            )
            return False
        return True

    def _make_stream(
        self, request: Request, command: Generate, constraint: Constraint | None
    ) -> Stream:
        stream = resumed_stream(request, command, constraint, self._tokenizer)
        if constraint is not None:
            request.pending_mask = partial(self._make_mask, constraint)
            check_first_token(request, constraint)
        return stream

    def _take_result_or_fail(self, rows: Sequence[ScheduledRow], result: StepResult) -> int:
        """As `_take_result`; a bug in there costs the rows of this step and nobody else."""
        try:
            return self._take_result(rows, result)
        except Exception:  # noqa: BLE001 - as after a step that raised, others go on
            _log.exception("the result of a step of %d requests could not be read", len(rows))
            self._fail_step(rows)
            return 0

    def _take_result(self, rows: Sequence[ScheduledRow], result: StepResult) -> int:
        """Append what was sampled; how many tokens that were."""
        num_sampled = 0
        first_ids = result.token_ids.tolist()
        has_nan = result.has_nan.tolist()
        for index, (row, token_id, is_nan) in enumerate(zip(rows, first_ids, has_nan, strict=True)):
            samples, start = row.samples, row.request.num_computed_tokens
            stream = self._streams[row.request.key]
            if is_nan:
                self._scheduler.distrust(row.request)
                self._fail(stream, ErrorCode.INTERNAL_ERROR, "The model computed no number (NaN).")
                continue
            self._scheduler.advance(row)
            if index in result.prompt_logprobs:
                self._output.tell_prompt_scores(stream, start, result.prompt_logprobs[index])
            if index in result.without_choice:
                self._end_without_choice(stream)
            elif samples:
                token_ids = (token_id, *result.more_token_ids.get(index, ()))
                num_sampled += self._take_tokens(stream, token_ids, result.logprobs.get(index))
        return num_sampled

    def _take_tokens(
        self, stream: Stream, token_ids: Sequence[int], scores: TokenScores | None
    ) -> int:
        """Append sampled tokens up to the one that ends the output, and tell what follows.

        A bug there ends only its row.

        Args:
            stream: Everything before the first token is computed.
            token_ids: What comes before each of the others was computed with it.
            scores: Of the first token, if they are wanted.

        Returns:
            How many tokens were appended.
        """
        num_taken = 0
        try:
            for token_id in token_ids:
                if num_taken:
                    self._scheduler.advance(ScheduledRow(stream.request, 1))
                stream.append(token_id)
                num_taken += 1
                if stream.stop is not None:
                    break
            if scores is not None:
                stream.untold_scores.append(scores)
            self._go_on(stream)
        except Exception:  # noqa: BLE001 - whatever one text does to its tokenizer, others go on
            with about(stream.request):
                _log.exception("the output of a request could not be read")
            message = "The engine failed to read this request's output."
            self._fail(stream, ErrorCode.INTERNAL_ERROR, message)
        return num_taken

    def _go_on(self, stream: Stream) -> None:
        """Append what a grammar forces, tell what is new, and end the output if it is over."""
        request = stream.request
        if stream.append_forced() and request.slot is not None:
            # The device counts only what it sampled.
            self._runner.assign_slot(
                request.slot, request.prompt_token_ids, request.output_token_ids
            )
        self._streams.count_tokens(request)
        self._output.tell(stream)
        if stream.stop is not None:
            self._finish(stream, stream.stop.reason, stream.stop.detail)

    def _make_mask(self, constraint: Constraint) -> MaskWords:
        started = self._clock()
        mask = constraint.mask()
        self._metrics.on_mask(self._clock() - started)
        return mask

    def _end_without_choice(self, stream: Stream) -> None:
        """Nothing may come next: the end of a sentence of the grammar, or a contradiction."""
        constraint = stream.constraint
        if constraint is not None and constraint.is_accepting:
            stream.text.close()
            self._output.tell(stream)
            self._finish(stream, "stop")
        elif constraint is not None and constraint.failure:
            message = f"The grammar can't be followed any further: {constraint.failure}"
            self._fail(stream, ErrorCode.UNSUPPORTED_GRAMMAR, message)
        else:
            self._fail(stream, ErrorCode.INVALID_REQUEST, _NOTHING_ALLOWED)

    def _finish(
        self, stream: Stream, reason: FinishReason, stop_reason: str | int | None = None
    ) -> None:
        self._end(stream, finished(stream.request, reason, stop_reason))

    def _fail(self, stream: Stream, code: ErrorCode, message: str) -> None:
        self._end(stream, failed(stream.request, code, message))

    def _end(self, stream: Stream, end: Finished | Failure) -> None:
        request = stream.request
        self._scheduler.finish(request)
        self._streams.remove(stream)
        self._tombstones.put_ended(request.key, request.attempt)
        self._metrics.on_ended(request, end, self._clock())
        log_ended(request, end)
        self._output.end(request.gateway_id, end)

    def _end_expired(self, now: float) -> None:
        message = "The request's time ran out before its output was complete."
        for stream in self._streams.expired(now):
            self._fail(stream, ErrorCode.DEADLINE_EXCEEDED, message)

    def _fail_step(self, rows: Sequence[ScheduledRow]) -> None:
        for row in rows:
            stream = self._streams.get(row.request.key)
            if stream is None or stream.request is not row.request:
                continue  # it ended before the step failed
            # One of them may be the cause: the gateway tries each again, and finds out which.
            message = "The engine failed at a step of this request."
            self._fail(stream, ErrorCode.WORKER_LOST, message)
        self._scheduler.reset()
        self._runner.reset()

    def _count_step(
        self,
        schedule: Schedule,
        result: StepResult | None,
        started: float,
        scheduled: float,
        computed: float,
    ) -> None:
        """Tell the metrics of a step, by the times at which its parts were done."""
        self._metrics.on_step(
            [row.request for row in schedule.rows],
            (started, scheduled, computed, self._clock()),
            has_failed=result is None,
        )
        self._metrics.on_totals(
            num_preemptions=self._scheduler.num_preemptions,
            num_compiles=self._runner.num_compiles,
        )

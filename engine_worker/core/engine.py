"""The engine as an ordinary object: add, abort and extend choices, step, and collect outputs."""

import logging
import time
from collections.abc import Callable

from engine_worker.core.acceptance import AcceptanceLimits
from engine_worker.core.choice.batch import ModelRunner, StepResult
from engine_worker.core.choice.cache_group import longest_scored, longest_sequence
from engine_worker.core.choice.score_pack import ScoreLimits
from engine_worker.core.choice_acceptor import ChoiceAcceptor
from engine_worker.core.choice_log import about, log_accepted, log_refused
from engine_worker.core.choice_output import ChoiceOutput
from engine_worker.core.choice_progress import ChoiceProgress
from engine_worker.core.choice_table import ChoiceTable
from engine_worker.core.decoding.decode_plan import DecodePlanner
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.core.engine_output import (
    EngineOutput,
    GatewayOutput,
    aborted_unseen,
    refused,
)
from engine_worker.core.metrics import EngineMetrics, TokenRate
from engine_worker.core.scheduling.block_pool import BlockPool, ContentChanges
from engine_worker.core.scheduling.scheduler import (
    Schedule,
    Scheduler,
    SchedulerLimits,
)
from engine_worker.core.score_task import ScoreTask
from engine_worker.core.scoring import Scoring
from engine_worker.core.tombstones import ChoiceKey, Tombstones
from engine_worker.errors import RequestError
from engine_worker.grammar.compiler import GrammarCompiler
from engine_worker.text.tokenizer import Tokenizer
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    ALL_CHOICES,
    Abort,
    Extend,
    Generate,
    Load,
)

RESUME_VERSION = 1
"""Answers move only between engines that agree on it: it grows when sampling, detokenising or
stopping change in a way that an output's continuation would show."""

_STUCK = "The engine has no room in its KV cache for the next step of this request."

_log = logging.getLogger("penstock.engine")


class Engine:
    """Schedules, computes and detokenises for all choices; owned by one thread.

    Every attempt that `add` takes ends in exactly one `Finished` or `Failure`.
    Its many methods are one for each command and question; what follows is in `ChoiceProgress`.

    Args:
        runner: The compute side.
        tokenizer: Turns tokens into text.
        vocab_size: Token ids at or above it are refused.
        max_model_len: Prompt and output together, tokens; cut to what the KV cache holds.
        prefix_cache: Whether choices of one tenant share the blocks of equal beginnings; if not,
            only the choices of one request do.
        speculation: Whether choices draft their next tokens: where it pays, never, or always.
        grammars: Compiles what choices are constrained by; one of its own when None.
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
        self._clock = clock
        self._has_prefix_cache = prefix_cache
        groups = runner.cache_groups
        self._pools = [BlockPool(group.num_blocks, runner.block_size) for group in groups]
        longest = longest_sequence(groups, runner.block_size, runner.prefill_chunk_size)
        self.max_model_len = max_model_len if longest is None else min(max_model_len, longest)
        num_row_tokens = runner.score_limits.max_tokens
        scored = longest_scored(groups, runner.block_size, num_row_tokens)
        self.max_score_len = (
            self.max_model_len if scored is None else min(self.max_model_len, scored)
        )
        self._scheduler = Scheduler(
            SchedulerLimits(
                max_num_seqs=runner.max_num_seqs,
                max_num_batched_tokens=runner.max_num_batched_tokens,
                prefill_chunk_size=runner.prefill_chunk_size,
                max_model_len=self.max_model_len,
            ),
            self._pools,
            [group.reach for group in groups],
        )
        self._metrics = metrics or EngineMetrics(self.load)
        self.acceptor = ChoiceAcceptor(
            AcceptanceLimits(vocab_size, self.max_model_len, tokenizer.eos_token_ids),
            tokenizer,
            block_size=runner.block_size,
            shares_cache=prefix_cache,
            metrics=self._metrics,
            clock=clock,
        )
        self.grammars = grammars or GrammarCompiler(
            tokenizer, vocab_size, on_compiled=self._metrics.on_grammar_compiled
        )
        self._decodes = DecodePlanner(runner, self._scheduler, speculation, self._metrics.on_drafts)
        self._choices = ChoiceTable()
        self._tombstones = Tombstones()
        self._to_gateways = EngineOutput(tokenizer)
        self._progress = ChoiceProgress(
            runner,
            self._scheduler,
            self._choices,
            self._tombstones,
            self._to_gateways,
            self._metrics,
            clock,
            lambda choice, end: self._scoring.on_ended(choice, end),
        )
        self._scoring = Scoring(
            runner,
            self._scheduler,
            take=self._take_prompt,
            finish=self._progress.finish,
            fail=self._progress.fail,
            answer=self._to_gateways.answer,
            reset=self._progress.start_over,
            max_len=self.max_score_len,
        )
        self._num_arrivals = 0
        self._rate = TokenRate()
        self.num_steps = 0

    @property
    def num_unfinished(self) -> int:
        """Choices that have not ended."""
        return len(self._choices)

    @property
    def num_preemptions(self) -> int:
        """How often a choice gave up its blocks so far."""
        return self._scheduler.num_preemptions

    def has_work(self) -> bool:
        """Whether `step` would compute something or has something to tell."""
        return bool(self._to_gateways) or self._scheduler.has_work()

    def next_deadline(self) -> float | None:
        """The earliest deadline of all choices, on the engine's clock."""
        return self._choices.next_deadline()

    def load(self) -> Load:
        """How busy the engine is; a choice that waits for its lease counts as waiting."""
        num_running = self._scheduler.num_runnable
        return Load(
            num_running=num_running,
            num_waiting=self._scheduler.num_unfinished - num_running,
            num_free_blocks=self._num_free_blocks(),
            num_blocks=self._pools[0].num_blocks,
            tokens_per_s=self._rate.tokens_per_s if num_running else 0.0,
        )

    def _num_free_blocks(self) -> int:
        """Free blocks of the first cache group, or less where another one is closer to its end."""
        num_blocks = self._pools[0].num_blocks
        return min(pool.num_free * num_blocks // pool.num_blocks for pool in self._pools)

    def held(self) -> dict[str, tuple[int, int]]:
        """By gateway: unfinished choices and the tokens, prompts and outputs, that they have."""
        return self._choices.held()

    def add(
        self,
        gateway_id: str,
        command: Generate,
        *,
        received_at: float | None = None,
        accepted: ChoiceOutput | None = None,
    ) -> None:
        """Take a choice; if something is wrong with it, it ends with a Failure at once.

        A newer attempt of a running choice replaces it. The same attempt a second time changes
        nothing, an older one is refused.

        Args:
            gateway_id: Who wants it.
            command: What is wanted; its lease counts, even if it was smaller when it was accepted.
            received_at: When it came, on the engine's clock; now when None.
            accepted: What `acceptor` made of the command; made here and now when None, with its
                grammar.
        """
        key = (gateway_id, command.request_id, command.choice)
        if command.choice < 0:
            # No choice has it, but the prompt of a Score may.
            if not self._tombstones.has_ended(key, command.attempt):
                message = "'choice' must be at least 0."
                self.refuse(gateway_id, command, ErrorCode.INVALID_REQUEST, message, param="choice")
            return
        if not self._is_new(key, gateway_id, command):
            return
        self._tombstones.put_started(key, command.attempt)
        live = self._choices.get(key)
        if live is not None:
            self._progress.finish(live, "abort")
        try:
            output = accepted or self._accept(gateway_id, command, received_at)
            self._take(output, command)
        except RequestError as error:
            self.refuse(gateway_id, command, error.code, error.message, param=error.param)
            return
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - a panic of a native library is no Exception
            _log.exception("request %s could not be taken", command.request_id)
            message = "The engine failed to take this request."
            self.refuse(gateway_id, command, ErrorCode.INTERNAL_ERROR, message)
            return
        # A grammar may have forced tokens; or the earlier attempt died before it could end.
        self._progress.try_to_go_on(output)

    def knows(self, gateway_id: str, command: Generate) -> bool:
        """Whether `add` would begin nothing: this attempt runs, is over, aborted or stale."""
        key = (gateway_id, command.request_id, command.choice)
        live = self._choices.get(key)
        return (
            (live is not None and live.choice.attempt == command.attempt)
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
        """End a choice that was not taken."""
        key = (gateway_id, command.request_id, command.choice)
        self._tombstones.put_ended(key, command.attempt)
        end = refused(command, code, message, param)
        log_refused(command, end)
        self._to_gateways.end(gateway_id, end)

    def cached_blocks(self) -> tuple[bytes, ...]:
        """Names of all blocks that a choice could find computed in the first cache group.

        Where layers see a window only, a choice may find less: not what was freed and used again.
        """
        return self._pools[0].contents() if self._has_prefix_cache else ()

    def take_cache_changes(self) -> ContentChanges | None:
        """How `cached_blocks` changed since the last call; None when it did not."""
        changes = self._pools[0].take_changes()
        return changes if self._has_prefix_cache else None

    def clear_cache(self) -> int:
        """Forget what is cached of prompts and held by no choice; how many blocks those were.

        Their memory is given back.
        """
        num_blocks = self._scheduler.clear_cache()
        self.release_memory()
        return num_blocks

    def release_memory(self) -> int:
        """Give back the memory of cache blocks that hold nothing; how many bytes that may be."""
        return self._runner.release_memory([pool.empty_blocks for pool in self._pools])

    def extend(self, gateway_id: str, command: Extend) -> None:
        """Raise a choice's lease; a smaller one than before is ignored, so order can't matter."""
        output = self._choices.get((gateway_id, command.request_id, command.choice))
        if output is None or output.choice.is_scored or output.choice.attempt != command.attempt:
            return
        choice = output.choice
        choice.lease_tokens = max(choice.lease_tokens, command.lease_tokens)
        # Before it may be scheduled: what the grammar forces may use up this lease, too.
        self._progress.try_to_go_on(output)
        self._scheduler.extend(choice, command.lease_tokens)

    def abort(self, gateway_id: str, command: Abort) -> None:
        """Stop a choice, or all of its request, up to this attempt; idempotent.

        Also works ahead of its Generate, which then ends as aborted when it comes.
        """
        key = (gateway_id, command.request_id, command.choice)
        self._tombstones.put_aborted(key, command.attempt)
        for output in self._choices.of_request(key):
            if output.choice.attempt <= command.attempt:
                self._progress.finish(output, "abort")

    @property
    def score_limits(self) -> ScoreLimits:
        """What one call of the scoring program holds; for any thread."""
        return self._runner.score_limits

    def score(self, task: ScoreTask) -> None:
        """Take a Score, which ends in one `Scored` or `Failure`.

        It has nothing to do with choices of the same name.
        """
        self._scoring.add(task)

    def cancel_score(self, gateway_id: str, request_id: str) -> None:
        """Nobody waits for the answer to a Score."""
        self._scoring.cancel(gateway_id, request_id)

    def forget_gateway(self, gateway_id: str) -> None:
        """Drop all that a gateway wanted without an event: nobody listens."""
        self._scoring.forget_gateway(gateway_id)
        for output in self._choices.of_gateway(gateway_id):
            self._forget(output)
        self._to_gateways.forget_gateway(gateway_id)
        self._tombstones.forget_gateway(gateway_id)

    def step(self) -> dict[str, GatewayOutput]:
        """Compute one step, if there is work, and return what each gateway is to be told.

        One pack of questions is scored behind the step's rows.

        A row that fails ends alone. A step that raises ends the choices that were in it; all
        others start over from their tokens on a fresh cache.

        Raises:
            Exception: The runner could not be reset after a failed step; the engine is broken.
        """
        started = self._clock()
        self._scoring.end_expired(started)
        self._progress.end_expired(started)
        schedule = self._scheduler.schedule()
        if schedule.rows:
            scheduled = self._clock()
            self._metrics.on_admitted(schedule.admitted, scheduled)
            result = self._run(schedule)
            computed = self._clock()
            if result is None:
                self._progress.fail_step(schedule.rows)
            else:
                num_sampled = self._progress.take_result(schedule.rows, result)
                duration_s = self._clock() - started
                self._decodes.measure(result, duration_s)
                self._rate.measure(num_sampled, duration_s)
                self._metrics.on_experts(result.expert_bytes)
            self._count_step(schedule, result, started, scheduled, computed)
        has_scored = self._scoring.step()
        if not (schedule.rows or has_scored):
            self._fail_stuck()
        self.num_steps += bool(schedule.rows) or has_scored
        return self._to_gateways.take()

    def close(self) -> None:
        """End the process that grammars are tried in, if one was needed, and what compiles."""
        self.grammars.close()
        self._runner.close()

    def _run(self, schedule: Schedule) -> StepResult | None:
        """What the runner computed; None when it raised."""
        try:
            for choice in schedule.admitted:
                assert choice.slot is not None
                self._runner.assign_slot(
                    choice.slot, choice.prompt_token_ids, choice.output_token_ids
                )
            return self._runner.run(self._decodes.batch(schedule.rows))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - whatever the compute side raises, others go on
            _log.exception("a step of %d choices failed", len(schedule.rows))
            return None

    def _fail_stuck(self) -> None:
        """End who should have got on in a step that computed nothing, if there is anybody.

        The same step would follow, and follow again, and whoever waits behind would never run.
        """
        choice = self._scheduler.first()
        if choice is None:
            return
        with about(choice):
            _log.error("a choice ends because it can't get on, though it is the first in order")
        output = self._choices.get(choice.key)
        assert output is not None, "whoever is scheduled is in the table"
        self._progress.fail(output, ErrorCode.INTERNAL_ERROR, _STUCK)

    def _is_new(self, key: ChoiceKey, gateway_id: str, command: Generate) -> bool:
        """Whether this attempt is to be worked on; answers it otherwise, but never twice."""
        attempt = command.attempt
        live = self._choices.get(key)
        if self._tombstones.has_ended(key, attempt) or (
            live is not None and live.choice.attempt == attempt
        ):
            return False
        if self._tombstones.is_aborted(key, attempt):
            self._tombstones.put_ended(key, attempt)
            self._to_gateways.end(gateway_id, aborted_unseen(command))
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

    def _accept(
        self, gateway_id: str, command: Generate, received_at: float | None
    ) -> ChoiceOutput:
        constraint = None
        if command.grammar is not None:
            constraint = self.grammars.start(command.grammar, command.sampling)
        return self.acceptor.accept(
            gateway_id,
            command,
            received_at=self._clock() if received_at is None else received_at,
            constraint=constraint,
        )

    def _take_prompt(self, command: Generate, received_at: float, gateway_id: str) -> ChoiceOutput:
        """The prompt of a Score as a choice that is scheduled."""
        output = self._accept(gateway_id, command, received_at)
        output.choice.is_scored = True
        output.choice.index = ALL_CHOICES - 1 - command.choice
        self._take(output, command)
        return output

    def _take(self, output: ChoiceOutput, command: Generate) -> None:
        """Put an accepted choice where it is scheduled and found; nothing is left of a failure."""
        choice = output.choice
        choice.arrival = self._num_arrivals
        self._num_arrivals += 1
        choice.lease_tokens = max(choice.lease_tokens, command.lease_tokens)
        # Here, because whoever waits for a slot must not come to pause while it waits.
        output.append_forced()
        self._scheduler.add(choice)
        try:
            self._choices.add(output)
            self._metrics.on_added(
                choice, choice.deadline - command.deadline_s, output.num_resumed_tokens
            )
            log_accepted(choice)
        except BaseException:
            self._forget(output)
            raise

    def _forget(self, output: ChoiceOutput) -> None:
        """Release a choice without an event."""
        self._scheduler.finish(output.choice)
        if self._choices.get(output.choice.key) is output:
            self._choices.remove(output)
        self._metrics.forget(output.choice)

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
            [row.choice for row in schedule.rows],
            (started, scheduled, computed, self._clock()),
            has_failed=result is None,
        )
        self._metrics.on_totals(
            num_preemptions=self._scheduler.num_preemptions,
            num_compiles=self._runner.num_compiles,
        )

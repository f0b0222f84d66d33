"""What becomes of the choices of a step: their tokens are told, and each ends once, everywhere."""

import logging
from collections.abc import Callable, Sequence

from engine_worker.core.choice.batch import ModelRunner, StepResult, TokenScores
from engine_worker.core.choice.choice import Choice
from engine_worker.core.choice_log import about, log_ended
from engine_worker.core.choice_output import ChoiceOutput
from engine_worker.core.choice_table import ChoiceTable
from engine_worker.core.engine_output import EngineOutput, failed, finished
from engine_worker.core.metrics import EngineMetrics
from engine_worker.core.scheduling.scheduler import ScheduledRow, Scheduler
from engine_worker.core.tombstones import Tombstones
from protocol.errors import ErrorCode
from protocol.wire.messages import Failure, Finished, FinishReason

_NOTHING_ALLOWED = (
    "The request's parameters (allowed_token_ids, bad_words, min_tokens, grammar) leave no token"
    " that could come next."
)

_BROKEN_GRAMMAR = "The grammar can't be followed any further: "
_NO_SENTENCE = "it ends before its text is whole."

_UNREADABLE = "The engine failed to read this request's output."

_log = logging.getLogger("penstock.engine")


class ChoiceProgress:
    """Reads the results of steps, tells gateways of them, and ends choices; the engine's thread's.

    Args:
        runner: Told when an output grew by what it did not sample, and after a step that failed.
        scheduler: Has the choices that run and wait.
        choices: All of them; whoever ends is removed.
        tombstones: Remember who ended.
        to_gateways: Gathers what is told.
        metrics: Told of every end.
        clock: Monotonic seconds.
        on_prompt_ended: Told of the end of a choice that is the prompt of a Score.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        choices: ChoiceTable,
        tombstones: Tombstones,
        to_gateways: EngineOutput,
        metrics: EngineMetrics,
        clock: Callable[[], float],
        on_prompt_ended: Callable[[Choice, Finished | Failure], None],
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._choices = choices
        self._tombstones = tombstones
        self._to_gateways = to_gateways
        self._metrics = metrics
        self._clock = clock
        self._on_prompt_ended = on_prompt_ended

    def go_on(self, output: ChoiceOutput, *, has_dropped: bool = False) -> None:
        """Append what a grammar forces, tell what is new, and end the output if it is over.

        Args:
            output: Of a choice.
            has_dropped: The last step sampled more than was taken.
        """
        choice = output.choice
        is_other = output.append_forced() or has_dropped
        if is_other and choice.slot is not None and not output.grammar_failure:
            # The device counts what it sampled, and nothing else.
            self._runner.assign_slot(choice.slot, choice.prompt_token_ids, choice.output_token_ids)
        self._choices.count_tokens(choice)
        if output.grammar_failure:
            # Before its text is told: what a grammar allows not is nobody's answer.
            self._fail_grammar(output, output.grammar_failure)
            return
        self._to_gateways.tell(output)
        if output.stop is not None:
            self.finish(output, output.stop.reason, output.stop.detail)
        else:
            output.settle()

    def try_to_go_on(self, output: ChoiceOutput) -> None:
        """`go_on`, in which a bug ends this output and nothing else."""
        try:
            self.go_on(output)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - whatever one text does to its tokenizer, others go on
            self.fail_unreadable(output)

    def fail_unreadable(self, output: ChoiceOutput) -> None:
        """End a choice at a bug of ours or a panic of a native library, within its `except`."""
        with about(output.choice):
            _log.exception("the output of a choice could not be read")
        self.fail(output, ErrorCode.INTERNAL_ERROR, _UNREADABLE)

    def finish(
        self, output: ChoiceOutput, reason: FinishReason, stop_reason: str | int | None = None
    ) -> None:
        """A good end; `stop_reason` is the stop string or stop id that made it.

        An output that ends by itself must be a sentence of its grammar, else it is no good end. Of
        one that its gateway ends, what was held back of its text is told: where a lease can't grow,
        its answer ends with it.
        """
        if reason == "stop" and stop_reason is None and not output.is_sentence:
            self._fail_grammar(output, _NO_SENTENCE)
            return
        if reason == "abort":
            try:
                output.text.close()
                self._to_gateways.tell(output)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:  # noqa: BLE001 - as in `try_to_go_on`
                self.fail_unreadable(output)
                return
        self._end(output, finished(output.choice, reason, stop_reason))

    def fail(self, output: ChoiceOutput, code: ErrorCode, message: str) -> None:
        """A bad end, with what the choice used."""
        self._end(output, failed(output.choice, code, message))

    def end_expired(self, now: float) -> None:
        """End the choices whose deadline has come."""
        message = "The request's time ran out before its output was complete."
        for output in self._choices.expired(now):
            if self._choices.get(output.choice.key) is not output:
                continue  # it ended with another one of its request
            self.fail(output, ErrorCode.DEADLINE_EXCEEDED, message)

    def take_result(self, rows: Sequence[ScheduledRow], result: StepResult) -> int:
        """Append what a step sampled; how many tokens that were.

        A bug in here costs the rows of this step and nobody else.
        """
        try:
            return self._take_result(rows, result)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - as after a step that raised, others go on
            _log.exception("the result of a step of %d choices could not be read", len(rows))
            self.fail_step(rows)
            return 0

    def fail_step(self, rows: Sequence[ScheduledRow]) -> None:
        """End the choices of a step that raised; all others start over from their tokens."""
        for row in rows:
            output = self._choices.output_of(row.choice)
            if output is None:
                continue  # it ended before the step failed
            # One of them may be the cause: the gateway tries each again, and finds out which.
            message = "The engine failed at a step of this request."
            self.fail(output, ErrorCode.WORKER_LOST, message)
        self.start_over()

    def start_over(self) -> None:
        """Every choice that runs starts over from its tokens on a fresh cache."""
        self._scheduler.reset()
        self._runner.reset()

    def _take_result(self, rows: Sequence[ScheduledRow], result: StepResult) -> int:
        num_sampled = 0
        first_ids = result.token_ids.tolist()
        has_nan, more = result.has_nan.tolist(), result.more_token_ids
        for index, (row, token_id, is_nan) in enumerate(zip(rows, first_ids, has_nan, strict=True)):
            output = self._choices.output_of(row.choice)
            if output is None:
                continue  # an earlier row of the same Score ended, and that one with it
            token_ids = (token_id, *more[index]) if index in more else (token_id,)
            if not is_nan and self._take_plain(row, output, token_ids):
                num_sampled += len(token_ids)
                continue
            samples, start = row.samples, row.choice.num_computed_tokens
            if is_nan:
                self._scheduler.distrust(row.choice)
                self.fail(output, ErrorCode.INTERNAL_ERROR, "The model computed no number (NaN).")
                continue
            self._scheduler.advance(row)
            if index in result.prompt_logprobs:
                self._to_gateways.tell_prompt_scores(output, start, result.prompt_logprobs[index])
            if index in result.nothing_allowed:
                self._end_nothing_allowed(output)
            elif samples and not row.choice.is_scored:
                num_sampled += self._take_tokens(output, token_ids, result.logprobs.get(index))
        return num_sampled

    def _take_plain(
        self, row: ScheduledRow, output: ChoiceOutput, token_ids: tuple[int, ...]
    ) -> bool:
        """Take what a row sampled if all of it is plain; False, and nothing done, if not.

        It is what `_take_tokens` would do, without looking for what can't be.
        """
        try:
            plain = output.plain_text(token_ids)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - whatever one text does to its tokenizer, others go on
            self.fail_unreadable(output)
            return True
        if plain is None:
            return False
        choice, (text, ends) = row.choice, plain
        self._scheduler.advance(row)
        choice.output_token_ids += token_ids
        if len(token_ids) > 1:
            self._scheduler.advance(ScheduledRow(choice, len(token_ids) - 1))
        self._choices.add_tokens(choice, len(token_ids))
        self._to_gateways.tell_plain(output, text, token_ids, ends)
        return True

    def _take_tokens(
        self, output: ChoiceOutput, token_ids: Sequence[int], scores: TokenScores | None
    ) -> int:
        """Append sampled tokens up to one that ends the output or has others forced behind it.

        Tell what follows.

        A bug there ends only its row.

        Args:
            output: Of a choice; everything before the first token is computed.
            token_ids: What comes before each of the others was computed with it.
            scores: Of the first token, if they are wanted.

        Returns:
            How many tokens were appended.
        """
        num_taken = 0
        try:
            for token_id in token_ids:
                if num_taken:
                    self._scheduler.advance(ScheduledRow(output.choice, 1))
                output.append(token_id)
                num_taken += 1
                if output.stop is not None or output.grammar_failure or output.is_thought_over:
                    break
            if scores is not None:
                output.untold_scores.append(scores)
            has_dropped = output.stop is None and num_taken < len(token_ids)
            self.go_on(output, has_dropped=has_dropped)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - whatever one text does to its tokenizer, others go on
            self.fail_unreadable(output)
        return num_taken

    def _end_nothing_allowed(self, output: ChoiceOutput) -> None:
        """Nothing may come next: the end of a sentence of the grammar, or a contradiction."""
        constraint = output.constraint
        if constraint is not None and constraint.has_broken_mask:
            self.fail(output, ErrorCode.INTERNAL_ERROR, _UNREADABLE)
        elif constraint is not None and constraint.is_accepting:
            output.text.close()
            self._to_gateways.tell(output)
            self.finish(output, "stop")
        elif constraint is not None and constraint.failure:
            self._fail_grammar(output, constraint.failure)
        else:
            self.fail(output, ErrorCode.INVALID_REQUEST, _NOTHING_ALLOWED)

    def _fail_grammar(self, output: ChoiceOutput, reason: str) -> None:
        self.fail(output, ErrorCode.UNSUPPORTED_GRAMMAR, _BROKEN_GRAMMAR + reason)

    def _end(self, output: ChoiceOutput, end: Finished | Failure) -> None:
        choice = output.choice
        self._scheduler.finish(choice)
        self._choices.remove(output)
        if not choice.is_scored:  # no command names it, so none can come late
            self._tombstones.put_ended(choice.key, choice.attempt)
        self._metrics.on_ended(choice, end, self._clock())
        log_ended(choice, end)
        if choice.is_scored:
            self._on_prompt_ended(choice, end)
        else:
            self._to_gateways.end(choice.gateway_id, end)

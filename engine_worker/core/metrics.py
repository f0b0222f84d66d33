"""What an engine counts and times; gateways show it on /metrics."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from engine_worker.core.choice.choice import Choice
from protocol.runtime.metrics import MetricRegistry
from protocol.runtime.tracing import Value, tell_step
from protocol.wire.messages import BlockPlacement, Failure, Finished, Load

_ROW_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MASK_BOUNDS = (0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_LATENCY_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

_PHASES = ("schedule", "compute", "output")
_RATE_WEIGHT = 0.1
"""Of the newest step in the running mean of tokens per second."""


@dataclass(slots=True)
class _Times:
    """When things happened to one choice, on the engine's clock, and what was counted of it.

    Attributes:
        num_tokens: Of its output; those that an earlier attempt had sampled are not new.
    """

    arrived_at: float
    num_tokens: int
    admitted_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float = 0.0


class TokenRate:
    """A running mean of tokens per second."""

    def __init__(self) -> None:
        self.tokens_per_s = 0.0

    def measure(self, num_tokens: int, duration_s: float) -> None:
        """A step sampled so many tokens in so many seconds."""
        if duration_s > 0:
            self.tokens_per_s += _RATE_WEIGHT * (num_tokens / duration_s - self.tokens_per_s)


class EngineMetrics:
    """The metrics of one engine; the engine's thread counts, the I/O thread takes samples.

    Args:
        load: The engine's latest load.

    Attributes:
        registry: Holds them for the worker's reports.
    """

    def __init__(self, load: Callable[[], Load] = Load) -> None:
        self.registry = MetricRegistry()
        self._times: dict[Choice, _Times] = {}
        self._gaps: dict[float, int] = {}
        self._num_preemptions = 0
        self._num_compiles = 0
        self._add_gauges(load)
        counter, histogram = self.registry.counter, self.registry.histogram
        self._requests = counter(
            "penstock_engine_requests",
            "Choices that ended: stop, length, abort or failed.",
            ("outcome",),
        )
        self._tokens = counter(
            "penstock_engine_tokens",
            "Tokens: of prompts, of these found cached, and of outputs.",
            ("kind",),
        )
        self._draft_tokens = counter(
            "penstock_engine_draft_tokens",
            "Tokens of outputs that prompt lookup drafted, and those of them that were right.",
            ("kind",),
        )
        self._expert_bytes = counter(
            "penstock_engine_expert_bytes",
            "Bytes of experts' matrices that decodes read: of those that a token chose.",
        )
        self._preemptions = counter(
            "penstock_engine_preemptions", "How often a choice gave up its KV blocks."
        )
        self._compiles = counter("penstock_engine_compiles", "Programs compiled or loaded.")
        self._steps = counter("penstock_engine_steps", "Steps: done or failed.", ("outcome",))
        self._step_s = histogram(
            "penstock_engine_step_seconds",
            "Time of a step by phase: schedule, compute (device work and its inputs) or output.",
            ("phase",),
        )
        self._step_rows = histogram(
            "penstock_engine_step_rows", "Choices that a step worked on.", bounds=_ROW_BOUNDS
        )
        self._queue_s = histogram(
            "penstock_engine_queue_seconds", "From a choice's arrival to its slot."
        )
        self._prefill_s = histogram(
            "penstock_engine_prefill_seconds", "From a choice's slot to its first token."
        )
        self._decode_s = histogram(
            "penstock_engine_decode_seconds", "From a choice's first token to its end."
        )
        self._first_token_s = histogram(
            "penstock_engine_time_to_first_token_seconds",
            "From a choice's arrival to its first token.",
        )
        self._inter_token_s = histogram(
            "penstock_engine_inter_token_latency_seconds",
            "Between two tokens of a choice.",
            bounds=_LATENCY_BOUNDS,
        )
        self._add_grammar_histograms()

    def _add_grammar_histograms(self) -> None:
        histogram = self.registry.histogram
        self._grammar_s = histogram(
            "penstock_engine_grammar_seconds",
            "Compiling a grammar that was not in the cache, refused ones included.",
        )
        self._mask_s = histogram(
            "penstock_engine_mask_seconds",
            "Making the mask of the tokens that a grammar allows next, beside the forward pass.",
            bounds=_MASK_BOUNDS,
        )

    def _add_gauges(self, load: Callable[[], Load]) -> None:
        gauge = self.registry.gauge
        gauge("penstock_engine_running", "Choices that run.", lambda: load().num_running)
        gauge("penstock_engine_waiting", "Choices that wait.", lambda: load().num_waiting)
        gauge(
            "penstock_engine_kv_use_ratio",
            "Share of the KV blocks that choices hold; cached blocks that nobody holds are free.",
            lambda: _kv_use(load()),
        )
        gauge("penstock_engine_kv_blocks", "KV blocks.", lambda: load().num_blocks)
        self._blocks = self.registry.info(
            "penstock_engine_blocks_info",
            "Which backend computes each kind of the model's blocks.",
            ("block", "backend"),
        )
        self._types = self.registry.info(
            "penstock_engine_types_info",
            "The types of weights and of cached keys and values.",
            ("numbers", "type"),
        )

    def on_loaded(
        self, placements: Iterable[BlockPlacement], *, weights: str, keys_and_values: str
    ) -> None:
        """The model is loaded: where its blocks run, and the types of its numbers."""
        self._blocks.show((place.block, place.backend) for place in placements)
        self._types.show([("weights", weights), ("kv", keys_and_values)])

    def on_added(self, choice: Choice, arrived_at: float, num_resumed_tokens: int) -> None:
        """A choice was taken; tokens of an earlier attempt were counted there."""
        self._times[choice] = _Times(arrived_at, num_resumed_tokens)

    def on_admitted(self, choices: Iterable[Choice], now: float) -> None:
        """Choices have a slot; a preempted one has had its first before."""
        for choice in choices:
            times = self._times[choice]
            if times.admitted_at is None:
                times.admitted_at = now
                self._queue_s.observe(now - times.arrived_at)
                self._tokens.add(choice.num_prompt_tokens, "prompt")
                self._tokens.add(choice.num_cached_tokens or 0, "cached")

    def on_step(
        self,
        choices: Iterable[Choice],
        times: tuple[float, float, float, float],
        *,
        has_failed: bool,
    ) -> None:
        """A step is over.

        Args:
            choices: Those in it; some may have ended.
            times: When it began and was scheduled, computed and told.
            has_failed: It raised.
        """
        now = times[-1]
        num_rows = num_tokens = 0
        for choice in choices:
            num_rows += 1
            known = self._times.get(choice)
            if known is not None:
                num_tokens += self._count_tokens(choice, known, now)
        if num_tokens:
            self._tokens.add(num_tokens, "completion")
        for gap_s, num_times in self._gaps.items():
            self._inter_token_s.observe(gap_s, times=num_times)
        self._gaps.clear()
        for phase, begin, end in zip(_PHASES, times, times[1:], strict=False):
            self._step_s.observe(end - begin, phase)
        self._step_rows.observe(num_rows)
        self._steps.add(1, "failed" if has_failed else "done")

    def on_totals(self, *, num_preemptions: int, num_compiles: int) -> None:
        """Counts that others keep, as they stand now."""
        self._preemptions.add(num_preemptions - self._num_preemptions)
        self._compiles.add(num_compiles - self._num_compiles)
        self._num_preemptions, self._num_compiles = num_preemptions, num_compiles

    def on_ended(self, choice: Choice, end: Finished | Failure, now: float) -> None:
        """A choice has its end."""
        times = self._times.pop(choice)
        num_tokens = self._count_tokens(choice, times, now)
        if num_tokens:
            self._tokens.add(num_tokens, "completion")
        if times.first_token_at is not None:
            self._decode_s.observe(now - times.first_token_at)
        self._requests.add(1, end.finish_reason if isinstance(end, Finished) else "failed")
        if choice.traceparent:
            _tell_steps(choice, times, end, now)

    def on_experts(self, num_bytes: int) -> None:
        """A step's decodes read so many bytes of matrices of experts."""
        self._expert_bytes.add(num_bytes)

    def on_drafts(self, num_drafted: int, num_accepted: int) -> None:
        """A step computed draft tokens, of which some were right."""
        self._draft_tokens.add(num_drafted, "drafted")
        self._draft_tokens.add(num_accepted, "accepted")

    def on_grammar_compiled(self, duration_s: float) -> None:
        """A grammar was compiled, or refused; called in any thread."""
        self._grammar_s.observe(duration_s)

    def on_mask(self, duration_s: float) -> None:
        """The mask of one row was made."""
        self._mask_s.observe(duration_s)

    def forget(self, choice: Choice) -> None:
        """A choice is gone without an end."""
        self._times.pop(choice, None)

    def _count_tokens(self, choice: Choice, times: _Times, now: float) -> int:
        """Time the new tokens of a choice; how many there are."""
        num_output_tokens = len(choice.output_token_ids)
        num_new = num_output_tokens - times.num_tokens
        if num_new <= 0:
            return 0
        times.num_tokens = num_output_tokens
        if times.first_token_at is None:
            times.first_token_at = now
            self._first_token_s.observe(now - times.arrived_at)
            if times.admitted_at is not None:
                self._prefill_s.observe(now - times.admitted_at)
        else:
            # Most rows of a step have waited for the same time: they are counted together.
            gap_s = (now - times.last_token_at) / num_new
            self._gaps[gap_s] = self._gaps.get(gap_s, 0) + num_new
        times.last_token_at = now
        return num_new


def _kv_use(load: Load) -> float:
    return 1.0 - load.num_free_blocks / load.num_blocks if load.num_blocks else 0.0


def _tell_steps(choice: Choice, times: _Times, end: Finished | Failure, now: float) -> None:
    """The steps of a choice that has ended, for its trace."""
    error = "" if isinstance(end, Finished) else str(end.code)
    about: dict[str, Value] = {
        "penstock.choice": choice.index,
        "penstock.attempt": choice.attempt,
    }
    admitted_at = now if times.admitted_at is None else times.admitted_at
    tell_step(choice.traceparent, "engine.queue", times.arrived_at, admitted_at, about)
    if times.admitted_at is None:
        return
    first_at = times.first_token_at
    prompt = {
        "penstock.prompt_tokens": choice.num_prompt_tokens,
        "penstock.cached_tokens": choice.num_cached_tokens or 0,
    }
    prefilled_at = now if first_at is None else first_at
    is_over = first_at is None
    tell_step(
        choice.traceparent,
        "engine.prefill",
        admitted_at,
        prefilled_at,
        {**about, **prompt},
        error if is_over else "",
    )
    if first_at is not None:
        output = {"penstock.output_tokens": choice.num_output_tokens}
        tell_step(choice.traceparent, "engine.decode", first_at, now, {**about, **output}, error)

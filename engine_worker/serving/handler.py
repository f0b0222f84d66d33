"""Takes commands in the I/O thread: what takes a while goes to threads, the rest to the steps."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from msgspec import structs

from engine_worker.compute.runner.profiling import Profiler
from engine_worker.core.credits import CreditPolicy, Held
from engine_worker.core.score_task import ScoreTask
from engine_worker.errors import ProfileError
from engine_worker.grammar.compile_queue import CompileQueue, WaitingGrammar
from engine_worker.grammar.compiler import GrammarCompiler
from engine_worker.grammar.constraint import Constraint
from engine_worker.serving.acceptance_queue import (
    AcceptanceQueue,
    Accepted,
    Acceptor,
    WaitingChoice,
    is_quick,
)
from engine_worker.serving.inbox import GatewayCommand, GatewayLost, Inbox, ScoreCommand
from engine_worker.serving.prepare_queue import NUM_THREADS, PrepareQueue, ScoreTokeniser
from engine_worker.serving.progress import Progress, Side
from engine_worker.serving.promised import PromisedPrompts
from engine_worker.text.preparation import PromptPreparer
from protocol.errors import ErrorCode, PenstockError
from protocol.runtime import logs
from protocol.runtime.threads import WatchedPool
from protocol.version import ProtocolVersion
from protocol.wire.messages import (
    Abort,
    CacheCleared,
    Cancel,
    Classify,
    ClearCache,
    Credits,
    Detokenize,
    Embed,
    EngineCommand,
    Extend,
    Failure,
    Generate,
    Load,
    Message,
    OrphanUsageNoted,
    Prepare,
    Prepared,
    Profile,
    Profiled,
    Score,
)

if TYPE_CHECKING:
    # jax comes with it, which a process must not import before its heartbeats flow.
    from engine_worker.embedding.queue import TextQueue

_RETRY_AFTER_S = 1.0

_log = logging.getLogger("penstock.engine")


class Outlet(Protocol):
    """Where answers go: the worker's connection to its gateways; thread-safe."""

    def send(self, gateway_id: str, message: Message) -> None:
        """Send in order; dropped silently when the gateway is gone."""

    def gateway_ids(self) -> tuple[str, ...]:
        """The gateways that are connected."""

    def gateway_version(self, gateway_id: str) -> ProtocolVersion:
        """What a gateway speaks."""


_FOR_STEP_LOOP = Generate | Extend | Abort | OrphanUsageNoted | ClearCache


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What the step loop last said of itself; replaced whole, so any thread may read it.

    Attributes:
        progress_counter: Grows with each step, and each round after which nothing runs.
        held: What each gateway has unfinished.
    """

    load: Load = field(default_factory=Load)
    progress_counter: int = 0
    num_unfinished: int = 0
    held: Held = field(default_factory=dict)


class EngineHandler:
    """The engine's `WorkerHandler`; every method returns at once.

    It is long because the protocol of workers and the step loop both ask questions of it.

    It exists before the model is loaded, because heartbeats start with the process; until `serve`
    is called, work is refused as unavailable.

    Args:
        clock: Monotonic seconds.
        profiler: Records what the engine does; None records nothing.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, profiler: Profiler | None = None
    ) -> None:
        self._profiler = profiler
        self.inbox = Inbox()
        self.is_draining = False
        self.status = EngineStatus()
        self._clock = clock
        self._outlet: Outlet | None = None
        self._credit_policy: CreditPolicy | None = None
        self._compile_queue: CompileQueue | None = None
        self._acceptances: AcceptanceQueue | None = None
        self._texts: TextQueue | None = None
        self._threads = WatchedPool(NUM_THREADS, thread_name_prefix="prepare")
        self._costly_thread = WatchedPool(1, thread_name_prefix="prepare-long")
        self._prepares: PrepareQueue | None = None
        self._promised = PromisedPrompts(clock)
        self._generates = True
        self._progress = Progress()
        # Scores that the step loop has, by gateway and request.
        self._scores: set[tuple[str, str]] = set()
        self._scores_lock = threading.Lock()

    def connect(self, outlet: Outlet) -> None:
        """Say where answers go; before the first command."""
        self._outlet = outlet

    def serve(
        self,
        preparer: PromptPreparer,
        credit_policy: CreditPolicy,
        grammars: GrammarCompiler,
        acceptor: Acceptor,
        scores: ScoreTokeniser | None = None,
    ) -> None:
        """The model is loaded: take work from now on.

        Args:
            preparer: Tokenises prompts.
            credit_policy: How much gateways may have here.
            grammars: Compiles grammars.
            acceptor: Takes choices that are not quick to take.
            scores: Tokenises Scores; None refuses them.
        """
        self._credit_policy = credit_policy
        self._acceptances = AcceptanceQueue(acceptor, self._hand_on, self._clock)
        self._compile_queue = CompileQueue(grammars, self._on_compiled, self._clock)
        self._prepares = PrepareQueue(
            preparer.answer,
            self._send_prepared,
            execute=self._threads.submit,
            execute_costly=self._costly_thread.submit,
            clock=self._clock,
            tokenise_score=scores,
            take_score=self._hand_on_score,
        )

    def serve_texts(self, texts: "TextQueue", credit_policy: CreditPolicy | None = None) -> None:
        """Take whole texts, to be embedded or classified, from now on.

        Args:
            texts: Runs in a thread of its own.
            credit_policy: Of a model that generates nothing.
        """
        self._texts = texts
        if credit_policy is not None:
            self._credit_policy = credit_policy
            # No step loop looks into the inbox; what came meanwhile would seem unfinished forever.
            self._generates = False
            self.inbox.forget()

    def close(self) -> None:
        """End the step loop and the threads; prompts that still wait are dropped."""
        self.inbox.stop()
        if self._texts is not None:
            self._texts.close()
        if self._prepares is not None:
            self._prepares.close()
        for threads in (self._threads, self._costly_thread):
            threads.shutdown(wait=False, cancel_futures=True)
        for waiting in self._choice_queues:
            waiting.close()

    def on_command(self, gateway_id: str, command: EngineCommand) -> None:
        """Queue a command; see `WorkerHandler`."""
        if isinstance(command, Prepare | Detokenize | Score):
            if self._prepares is None or self.is_draining:
                self._send(gateway_id, self._unavailable(command))
            else:
                self._prepares.submit(gateway_id, command)
        elif isinstance(command, Cancel):
            self._cancel(gateway_id, command)
        elif isinstance(command, Embed | Classify):
            texts = self._texts
            if texts is None or self.is_draining or not isinstance(command, texts.takes):
                self._send(gateway_id, self._unavailable(command))
            else:
                texts.submit(gateway_id, command)
        elif isinstance(command, Profile):
            self._take_profile(gateway_id, command)
        elif isinstance(command, ClearCache) and not self._generates:
            # A model that generates nothing keeps nothing of its prompts.
            self._send(gateway_id, CacheCleared(request_id=command.request_id, num_blocks=0))
        elif isinstance(command, Generate) and not self._may_begin(gateway_id, command):
            self._send(gateway_id, self._unavailable(command))
        elif isinstance(command, Generate) and command.grammar is not None:
            self._take_constrained(gateway_id, command)
        elif isinstance(command, Generate) and not (command.is_alone or is_quick(command)):
            # A suspect is accepted by the step loop, once it is alone: that may be what kills.
            self._take_slow(gateway_id, command)
        elif isinstance(command, _FOR_STEP_LOOP) and self._generates:
            # Choices go from the first queue to the second, so these are asked in this order.
            if isinstance(command, Extend):
                for waiting in self._choice_queues:
                    waiting.extend(gateway_id, command)
            self.inbox.put(GatewayCommand(gateway_id, command, self._clock()))
            # Behind the abort, which leaves the tombstone that ends what is handed on.
            if isinstance(command, Abort):
                for waiting in self._choice_queues:
                    waiting.abort(gateway_id, command)

    def on_gateway_lost(self, gateway_id: str) -> None:
        """Abort all that the gateway wanted."""
        if self._prepares is not None:
            self._prepares.forget_gateway(gateway_id)
        self._promised.forget_gateway(gateway_id)
        for waiting in self._choice_queues:
            waiting.forget_gateway(gateway_id)
        with self._scores_lock:
            self._scores = {key for key in self._scores if key[0] != gateway_id}
        if self._generates:
            self.inbox.put(GatewayLost(gateway_id))
        if self._texts is not None:
            self._texts.forget_gateway(gateway_id)

    def on_drain(self, timeout_s: float) -> None:
        """Refuse new work from now on; what runs goes on, and so does what was just prepared."""
        _log.info("draining, at most %.0f s", timeout_s)
        self.is_draining = True

    def num_unfinished(self) -> int:
        """Commands not looked at yet, prompts in preparation, and choices that run or wait."""
        # In this order: what leaves the first count is in the status before it does.
        num_pending = self.inbox.num_unfinished
        num_prepares = 0 if self._prepares is None else self._prepares.num_unfinished
        num_promised = self._promised.num_waiting if self.is_draining else 0
        num_taken = num_pending + num_prepares + self.status.num_unfinished + self._num_texts
        return num_taken + num_promised

    def load(self) -> Load:
        """The load after the last step, with the requests for whole texts.

        While commands wait for a step, something runs: an idle engine that hangs in its very first
        step must not look idle. Choices whose grammar is compiled wait for no step.
        """
        load = self.status.load
        num_running = load.num_running + self._num_texts
        if self.inbox.num_present:
            num_running = max(1, num_running)
        return structs.replace(load, num_running=num_running)

    def credits(self, gateway_id: str) -> Credits | None:
        """The gateway's window after the last step; None while nothing is served."""
        return self.window(gateway_id, self.status.held)

    def window(self, gateway_id: str, held: Held) -> Credits | None:
        """The gateway's window when gateways have so much; None while nothing is served."""
        if self._credit_policy is None or self._outlet is None:
            return None
        return self._credit_policy.window(gateway_id, self._outlet.gateway_ids(), held)

    def admits(self, gateway_id: str, held: Held, num_new_tokens: int) -> bool:
        """Whether a gateway may have one more choice when gateways have so much."""
        if self._credit_policy is None or self._outlet is None:
            return True
        gateway_ids = self._outlet.gateway_ids()
        return self._credit_policy.admits(gateway_id, gateway_ids, held, num_new_tokens)

    def progress_counter(self) -> int:
        """Stands still while steps or whole texts have work and don't move; any thread."""
        status = self.status
        has_steps = status.load.num_running > 0 or self.inbox.num_present > 0
        num_batches = 0 if self._texts is None else self._texts.num_batches
        return self._progress.count(
            Side(status.progress_counter, has_work=has_steps),
            Side(num_batches, has_work=self._num_texts > 0),
        )

    @property
    def _num_texts(self) -> int:
        return 0 if self._texts is None else self._texts.num_unfinished

    @property
    def _choice_queues(self) -> tuple[CompileQueue | AcceptanceQueue, ...]:
        """Where choices wait before the step loop knows them, in the order in which they pass."""
        queues = (self._compile_queue, self._acceptances)
        return tuple(waiting for waiting in queues if waiting is not None)

    def publish(self, status: EngineStatus, num_taken: int) -> None:
        """The step loop's report: its state, which includes so many more inbox items."""
        self.status = status
        self.inbox.done(num_taken)

    def _take_profile(self, gateway_id: str, command: Profile) -> None:
        """Record in a thread of its own; nobody else waits for it."""
        args = (gateway_id, command)
        threading.Thread(target=self._profile, args=args, name="profile", daemon=True).start()

    def _profile(self, gateway_id: str, command: Profile) -> None:
        with logs.about(command.request_id):
            self._send(gateway_id, self._profiled(command))

    def _profiled(self, command: Profile) -> Profiled | Failure:
        try:
            if self._profiler is None:
                raise ProfileError("This engine records no profiles.")
            folder, size_bytes = self._profiler.record(command.duration_s)
        except PenstockError as error:
            code, message, param = error.code, error.message, error.param
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:  # noqa: BLE001 - whatever the profiler raises, the engine serves on
            _log.exception("a profile could not be recorded")
            code, message, param = (
                ErrorCode.INTERNAL_ERROR,
                "The engine failed to record a profile.",
                None,
            )
        else:
            return Profiled(
                request_id=command.request_id, directory=str(folder), size_bytes=size_bytes
            )
        return Failure(request_id=command.request_id, code=code, message=message, param=param)

    def _take_constrained(self, gateway_id: str, command: Generate) -> None:
        """Have the grammar compiled; the choice reaches the step loop with the result."""
        assert self._compile_queue is not None
        # Counted first: it may be handed on before `submit` returns.
        self.inbox.expect()
        if not self._compile_queue.submit(gateway_id, command, self._clock()):
            self.inbox.expect_less()
            message = "Too many grammars are waiting to be compiled."
            self._refuse_overloaded(gateway_id, command, message)

    def _take_slow(self, gateway_id: str, command: Generate) -> None:
        """Have a choice accepted in a thread; it reaches the step loop with the result."""
        assert self._acceptances is not None
        self.inbox.expect()  # first, as above
        if not self._acceptances.submit(gateway_id, command, self._clock()):
            self.inbox.expect_less()
            self._refuse_overloaded(gateway_id, command, "Too many requests are waiting to begin.")

    def _refuse_overloaded(self, gateway_id: str, command: Generate, message: str) -> None:
        self._send(
            gateway_id,
            Failure(
                request_id=command.request_id,
                choice=command.choice,
                attempt=command.attempt,
                code=ErrorCode.OVERLOADED,
                message=message,
                retry_after_s=_RETRY_AFTER_S,
            ),
        )

    def _on_compiled(
        self, waiting: WaitingGrammar, result: Constraint | PenstockError | None
    ) -> None:
        """Runs in any thread; `num_unfinished` counts the choice since it came."""
        assert self._acceptances is not None
        command, received_at = waiting.command, waiting.received_at
        if isinstance(result, Constraint):
            self._acceptances.submit_compiled(waiting.gateway_id, command, received_at, result)
        else:
            self._hand_on(waiting, result)

    def _hand_on(self, waiting: WaitingGrammar | WaitingChoice, accepted: Accepted) -> None:
        """As `_on_compiled`."""
        self.inbox.put(
            GatewayCommand(
                waiting.gateway_id,
                waiting.command,
                waiting.received_at,
                accepted=accepted,
                is_abandoned=waiting.is_abandoned,
            ),
            was_expected=True,
        )

    def _hand_on_score(self, task: ScoreTask) -> None:
        """Runs in any thread; what is counted here is unfinished until the step loop has it."""
        with self._scores_lock:
            self._scores.add(task.key)
            # Under the lock: whoever cancels it finds it before, and is behind it in the inbox.
            self.inbox.put(ScoreCommand(task))

    def on_score_answered(self, gateway_id: str, request_id: str) -> None:
        """The step loop is done with a Score."""
        with self._scores_lock:
            self._scores.discard((gateway_id, request_id))

    def _cancel(self, gateway_id: str, command: Cancel) -> None:
        """Drop a question that nobody waits for; the loop is told only of a Score that it has."""
        self._promised.cancel(gateway_id, command.request_id)
        if self._prepares is not None:
            self._prepares.cancel(gateway_id, command.request_id)
        if self._texts is not None:
            self._texts.cancel(gateway_id, command.request_id)
        with self._scores_lock:
            is_at_loop = (gateway_id, command.request_id) in self._scores
            self._scores.discard((gateway_id, command.request_id))
        if is_at_loop:
            self.inbox.put(GatewayCommand(gateway_id, command, self._clock()))

    def _unavailable(
        self, command: Prepare | Detokenize | Score | Generate | Embed | Classify
    ) -> Failure:
        if self.is_draining:
            reason = "The engine is stopping."
        elif isinstance(command, Embed) and self._prepares is not None:
            reason = "This engine makes no embeddings; set PENSTOCK_POOLING to enable them."
        elif isinstance(command, Classify) and self._credit_policy is not None:
            reason = "This engine classifies no texts: its model has no classifier."
        elif self._texts is not None:
            does = "makes embeddings" if self._texts.takes is Embed else "classifies texts"
            reason = f"This engine only {does}."
        else:
            reason = "The engine is still loading."
        return Failure(
            request_id=command.request_id,
            choice=command.choice if isinstance(command, Generate) else -1,
            attempt=command.attempt if isinstance(command, Generate) else 0,
            code=ErrorCode.WORKER_UNAVAILABLE,
            message=reason,
            retry_after_s=_RETRY_AFTER_S,
        )

    def _may_begin(self, gateway_id: str, command: Generate) -> bool:
        is_promised = self._promised.take(gateway_id, command.request_id)
        return self._prepares is not None and (is_promised or not self.is_draining)

    def _send_prepared(self, gateway_id: str, message: Message) -> None:
        """Runs in any thread."""
        if isinstance(message, Prepared):
            self._promised.on_answered(gateway_id, message.request_id)
        self._send(gateway_id, message)

    def _send(self, gateway_id: str, message: Message) -> None:
        assert self._outlet is not None, "connect() comes before the first command"
        self._outlet.send(gateway_id, message)

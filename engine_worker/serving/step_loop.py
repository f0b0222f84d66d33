"""The engine's own thread: take commands, compute a step, send each gateway its output."""

import logging
import time
from collections.abc import Callable, Container

from engine_worker.core.engine import Engine
from engine_worker.core.engine_output import GatewayOutput
from engine_worker.core.score_task import ScoreTask
from engine_worker.serving.cache_report import CacheReporter
from engine_worker.serving.handler import EngineHandler, EngineStatus, Outlet
from engine_worker.serving.idle_release import IdleRelease
from engine_worker.serving.inbox import (
    GatewayCommand,
    GatewayLost,
    InboxItem,
    ScoreCommand,
    StopLoop,
)
from engine_worker.serving.isolation import Isolation
from engine_worker.serving.orphans import OrphanTracker
from protocol.errors import ErrorCode, PenstockError
from protocol.version import ORPHAN_USAGE_VERSION
from protocol.wire.messages import (
    ALL_CHOICES,
    CacheCleared,
    Cancel,
    ClearCache,
    Credits,
    Extend,
    Failure,
    Generate,
    Load,
    OrphanUsageNoted,
    StepOutput,
)

_log = logging.getLogger("penstock.engine")

_UNHANDLED = "The engine failed to take this request."

_MAX_SLEEP_S = 1.0
"""So soon a gateway that came to an idle engine learns what is cached there, and memory that isn't
needed is given back."""


class StepLoop:
    """Drives the engine from a handler's inbox.

    Args:
        engine: Owned by the thread that calls `run`.
        handler: Holds the inbox, and is told the engine's state.
        outlet: Where outputs go.
        clock: Monotonic seconds, the engine's.
        engine_id: The worker's instance id.
    """

    def __init__(
        self,
        engine: Engine,
        handler: EngineHandler,
        outlet: Outlet,
        clock: Callable[[], float] = time.monotonic,
        *,
        engine_id: str = "engine",
    ) -> None:
        self._engine = engine
        self._handler = handler
        self._outlet = outlet
        self._clock = clock
        self._isolation = Isolation(clock)
        self._orphans = OrphanTracker(engine_id, clock)
        self._cache_reporter = CacheReporter(engine, outlet, clock)
        self._idle_release = IdleRelease(engine, clock)
        self._windows: dict[str, Credits | None] = {}
        self._is_stopping = False
        self._num_idle_rounds = 0

    def run(self) -> None:
        """Work until `StopLoop`; without work it sleeps in the inbox.

        Raises:
            Exception: The engine is broken beyond one step; the process has to start over.
        """
        while self.run_once():
            pass

    def run_once(self, *, block: bool = True) -> bool:
        """One round: commands, one step, outputs.

        Args:
            block: Whether to wait for a command when there is nothing to compute.

        Returns:
            False once the loop is to end.
        """
        num_taken = self._take_commands(block=block)
        if self._is_stopping:
            return False
        outputs = self._engine.step()
        load = self._engine.load()
        for gateway_id, output in outputs.items():
            self._send(gateway_id, output, load)
        if any(output.ends or output.answers for output in outputs.values()):
            self._share_out(outputs, load)
        self._report_orphans()
        self._cache_reporter.report(is_idle=not self._engine.has_work())
        self._idle_release.poll()
        # What was taken may have been refused: the loop has come round without a step.
        self._num_idle_rounds += load.num_running == 0
        self._handler.publish(
            EngineStatus(
                load=load,
                progress_counter=self._engine.num_steps + self._num_idle_rounds,
                num_unfinished=self._engine.num_unfinished,
                held=self._engine.held(),
            ),
            num_taken,
        )
        return True

    def _take_commands(self, *, block: bool) -> int:
        """Handle all that is in the inbox; how many items that were."""
        num_taken = 0
        timeout_s = 0.0
        if block and not self._engine.has_work():
            wakes = [self._engine.next_deadline(), self._orphans.next_due()]
            due = min((wake for wake in wakes if wake is not None), default=None)
            timeout_s = _MAX_SLEEP_S
            if due is not None:
                timeout_s = min(max(0.0, due - self._clock()), _MAX_SLEEP_S)
        while not self._is_stopping:
            item = self._handler.inbox.take(timeout_s)
            if item is None:
                break
            self._try_to_handle(item)
            timeout_s = 0.0
            num_taken += 1
        return num_taken

    def _try_to_handle(self, item: InboxItem) -> None:
        """`_handle`, in which what one command raises ends that command and nothing else."""
        try:
            self._handle(item)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            if not isinstance(item, GatewayCommand | ScoreCommand):
                raise
            _log.exception("a command could not be handled")
            self._fail(item)

    def _fail(self, item: GatewayCommand | ScoreCommand) -> None:
        """Answer a command at a bug of ours, if it is one that is answered."""
        if isinstance(item, ScoreCommand):
            gateway_id, request_id = item.task.key
            self._handler.on_score_answered(gateway_id, request_id)
        elif isinstance(item.command, Generate):
            self._engine.refuse(item.gateway_id, item.command, ErrorCode.INTERNAL_ERROR, _UNHANDLED)
            return
        elif isinstance(item.command, ClearCache):
            gateway_id, request_id = item.gateway_id, item.command.request_id
        else:
            return
        code = ErrorCode.INTERNAL_ERROR
        failure = Failure(request_id=request_id, code=code, message=_UNHANDLED)
        self._outlet.send(gateway_id, failure)

    def _handle(self, item: InboxItem) -> None:
        if isinstance(item, StopLoop):
            self._is_stopping = True
        elif isinstance(item, GatewayLost):
            self._engine.forget_gateway(item.gateway_id)
            self._isolation.forget_gateway(item.gateway_id)
            self._windows.pop(item.gateway_id, None)
            self._cache_reporter.forget_gateway(item.gateway_id)
            self._orphans.on_gateway_lost(item.gateway_id)
        elif isinstance(item, ScoreCommand):
            self._score(item.task)
        elif isinstance(item.command, Cancel):
            self._engine.cancel_score(item.gateway_id, item.command.request_id)
        elif isinstance(item.command, Generate):
            if not item.is_abandoned:
                self._generate(item, item.command)
        elif isinstance(item.command, Extend):
            self._engine.extend(item.gateway_id, item.command)
        elif isinstance(item.command, OrphanUsageNoted):
            self._orphans.on_noted(item.command.report_id)
        elif isinstance(item.command, ClearCache):
            num_blocks = self._engine.clear_cache()
            cleared = CacheCleared(request_id=item.command.request_id, num_blocks=num_blocks)
            self._outlet.send(item.gateway_id, cleared)
        else:
            self._engine.abort(item.gateway_id, item.command)

    def _score(self, task: ScoreTask) -> None:
        gateway_id, request_id = task.key
        held = self._engine.held()
        reason = ""
        if not self._handler.admits(gateway_id, held, task.num_held_tokens):
            reason = "The gateway has no credit left here for so many questions."
        elif not self._isolation.admits(
            (gateway_id, request_id, ALL_CHOICES), is_alone=False, num_unfinished=0
        ):
            reason = "A request runs alone here, or is about to; please try again."
        if reason:
            code = ErrorCode.CREDIT_EXCEEDED
            self._handler.on_score_answered(gateway_id, request_id)
            self._outlet.send(gateway_id, Failure(request_id=request_id, code=code, message=reason))
        else:
            self._engine.score(task)

    def _generate(self, item: GatewayCommand, command: Generate) -> None:
        gateway_id, accepted = item.gateway_id, item.accepted
        if self._engine.knows(gateway_id, command):
            # What is worked on or over already costs no credit, and has its one end elsewhere.
            self._engine.add(gateway_id, command, received_at=item.received_at)
            return
        if isinstance(accepted, PenstockError):
            self._engine.refuse(
                gateway_id, command, accepted.code, accepted.message, param=accepted.param
            )
            return
        held = self._engine.held()
        num_new_tokens = len(command.prompt_token_ids) + len(command.output_token_ids)
        if not self._handler.admits(gateway_id, held, num_new_tokens):
            num_choices, num_tokens = held.get(gateway_id, (0, 0))
            window = self._handler.window(gateway_id, held)
            assert window is not None, "without a policy everything is admitted"
            self._engine.refuse(
                gateway_id,
                command,
                ErrorCode.CREDIT_EXCEEDED,
                f"The gateway has {num_choices} requests with {num_tokens} tokens here; its"
                f" credit is {window.max_requests} and {window.max_tokens}.",
            )
            return
        if not self._isolation.admits(
            (gateway_id, command.request_id, command.choice),
            is_alone=command.is_alone,
            num_unfinished=self._engine.num_unfinished,
        ):
            self._engine.refuse(
                gateway_id,
                command,
                ErrorCode.CREDIT_EXCEEDED,
                "A request runs alone here, or is about to; please try again.",
            )
            return
        self._orphans.on_generate(gateway_id, command)
        self._engine.add(gateway_id, command, received_at=item.received_at, accepted=accepted)

    def _reporting_gateway(self) -> str | None:
        for gateway_id in self._outlet.gateway_ids():
            if self._outlet.gateway_version(gateway_id) >= ORPHAN_USAGE_VERSION:
                return gateway_id
        return None

    def _report_orphans(self) -> None:
        due = self._orphans.next_due()
        if due is not None and due <= self._clock():
            gateway_id = self._reporting_gateway()
            if gateway_id is None:
                self._orphans.postpone()
            else:
                self._outlet.send(gateway_id, self._orphans.report())

    def _share_out(self, told: Container[str], load: Load) -> None:
        """Something was freed: tell the gateways that have no output, or only others would ask."""
        held = self._engine.held()
        for gateway_id in self._outlet.gateway_ids():
            window = self._handler.window(gateway_id, held)
            if gateway_id not in told and window != self._windows.get(gateway_id):
                self._send(gateway_id, GatewayOutput(), load)

    def _send(self, gateway_id: str, output: GatewayOutput, load: Load) -> None:
        self._isolation.on_output(gateway_id, output.deltas, output.ends)
        self._orphans.on_output(gateway_id, output.deltas, output.ends)
        window = self._handler.window(gateway_id, self._engine.held())
        self._windows[gateway_id] = window
        self._outlet.send(
            gateway_id,
            StepOutput(
                deltas=tuple(output.deltas),
                ends=tuple(output.ends),
                progress_counter=self._handler.progress_counter(),
                load=load,
                credits=window,
            ),
        )
        for answer in output.answers:
            self._handler.on_score_answered(gateway_id, answer.request_id)
            self._outlet.send(gateway_id, answer)

"""An engine that tells a token a step, and counts what it told of each request."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from engine_worker.serving.orphans import OrphanTracker
from protocol.wire.messages import (
    Abort,
    Delta,
    EngineCommand,
    Failure,
    Finished,
    Generate,
    OrphanUsageNoted,
    StepOutput,
    Usage,
)
from tests.fakes.fake_workers import FakeEngine

STEP_S: Final = 0.004


class CountingEngine(FakeEngine):
    """Tells one token a step of each choice, and remembers how many it told of each request."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, text=None, max_requests=512)
        self.prompt_tokens: Counter[str] = Counter()
        self.completion_tokens: Counter[str] = Counter()
        self._open: dict[tuple[str, str, int], Generate] = {}
        self._orphans = OrphanTracker(self.worker.instance_id)
        self._timer: asyncio.Task[None] | None = None

    def start(self, *, announce: bool = True) -> None:
        """Begin to tell tokens, too."""
        super().start(announce=announce)
        self._timer = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
        await self.stop()

    def answer(self, command: EngineCommand) -> None:
        """One command, in the worker's thread; what is open is changed there alone."""
        if isinstance(command, Generate):
            self._open[self.gateway_id, command.request_id, command.choice] = command
            self._orphans.on_generate(self.gateway_id, command)
            self.prompt_tokens[command.request_id] += len(command.prompt_token_ids)
        elif isinstance(command, Abort):
            for key in [
                key for key in self._open if key[:2] == (self.gateway_id, command.request_id)
            ]:
                self._over(key, "abort")
        elif isinstance(command, OrphanUsageNoted):
            self._orphans.on_noted(command.report_id)
        else:
            super().answer(command)
        self.commands.clear()

    def on_gateway_lost(self, gateway_id: str) -> None:
        """Its choices end, and are reported to the next one."""
        for key in [key for key in self._open if key[0] == gateway_id]:
            del self._open[key]
        self._orphans.on_gateway_lost(gateway_id)

    @property
    def has_orphans(self) -> bool:
        """Whether something isn't known to be safe at the auth worker."""
        return len(self._orphans) > 0

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(STEP_S)
            self.worker.call_soon(self._step)

    def _step(self) -> None:
        due_at = self._orphans.next_due()
        if due_at is not None and due_at <= time.monotonic():
            gateways = self.worker.gateway_ids()
            if gateways:
                self.worker.send(gateways[0], self._orphans.report())
            else:
                self._orphans.postpone()
        for key, generate in list(self._open.items()):
            made = self.completion_tokens[generate.request_id]
            if made >= min(generate.lease_tokens, generate.sampling.max_tokens or 16):
                self._over(key, "length")
                continue
            self.completion_tokens[generate.request_id] += 1
            delta = Delta(
                request_id=generate.request_id,
                choice=generate.choice,
                attempt=generate.attempt,
                text="x",
                token_ids=(made,),
                token_ends=(made + 1,),
            )
            self._tell(key[0], StepOutput(deltas=(delta,)), [delta], [])

    def _over(self, key: tuple[str, str, int], reason: Any) -> None:
        generate = self._open.pop(key)
        end = Finished(
            request_id=generate.request_id,
            choice=generate.choice,
            attempt=generate.attempt,
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(generate.prompt_token_ids),
                completion_tokens=self.completion_tokens[generate.request_id],
            ),
        )
        self._tell(key[0], StepOutput(ends=(end,)), [], [end])

    def _tell(
        self,
        gateway_id: str,
        output: StepOutput,
        deltas: Sequence[Delta],
        ends: Sequence[Finished | Failure],
    ) -> None:
        self.worker.send(gateway_id, output)
        self._orphans.on_output(gateway_id, deltas, ends)

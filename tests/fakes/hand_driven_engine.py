"""A real engine worker on a model runner without a model; it computes when the test says so."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine_worker.core.credits import CreditPolicy
from engine_worker.core.engine import RESUME_VERSION, Engine
from engine_worker.serving.handler import EngineHandler
from engine_worker.serving.step_loop import StepLoop
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.preparation import PromptPreparer
from protocol.wire.codec import engine_command_decoder
from protocol.wire.endpoints import parse_endpoint
from protocol.wire.messages import Credits, EngineCommand, EngineOffer
from protocol.wire.worker import Worker, WorkerSettings
from protocol.wire.worker_loop import EXIT_FAILED
from tests.fakes.fake_runner import DeterministicFakeRunner, hashed_token
from tests.fakes.running_gateway import RunningGateway
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
# Only bytes of ASCII and of the beginnings and continuations of longer characters: no specials.
NEXT_TOKEN = hashed_token(250)


class HandDrivenEngine:
    """All of the engine process but its step thread; `step` is one round of it.

    Args:
        directories: Of the gateways' sockets.
        max_model_len: Prompt and output together.
        runner_options: For the runner.
    """

    def __init__(self, *directories: Path, max_model_len: int = 200, **runner_options: Any) -> None:
        self.runner = DeterministicFakeRunner(NEXT_TOKEN, **runner_options)
        self.handler = EngineHandler()
        self.worker: Worker[EngineCommand] = Worker(
            role="engine",
            decoder=engine_command_decoder(),
            handler=self.handler,
            endpoints=tuple(
                parse_endpoint(f"ipc://{directory}/engine", setting="test", secured=False)
                for directory in directories
            ),
            settings=WorkerSettings(heartbeat_interval_s=0.05, handle_signals=False),
        )
        self.handler.connect(self.worker)
        self._engine = Engine(
            self.runner, TOKENIZER, vocab_size=TOKENIZER.num_tokens, max_model_len=max_model_len
        )
        self._loop = StepLoop(
            self._engine, self.handler, self.worker, engine_id=self.worker.instance_id
        )
        self._max_model_len = max_model_len

    async def start(self, *gateways: RunningGateway) -> None:
        """Announce, and wait until the gateways give it work."""
        preparer = PromptPreparer(
            TOKENIZER,
            ChatTemplate(TOKENIZER, "demo"),
            vocab_size=TOKENIZER.num_tokens,
            max_model_len=self._max_model_len,
            block_size=self.runner.block_size,
        )
        policy = CreditPolicy(8, 10**6, self._max_model_len)
        self.handler.serve(preparer, policy, self._engine.grammars, self._engine.acceptor)
        self.worker.start()
        self.worker.announce(
            EngineOffer(
                model="demo",
                fingerprint="fake-runner",
                resume_version=RESUME_VERSION,
                max_model_len=self._max_model_len,
                created=0,
                credits=Credits(max_requests=8, max_tokens=10**6),
                has_chat_template=True,
            )
        )
        for gateway in gateways:
            await gateway.until(lambda: self._is_known(gateway))  # noqa: B023 - awaited here

    def _is_known(self, gateway: RunningGateway) -> bool:
        return any(
            peer.instance_id == self.worker.instance_id and peer.takes_work
            for peer in gateway.application.peers()
        )

    @property
    def num_orphans(self) -> int:
        """Streams of lost gateways that are still to be reported."""
        return len(self._loop._orphans)

    async def step(self) -> None:
        """One round: commands, one step, outputs."""
        await asyncio.to_thread(self._loop.run_once, block=False)

    async def has_received(self, num_streams: int) -> None:
        """Run until so many streams are under way."""
        while self.handler.status.num_unfinished < num_streams:
            await self.step()
            await asyncio.sleep(0.001)

    async def crash(self) -> None:
        """End as a worker that broke."""
        await asyncio.to_thread(self.worker.stop, "broke", EXIT_FAILED)
        self.handler.close()

    def sampled_positions(self) -> list[int]:
        """The positions, prompt included, of every token that was sampled."""
        return [
            row.start + len(row.token_ids)
            for batch in self.runner.batches
            for row in batch.rows
            if row.sample
        ]


def expected_tokens(prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What the runner answers to a prompt when nothing happens."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + num_tokens:
        tokens.append(NEXT_TOKEN(tokens))
    return tokens[len(prompt) :]

"""Two gateways and three engines without sockets: full batches, no overflow, no starving."""

import asyncio
from collections import Counter

from engine_worker.core.credits import CreditPolicy
from engine_worker.core.engine import Engine
from engine_worker.serving.handler import EngineHandler
from engine_worker.serving.step_loop import StepLoop
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.preparation import PromptPreparer
from gateway.dispatch.admission import Admission
from gateway.dispatch.slots import EngineHandle, Slot
from protocol.version import PROTOCOL_VERSION, ProtocolVersion
from protocol.wire.messages import (
    Credits,
    EngineOffer,
    Failure,
    Generate,
    Message,
    SamplingParams,
    StepOutput,
)
from protocol.wire.peers import Peer
from tests.fakes.fake_runner import DeterministicFakeRunner, hashed_token
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
MAX_NUM_SEQS = 4
POLICY = CreditPolicy.for_engine(max_num_seqs=MAX_NUM_SEQS, num_kv_tokens=400, max_model_len=50)
OFFER = EngineOffer(
    model="m",
    fingerprint="f",
    resume_version=1,
    max_model_len=50,
    created=0,
    credits=Credits(max_requests=POLICY.max_requests, max_tokens=POLICY.max_tokens),
    max_num_seqs=MAX_NUM_SEQS,
)


class SimulatedEngine:
    """A real engine, handler and step loop; messages are delivered by the test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.now = 0.0
        self.gateways: list[str] = []
        self.sent: list[tuple[str, Message]] = []
        self.runner = DeterministicFakeRunner(
            hashed_token(250), num_blocks=100, max_num_seqs=MAX_NUM_SEQS
        )
        self.engine = Engine(
            self.runner, TOKENIZER, vocab_size=258, max_model_len=50, clock=lambda: self.now
        )
        self.handler = EngineHandler(clock=lambda: self.now)
        self.handler.connect(self)
        preparer = PromptPreparer(
            TOKENIZER,
            ChatTemplate(TOKENIZER, "m"),
            vocab_size=258,
            max_model_len=50,
            block_size=4,
        )
        self.handler.serve(preparer, POLICY, self.engine.grammars, self.engine.acceptor)
        self.loop = StepLoop(self.engine, self.handler, self, clock=lambda: self.now)

    def send(self, gateway_id: str, message: Message) -> None:
        self.sent.append((gateway_id, message))

    def gateway_ids(self) -> tuple[str, ...]:
        return tuple(self.gateways)

    def gateway_version(self, _gateway_id: str) -> ProtocolVersion:
        return PROTOCOL_VERSION


class SimulatedGateway:
    """Real admission; its clients send one request after the other while it is busy."""

    def __init__(self, name: str, engines: list[SimulatedEngine]) -> None:
        self.name = name
        self.engines = {engine.name: engine for engine in engines}
        self.handles = [EngineHandle(peer(engine.name), OFFER) for engine in engines]
        self.admission = Admission(lambda _: self.handles, 10**6, lambda: 0.0)
        self.waiting: set[asyncio.Task[Slot]] = set()
        self.slots: dict[str, Slot] = {}
        self.num_sent = 0
        self.num_done = 0
        self.num_refused = 0
        for engine in engines:
            engine.gateways.append(name)

    def ask(self, num_requests: int) -> None:
        for _ in range(num_requests):
            request = self.admission.acquire("m", tenant="t", priority=0, tokens=12)
            self.waiting.add(asyncio.ensure_future(request))

    def hear_heartbeats(self) -> None:
        for handle in self.handles:
            engine = self.engines[handle.peer.instance_id]
            handle.peer.credits = engine.handler.credits(self.name)
        self.admission.pump("m")

    def send_admitted(self) -> None:
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.remove(task)
            slot = task.result()
            self.num_sent += 1
            request_id = str(self.num_sent)
            self.slots[request_id] = slot
            generate = Generate(
                request_id=request_id,
                choice=0,
                attempt=1,
                prompt_token_ids=tuple(self.name.encode()) * 4,
                sampling=SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True),
                lease_tokens=8,
                deadline_s=1e6,
            )
            self.engines[slot.engine.peer.instance_id].handler.on_command(self.name, generate)

    def take(self, engine: str, output: StepOutput, *, asks_again: bool) -> None:
        handle = next(one for one in self.handles if one.peer.instance_id == engine)
        handle.peer.credits, handle.peer.load = output.credits, output.load
        for end in output.ends:
            self.num_refused += isinstance(end, Failure)
            self.num_done += not isinstance(end, Failure)
            self.admission.release(self.slots.pop(end.request_id))
            if asks_again:
                self.ask(1)
        self.admission.pump("m")


def peer(name: str) -> Peer:
    return Peer(
        identity=name.encode(),
        role="engine",
        instance_id=name,
        protocol_version=PROTOCOL_VERSION,
        build="",
        last_heard=0.0,
        progress_since=0.0,
        phase_since=0.0,
        phase="ready",
        engine=OFFER,
    )


class World:
    def __init__(self) -> None:
        self.engines = [SimulatedEngine(f"e{number}") for number in range(3)]
        self.gateways = [SimulatedGateway(name, self.engines) for name in ("a", "b")]
        self.most_held = 0

    async def rounds(self, count: int) -> Counter[str]:
        """Steps of every engine; how many requests of each gateway ended, and how many ran."""
        before = {gateway.name: gateway.num_done for gateway in self.gateways}
        counts: Counter[str] = Counter()
        for number in range(count):
            for gateway in self.gateways:
                if number % 10 == 0:
                    gateway.hear_heartbeats()
                # Slots are handed over by the event loop.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                gateway.send_admitted()
            for engine in self.engines:
                engine.now += 0.01
                engine.loop.run_once(block=False)
                self.most_held = max(self.most_held, engine.engine.num_unfinished)
                if engine.runner.batches:
                    counts["rows"] += len(engine.runner.batches.pop().rows)
                self.deliver(engine)
        for gateway in self.gateways:
            counts[gateway.name] = gateway.num_done - before[gateway.name]
        return counts

    def deliver(self, engine: SimulatedEngine) -> None:
        sent, engine.sent = engine.sent, []
        for gateway_id, message in sent:
            if isinstance(message, StepOutput):
                gateway = next(one for one in self.gateways if one.name == gateway_id)
                gateway.take(engine.name, message, asks_again=True)

    async def close(self) -> None:
        for gateway in self.gateways:
            for task in gateway.waiting:
                task.cancel()
            await asyncio.gather(*gateway.waiting, return_exceptions=True)


async def test_two_gateways_fill_three_engines_and_neither_starves() -> None:
    world = World()
    first, second = world.gateways
    first.ask(60)
    await world.rounds(20)
    alone = await world.rounds(40)
    # Every slot of three engines worked nearly always, for one gateway of two.
    assert alone["rows"] > 0.9 * 40 * 3 * MAX_NUM_SEQS
    second.ask(60)
    await world.rounds(40)
    both = await world.rounds(120)
    assert both["rows"] > 0.9 * 120 * 3 * MAX_NUM_SEQS
    share = both["b"] / (both["a"] + both["b"])
    assert 0.45 < share < 0.55
    # A batch that runs and a batch that waits, at most; nothing was refused in vain.
    assert world.most_held <= 2 * MAX_NUM_SEQS
    assert first.num_refused + second.num_refused == 0
    await world.close()

"""The real engine process over ipc, with the bundled model: prompts in, text out, clean ends."""

import asyncio
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from engine_worker.demo import demo_model_path
from protocol.errors import ErrorCode
from protocol.wire.codec import engine_event_decoder
from protocol.wire.messages import (
    Abort,
    CachedBlocks,
    Cancel,
    EngineEvent,
    EngineOffer,
    Extend,
    Failure,
    Finished,
    Generate,
    Message,
    Prepare,
    Prepared,
    SamplingParams,
    StepOutput,
)
from protocol.wire.peers import Peer, PeerEvent
from protocol.wire.role_server import RoleServer
from tests.fakes.quick_compile import QUICK

pytestmark = pytest.mark.process

WAIT_S = 240.0
EventT = TypeVar("EventT")

# Few and small programs that compile in seconds; tests/e2e/test_the_supervisor_is_killed.py has an
# engine that compiles those of its usual mode as users' engines do.
SMALL = {
    "XLA_FLAGS": QUICK,
    "PENSTOCK_MAX_NUM_SEQS": "4",
    "PENSTOCK_MAX_NUM_BATCHED_TOKENS": "32",
    "PENSTOCK_MAX_MODEL_LEN": "512",
    "PENSTOCK_KV_MEMORY": "16MiB",
    "PENSTOCK_LOG_FORMAT": "human",
    "PENSTOCK_LOG_LEVEL": "warning",
}


class EngineHarness:
    """A gateway's engine socket in a thread, and one engine process."""

    def __init__(self, cache_dir: Path, **environ: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pst-"))
        self.events: queue.Queue[EngineEvent] = queue.Queue()
        self.cached_blocks: set[bytes] = set()
        self.peer_events: queue.Queue[PeerEvent] = queue.Queue()
        self.peer: Peer | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        endpoint = f"ipc://{self.folder}/engine"
        self._server = RoleServer(
            "engine",
            endpoint,
            engine_event_decoder(),
            instance_id="gateway-test",
            heartbeat_interval_s=0.1,
        )
        self._call(
            lambda: self._server.start(
                self._loop, on_event=self._on_event, on_peer=self.peer_events.put
            )
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engine_worker"],
            env={
                **os.environ,
                **SMALL,
                "PENSTOCK_ENGINE_ENDPOINT": endpoint,
                "PENSTOCK_COMPILE_CACHE_DIR": str(cache_dir),
                **environ,
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_ready(self) -> list[str]:
        """The phases that were announced on the way."""
        phases: list[str] = []
        while True:
            event = self.peer_events.get(timeout=WAIT_S)
            assert event.kind != "lost", self.process.communicate()[1]
            if event.peer.phase not in phases:
                phases.append(event.peer.phase)
            if event.kind == "ready":
                self.peer = event.peer
                return phases

    def _on_event(self, _peer: Peer, event: EngineEvent) -> None:
        # What is cached is reported whenever something was computed, between all else.
        if isinstance(event, CachedBlocks):
            self.cached_blocks.difference_update(event.removed)
            self.cached_blocks.update(event.added)
        else:
            self.events.put(event)

    @property
    def offer(self) -> EngineOffer:
        assert self.peer is not None
        assert self.peer.engine is not None
        return self.peer.engine

    def send(self, message: Message) -> None:
        peer = self.peer
        assert peer is not None
        self._call(lambda: self._server.send(peer, message))

    def expect(self, kind: type[EventT]) -> EventT:
        """The next event that is one of a kind; none is lost of those before it."""
        event = self.events.get(timeout=WAIT_S)
        assert isinstance(event, kind), event
        return event

    def prepare(self, text: str, **changes: Any) -> tuple[int, ...]:
        messages = json.dumps([{"role": "user", "content": text}])
        command: dict[str, Any] = {"kind": "chat", "messages_json": messages, **changes}
        self.send(Prepare(request_id="p", deadline_s=30.0, **command))
        return self.expect(Prepared).prompt_token_ids

    def collect(self, num_ends: int) -> tuple[dict[str, str], dict[str, Finished | Failure]]:
        """Texts and ends by request, once so many have ended."""
        texts: dict[str, str] = {}
        ends: dict[str, Finished | Failure] = {}
        while len(ends) < num_ends:
            output = self.expect(StepOutput)
            for delta in output.deltas:
                assert delta.request_id not in ends
                texts[delta.request_id] = texts.get(delta.request_id, "") + delta.text
            for end in output.ends:
                assert end.request_id not in ends
                ends[end.request_id] = end
        return texts, ends

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Signal the process; its exit code and what it wrote to stderr."""
        self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, stderr

    def close(self) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGKILL)
        self._call(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self, function: Callable[[], Any]) -> None:
        async def call() -> None:
            function()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(timeout=60)


@pytest.fixture(scope="module")
def harness(cache_dir: Path) -> Iterator[EngineHarness]:
    harness = EngineHarness(cache_dir)
    try:
        phases = harness.wait_until_ready()
        assert phases[-1] == "ready"
        assert set(phases) & {"loading", "compiling"}, phases
        yield harness
    finally:
        harness.close()


def generate(request_id: str, prompt: tuple[int, ...], **changes: Any) -> Generate:
    options: dict[str, Any] = {
        "choice": 0,
        "attempt": 1,
        "sampling": SamplingParams(temperature=0.0, max_tokens=20),
        "lease_tokens": 500,
        "deadline_s": 60.0,
        **changes,
    }
    return Generate(request_id=request_id, prompt_token_ids=prompt, **options)


def endless() -> SamplingParams:
    return SamplingParams(temperature=0.0, ignore_eos=True)


def test_the_offer_says_what_is_served(harness: EngineHarness) -> None:
    offer = harness.offer
    assert (offer.model, offer.architecture) == ("penstock-demo", "LlamaForCausalLM")
    assert (offer.max_model_len, offer.block_size) == (512, 32)
    assert 8 <= offer.max_token_bytes <= 64
    assert json.loads(offer.tokenizer_info_json)["eos_token"] == "<|im_end|>"
    assert offer.tool_format == "hermes"
    assert set(offer.capabilities) == {"completions", "chat", "tools", "embeddings", "scores"}


def test_a_prepared_chat_is_answered_the_same_alone_and_in_company(harness: EngineHarness) -> None:
    prompts = [harness.prepare(text) for text in ("Hello!", "Who are you?", "What is 12 + 30?")]
    alone = {}
    for index, prompt in enumerate(prompts):
        harness.send(generate(str(index), prompt))
        texts, ends = harness.collect(1)
        end = ends[str(index)]
        assert isinstance(end, Finished)
        assert end.usage.prompt_tokens == len(prompt)
        assert 0 < end.usage.completion_tokens <= 20
        alone.update(texts)
    assert all(alone.values())
    for index, prompt in enumerate(prompts):
        harness.send(generate(f"again-{index}", prompt))
    texts, _ = harness.collect(3)
    assert {name.removeprefix("again-"): text for name, text in texts.items()} == alone


def test_a_computed_prompt_is_found_again_and_reported_by_the_names_that_it_was_prepared_with(
    harness: EngineHarness,
) -> None:
    harness.send(Prepare(request_id="p", kind="completion", prompt="word " * 80, deadline_s=60.0))
    prepared = harness.expect(Prepared)
    assert prepared.block_hashes
    num_cached = []
    for name in ("cold", "warm"):
        harness.send(generate(name, prepared.prompt_token_ids))
        _, ends = harness.collect(1)
        usage = ends[name].usage
        assert usage is not None
        num_cached.append(usage.cached_tokens)
    num_full = (len(prepared.prompt_token_ids) - 1) // 32 * 32
    assert num_cached == [0, num_full]
    # The report follows the output of the last step.
    harness.prepare("Hello!")
    assert set(prepared.block_hashes) <= harness.cached_blocks


def test_costly_prompts_keep_nobody_waiting_and_cancelled_ones_are_never_answered(
    harness: EngineHarness,
) -> None:
    costly: dict[str, Any] = {
        "kind": "count",
        "prompt": "many words " * 80_000,
        "deadline_s": 60.0,
    }
    for number in range(6):
        harness.send(Prepare(request_id=f"costly {number}", tenant="flood", **costly))
    for number in range(1, 6):
        harness.send(Cancel(request_id=f"costly {number}"))
    harness.send(Prepare(request_id="small", kind="count", prompt="a word", deadline_s=60.0))
    answered = [harness.expect(Prepared).request_id for _ in range(2)]
    assert answered == ["small", "costly 0"]
    # Whatever would come of the others comes before this.
    harness.send(Prepare(request_id="last", tenant="flood", **costly))
    assert harness.expect(Prepared).request_id == "last"


def test_a_seeded_sample_is_repeated_by_its_seed(harness: EngineHarness) -> None:
    prompt = harness.prepare("Hello!")
    sampling = SamplingParams(temperature=2.0, seed=-5, max_tokens=24, ignore_eos=True)
    for name in ("first", "second"):
        harness.send(generate(name, prompt, sampling=sampling))
    harness.send(generate("choice", prompt, sampling=sampling, choice=1))
    texts, _ = harness.collect(3)
    assert texts["first"] == texts["second"] != texts["choice"]


def test_an_abort_ends_a_running_request_with_its_usage(harness: EngineHarness) -> None:
    prompt = harness.prepare("Hello!")
    harness.send(generate("long", prompt, sampling=endless()))
    harness.expect(StepOutput)
    harness.send(Abort(request_id="long", attempt=1))
    _, ends = harness.collect(1)
    end = ends["long"]
    assert isinstance(end, Finished)
    assert end.finish_reason == "abort"
    assert 0 < end.usage.completion_tokens < 500


def test_a_lease_pauses_generation_until_it_grows(harness: EngineHarness) -> None:
    prompt = harness.prepare("Hello!")
    sampling = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    command = generate("l", prompt, sampling=sampling, lease_tokens=2, want_token_ids=True)
    harness.send(command)
    counts = [len(harness.expect(StepOutput).deltas[0].token_ids) for _ in range(2)]
    assert counts == [1, 1]
    harness.send(Prepare(request_id="q", kind="count", prompt="x", deadline_s=30.0))
    harness.expect(Prepared)
    harness.send(Extend(request_id="l", choice=0, attempt=1, lease_tokens=6))
    _, ends = harness.collect(1)
    end = ends["l"]
    assert isinstance(end, Finished)
    assert end.usage.completion_tokens == 6


def test_wrong_requests_fail_one_by_one_and_the_engine_goes_on(harness: EngineHarness) -> None:
    harness.send(Prepare(request_id="p", kind="chat", messages_json="[]", deadline_s=30.0))
    assert harness.expect(Failure).code is ErrorCode.INVALID_REQUEST
    harness.send(Prepare(request_id="p", kind="completion", prompt="a" * 10**6, deadline_s=30.0))
    assert harness.expect(Failure).code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    harness.send(generate("bad", (10**6,)))
    _, ends = harness.collect(1)
    assert isinstance(ends["bad"], Failure)
    harness.send(generate("good", harness.prepare("Hello!")))
    _, ends = harness.collect(1)
    assert isinstance(ends["good"], Finished)


def test_a_broken_checkpoint_is_one_line_exit_code_one_and_a_goodbye(
    cache_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(demo_model_path(), folder, ignore=shutil.ignore_patterns("*.py*", "__*"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    harness = EngineHarness(cache_dir, PENSTOCK_MODEL_PATH=str(folder))
    try:
        _, stderr = harness.process.communicate(timeout=WAIT_S)
        assert harness.process.returncode == 1
        (line,) = stderr.strip().split("\n")
        assert "model.safetensors" in line
        lost = harness.peer_events.get(timeout=60)
        while lost.kind != "lost":
            lost = harness.peer_events.get(timeout=60)
        assert lost.reason == "failed"
        assert "model.safetensors" in lost.message
    finally:
        harness.close()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"PENSTOCK_MODEL_PATH": "/no/such/folder"}, "PENSTOCK_MODEL_PATH"),
        ({"PENSTOCK_MAX_MODEL_LEN": "4096"}, "PENSTOCK_MAX_MODEL_LEN"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_and_exit_code_one(
    cache_dir: Path, environ: dict[str, str], words: str
) -> None:
    harness = EngineHarness(cache_dir, **environ)
    try:
        _, stderr = harness.process.communicate(timeout=WAIT_S)
        assert harness.process.returncode == 1
        (line,) = stderr.strip().split("\n")
        assert words in line
    finally:
        harness.close()


def test_sigterm_finishes_what_runs_and_exits_cleanly(harness: EngineHarness) -> None:
    """The last test of this file: it ends the process that the others share."""
    prompt = harness.prepare("Hello!")
    sampling = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
    harness.send(generate("last", prompt, sampling=sampling))
    harness.expect(StepOutput)
    exit_code, stderr = harness.end(signal.SIGTERM)
    _, ends = harness.collect(1)
    end = ends["last"]
    assert isinstance(end, Finished)
    assert end.usage.completion_tokens == 100
    assert (exit_code, stderr) == (0, "")

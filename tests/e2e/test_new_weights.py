"""`penstock roll`: new weights under one name while clients are served; nothing they notice."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.harness import Harness, eventually, start_harness, stop_harness
from tests.fakes.other_weights import make_other_weights

pytestmark = pytest.mark.process

MODEL = "penstock-demo"
PROMPTS = (
    "What is 12 + 30?",
    "Count from 1 to 20.",
    "Hello!",
    "Sort these numbers: 9 4 7 1",
    "What is the capital of France?",
)


@dataclass(frozen=True)
class Answer:
    """What a client got.

    Attributes:
        fingerprints: All that its chunks named.
        finish_reasons: Of its one choice.
    """

    prompt: str
    text: str
    fingerprints: frozenset[str]
    finish_reasons: tuple[str, ...]


def ask(client: openai.OpenAI, prompt: str, *, is_streaming: bool) -> Answer:
    """One answer of a set length; equal weights give equal text, whoever else is served."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": 40,
        "extra_body": {"ignore_eos": True},
    }
    text, names, reasons = "", set(), []
    if is_streaming:
        for chunk in client.chat.completions.create(**body, stream=True):
            names.add(str(chunk.system_fingerprint))
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reasons += [choice.finish_reason] if choice.finish_reason else []
    else:
        whole = client.chat.completions.create(**body)
        names.add(str(whole.system_fingerprint))
        text = whole.choices[0].message.content or ""
        reasons = [whole.choices[0].finish_reason]
    return Answer(prompt, text, frozenset(names), tuple(reasons))


@dataclass
class Load:
    """Clients that ask one after the other until told to stop, by turns for streams and JSON.

    Attributes:
        pause_s: Of a client between two requests.
        answers: What came.
        failures: What went wrong, without a retry: refusals as well.
    """

    harness: Harness
    num_clients: int
    pause_s: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(number, self.harness.client()))
            for number in range(self.num_clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(180)

    def wait_for(self, num_more: int) -> None:
        """Until so many more answers have come."""
        target = len(self.answers) + num_more
        eventually(lambda: len(self.answers) >= target or bool(self.failures), 180)

    def _work(self, number: int, client: openai.OpenAI) -> None:
        while not self._stop.wait(self.pause_s):
            prompt = PROMPTS[number % len(PROMPTS)]
            number += 1
            try:
                answer = ask(client, prompt, is_streaming=bool(number % 2))
            except (openai.OpenAIError, httpx.HTTPError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                return
            self.answers.append(answer)


def learn(harness: Harness) -> dict[str, Answer]:
    """Each prompt's answer while nothing else goes on."""
    client = harness.client()
    found = {prompt: ask(client, prompt, is_streaming=True) for prompt in PROMPTS}
    assert len({one.fingerprints for one in found.values()}) == 1
    return found


def served(harness: Harness) -> list[str]:
    """The fingerprints that `/ready` tells of the model."""
    (row,) = httpx.get(f"{harness.url}/ready", timeout=10, trust_env=False).json()["models"]
    return list(row["fingerprints"])


def roll(harness: Harness, model: str) -> subprocess.CompletedProcess[str]:
    """The command, as an operator runs it."""
    command = [sys.executable, "-m", "penstock", "roll", model]
    return subprocess.run(
        [*command, "--data-dir", str(harness.data_dir)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_weights_that_no_engine_can_load_change_nothing(mortal: Harness, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    make_other_weights(str(folder))
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1000])
    pids, (name,) = mortal.pids("engine_worker"), served(mortal)
    done = roll(mortal, f"{MODEL}={folder}")
    assert done.returncode == 1
    assert "1 of 1 engines go on with the old weights, 0 serve" in done.stdout
    assert done.stderr == "penstock: The rollout did not reach all engines; see above.\n"
    assert (mortal.pids("engine_worker"), served(mortal)) == (pids, [name])
    assert ask(mortal.client(), "Hello!", is_streaming=False).text


@pytest.mark.timeout(300)
def test_new_weights_come_under_load_and_no_request_fails(mortal: Harness, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    make_other_weights(str(folder))
    # Pauses, so that the engine which starts beside them isn't the slower for them.
    roll_under_load(mortal, f"{MODEL}={folder}", num_engines=1, num_clients=4, pause_s=1.0)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_engines_get_other_weights_under_load_and_go_back(
    tmp_path: Path, cache_dir: Path
) -> None:
    folder = tmp_path / "new"
    make_other_weights(str(folder))
    harness = start_harness(
        tmp_path / "data", cache_dir, "--deterministic", "--engines", "2", "--gateways", "2"
    )
    try:
        first = served(harness)
        roll_under_load(harness, f"{MODEL}={folder}", num_engines=2, num_clients=16)
        second = served(harness)
        kill_an_engine(harness)
        eventually(lambda: served(harness) == second)
        roll_under_load(harness, f"{MODEL}={MODEL}", num_engines=2, num_clients=16)
        assert served(harness) == first
    finally:
        code = stop_harness(harness)
    assert code == 0


def roll_under_load(
    harness: Harness, model: str, *, num_engines: int, num_clients: int, pause_s: float = 0.0
) -> None:
    """Every engine is replaced, no request fails, and each answer is of one set of weights."""
    old_pids, (old_name,) = harness.pids("engine_worker"), served(harness)
    old = learn(harness)
    with Load(harness, num_clients, pause_s) as load:
        load.wait_for(2 * num_clients)
        done = roll(harness, model)
        load.wait_for(2 * num_clients)
    assert load.failures == []
    assert done.returncode == 0, done.stderr
    assert f"{MODEL}: {num_engines} of {num_engines} engines serve " in done.stdout
    eventually(lambda: len(served(harness)) == 1)  # a gateway hears of the last end in a moment
    assert served(harness) != [old_name]
    assert len(harness.pids("engine_worker")) == num_engines
    assert not set(harness.pids("engine_worker")) & set(old_pids)
    new = learn(harness)
    assert any(old[prompt].text != new[prompt].text for prompt in PROMPTS)
    sides: Counter[str] = Counter()
    for answer in load.answers:
        # Text, name of the weights and end.
        assert answer in (old[answer.prompt], new[answer.prompt]), answer
        sides["old" if answer == old[answer.prompt] else "new"] += 1
    # Asked before it began, and after it had ended.
    assert min(sides["old"], sides["new"]) >= num_clients, sides


def kill_an_engine(harness: Harness) -> None:
    """SIGKILL to one, and wait until the server is whole again."""
    (killed, *others) = harness.pids("engine_worker")
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: killed not in harness.pids("engine_worker"))
    eventually(lambda: len(harness.pids("engine_worker")) == 1 + len(others))
    harness.wait_ready()

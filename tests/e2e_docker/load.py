"""Streaming clients that know beforehand which text they must get, and count what they got."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

import httpx

PROMPTS = (
    "What is 12 + 30?",
    "Count from 1 to 20.",
    "Hello!",
    "Sort these numbers: 9 4 7 1",
    "What is the capital of France?",
    "Count from 3 to 15.",
)
_MAX_TOKENS = 96


def body(prompt: str, max_tokens: int | None) -> dict[str, object]:
    """A greedy streamed request that runs to its token limit, or to its own end without one."""
    asked: dict[str, object] = {
        "model": "penstock-demo",
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "temperature": 0,
    }
    return asked if max_tokens is None else asked | {"max_tokens": max_tokens, "ignore_eos": True}


@dataclass
class Outcome:
    """How one stream went: its text and, if it did not end well, why.

    Attributes:
        base: The address it was open on.
        text: What came.
        problem: None after `[DONE]`.
        refused: A 503 with Retry-After before the first byte, which is no failure.
    """

    base: str
    text: str = ""
    problem: str | None = None
    refused: bool = False


def stream(
    client: httpx.Client,
    base: str,
    key: str,
    prompt: str,
    max_tokens: int | None = _MAX_TOKENS,
    on_begun: Callable[[], object] = lambda: None,
) -> Outcome:
    """One streamed chat completion; `on_begun` is called with the first text."""
    outcome = Outcome(base)
    headers = {"Authorization": f"Bearer {key}"}
    done = False
    try:
        with client.stream(
            "POST", f"{base}/v1/chat/completions", json=body(prompt, max_tokens), headers=headers
        ) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                outcome.refused = (
                    response.status_code == httpx.codes.SERVICE_UNAVAILABLE
                    and "retry-after" in response.headers
                )
                outcome.problem = f"{response.status_code} {response.text[:300]}"
                return outcome
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        outcome.problem = str(event["error"])
                    for choice in event.get("choices", []):
                        text = choice["delta"].get("content") or ""
                        if text and not outcome.text:
                            on_begun()
                        outcome.text += text
    except httpx.TransportError as error:
        outcome.problem = f"{type(error).__name__}: {error}"
    if not done and outcome.problem is None:
        outcome.problem = "the stream broke off"
    return outcome


def learn(base: str, key: str) -> dict[str, str]:
    """The text of each prompt, from a deployment that is left in peace.

    Raises:
        AssertionError: A stream failed.
    """
    with httpx.Client(timeout=120.0) as client:
        texts = {}
        for prompt in PROMPTS:
            outcome = stream(client, base, key, prompt)
            assert outcome.problem is None, outcome
            assert outcome.text, prompt
            texts[prompt] = outcome.text
        return texts


@dataclass
class Tally:
    """What all streams of a load came to."""

    num_right: int = 0
    num_refused: int = 0
    failures: list[str] = field(default_factory=list)


class StreamingLoad:
    """Clients that stream one after the other until told to stop; a context manager.

    Args:
        bases: Addresses, taken in turn by the clients.
        key: An API key.
        texts: Prompt → the text it must give.
        num_clients: Streams open at a time.
        excuse: Whether a stream that was open on an address may fail.
        is_right: Whether a prompt may give a text; None holds it to `texts`.
    """

    def __init__(
        self,
        bases: list[str],
        key: str,
        texts: dict[str, str],
        num_clients: int = 8,
        excuse: Callable[[str], bool] = lambda base: False,
        is_right: Callable[[str, str], bool] | None = None,
    ) -> None:
        self._bases, self._key, self._texts = bases, key, texts
        self._excuse = excuse
        self._is_right = is_right or (lambda prompt, text: text == texts[prompt])
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.tally = Tally()
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True)
            for number in range(num_clients)
        ]

    def __enter__(self) -> "StreamingLoad":
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
            thread.join(300)

    def wait_for(self, num_more: int, timeout_s: float = 180.0) -> None:
        """Until so many more streams have ended well.

        Raises:
            AssertionError: They did not.
        """
        target = self.tally.num_right + num_more
        end = time.monotonic() + timeout_s
        while self.tally.num_right < target:
            assert time.monotonic() < end, f"the load stands still: {self.tally}"
            time.sleep(0.05)

    def _work(self, number: int) -> None:
        prompts = list(self._texts)
        with httpx.Client(timeout=180.0) as client:
            while not self._stop.is_set():
                prompt = prompts[number % len(prompts)]
                base = self._bases[number % len(self._bases)]
                number += 1
                self._count(prompt, stream(client, base, self._key, prompt))

    def _count(self, prompt: str, outcome: Outcome) -> None:
        with self._lock:
            if outcome.refused:
                self.tally.num_refused += 1
            elif outcome.problem is None and self._is_right(prompt, outcome.text):
                self.tally.num_right += 1
                return
            elif not self._excuse(outcome.base):
                what = outcome.problem or f"wrong text {outcome.text!r}"
                self.tally.failures.append(what)
        self._stop.wait(0.2)

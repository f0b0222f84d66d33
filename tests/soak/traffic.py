"""Clients of all kinds, each stream checked against the text that is known beforehand."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from tests.soak.accounts import Seen

MODEL = "penstock-demo"
_MAX_REFUSALS = 60
Ending = Literal["finished", "left", "refused", "unreachable", "gateway_lost", "failed"]
"""`refused` is a 503 that says when to come again, `unreachable` a connection that nobody took."""

_USAGE = {"include_usage": True, "continuous_usage_stats": True}
"""Told beside every piece of the answer, so that what arrived is known when no end comes."""

_WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True)
class Kind:
    """One request that is sent again and again.

    Attributes:
        name: For reports.
        path: Of the route.
        body: Without `stream`, which every kind sets itself.
        leaves_after: Events after which the client goes away; None stays to the end.
    """

    name: str
    path: str
    body: Mapping[str, Any]
    leaves_after: int | None = None


def _chat(name: str, text: str, leaves_after: int | None = None, **fields: Any) -> Kind:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "stream": True,
        "stream_options": _USAGE,
        "seed": 11,
        **fields,
    }
    return Kind(name, "/v1/chat/completions", body, leaves_after)


def kinds(num_tokens: int) -> tuple[Kind, ...]:
    """Requests of every sort; long ones have so many tokens."""
    count = "Count from 1 to 50."
    long = {"max_tokens": num_tokens, "ignore_eos": True}
    return (
        _chat("greedy", count, temperature=0, **long),
        _chat("sampled", "Tell me about rivers.", temperature=1.0, top_p=0.9, **long),
        _chat(
            "penalties",
            "Say something long.",
            temperature=0.8,
            frequency_penalty=0.6,
            presence_penalty=0.4,
            repetition_penalty=1.1,
            **long,
        ),
        _chat("stop", count, temperature=0, stop=["23,", "never said"], max_tokens=num_tokens),
        _chat(
            "choices", "Hello!", temperature=1.2, n=3, max_tokens=num_tokens // 2, ignore_eos=True
        ),
        _chat(
            "tool",
            "What is the weather in Paris?",
            temperature=0,
            tools=[_WEATHER_TOOL],
            max_tokens=num_tokens,
        ),
        Kind(
            "completion",
            "/v1/completions",
            {
                "model": MODEL,
                "prompt": "One, two, three,",
                "stream": True,
                "stream_options": _USAGE,
                "temperature": 0.7,
                "seed": 5,
                **long,
            },
        ),
        _chat("leaver", count, 6, temperature=0, **long),
    )


@dataclass
class Said:
    """What one choice said."""

    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)

    def add(self, choice: Mapping[str, Any]) -> None:
        """One more chunk's part."""
        delta = choice.get("delta") or {}
        self.content += delta.get("content") or choice.get("text") or ""
        self.reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            while len(self.calls) <= call["index"]:
                self.calls.append(["", ""])
            self.calls[call["index"]][0] += function.get("name") or ""
            self.calls[call["index"]][1] += function.get("arguments") or ""
        if choice.get("finish_reason"):
            self.finish_reasons.append(choice["finish_reason"])

    def is_begin_of(self, other: "Said") -> bool:
        """Whether all that was said so far is how the other begins."""
        calls = list(zip(self.calls, other.calls, strict=False))
        return (
            other.content.startswith(self.content)
            and other.reasoning.startswith(self.reasoning)
            and len(self.calls) <= len(other.calls)
            and all(
                theirs[0].startswith(ours[0]) and theirs[1].startswith(ours[1])
                for ours, theirs in calls
            )
        )


@dataclass
class Answer:
    """One request as the client saw it.

    Attributes:
        request_id: The server's, by the head of its answer; empty when none came.
        response_id: That of the first event, without its prefix.
        event_times: Monotonic seconds of each event with output.
        num_done: `[DONE]` marks.
        prompt_tokens: As the end of the stream tells; output likewise.
        arrived_tokens: Output tokens that the last usage named which came, at the end or before.
        error: Of an error event, an error status or a broken socket.
    """

    kind: Kind
    started_at: float
    ending: Ending = "failed"
    request_id: str = ""
    response_id: str = ""
    said: dict[int, Said] = field(default_factory=dict)
    event_times: list[float] = field(default_factory=list)
    num_done: int = 0
    num_errors: int = 0
    ended_at: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    arrived_tokens: int = 0
    error: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it has begun to answer and not ended."""
        return bool(self.event_times) and not self.ended_at


@dataclass
class Ledger:
    """All that clients saw, counted.

    Attributes:
        wrong: What differed from the known text, a line each.
        delivered_prompt_tokens: Of requests whose usage the client knows; output likewise.
        seen: Request id → what is known of the answer, for the accounts.
        num_lost_early: Answers that died with their gateway before their head, so that their
            clients know no id.
    """

    endings: Counter[str] = field(default_factory=Counter)
    by_kind: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    without_one_end: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    delivered_prompt_tokens: int = 0
    delivered_completion_tokens: int = 0
    num_unknown_usage: int = 0
    seen: dict[str, Seen] = field(default_factory=dict)
    num_lost_early: int = 0

    def take(self, answer: Answer, known: Mapping[str, Answer]) -> None:
        """Count and check one answer."""
        name = answer.kind.name
        self.endings[answer.ending] += 1
        self.by_kind[name] += 1
        if answer.ending == "failed":
            self.failures.append(f"{name}: {answer.error}")
        if answer.ending in ("finished", "failed") and answer.response_id:
            ends = [len(said.finish_reasons) for said in answer.said.values()]
            one_end = answer.num_done == 1 and (
                answer.num_errors == 1 or (all(n == 1 for n in ends) and not answer.num_errors)
            )
            if not one_end:
                self.without_one_end.append(
                    f"{name}: {answer.num_done} [DONE], {answer.num_errors} errors, ends {ends}"
                )
        is_told = bool(answer.completion_tokens)
        if answer.response_id not in ("", answer.request_id):
            self.wrong.append(f"{name}: {answer.response_id} in {answer.request_id}'s answer")
        if answer.request_id:
            self.seen[answer.request_id] = Seen(answer.ending, answer.arrived_tokens, is_told)
        elif answer.ending == "gateway_lost":
            self.num_lost_early += 1
        if is_told:
            self.delivered_prompt_tokens += answer.prompt_tokens
            self.delivered_completion_tokens += answer.completion_tokens
        elif answer.ending not in ("refused", "unreachable"):
            self.num_unknown_usage += 1
        self._check(answer, known.get(name))

    def _check(self, answer: Answer, reference: Answer | None) -> None:
        if reference is None:
            return
        for index, said in answer.said.items():
            expected = reference.said.get(index, Said())
            is_right = (
                said == expected if answer.ending == "finished" else said.is_begin_of(expected)
            )
            if not is_right:
                self.wrong.append(f"{answer.kind.name}[{index}]: {said} is not {expected}")


class Client:
    """Sends requests and reads answers; one connection at a time.

    Args:
        url: The gateway's.
        key: Of the API.
        requests: What it chooses from.
        gateway_turns: Grows when a gateway is told to end, and again when it is gone; a socket that
            dies with it is no failure, nor is one that it never accepted.
    """

    def __init__(
        self, url: str, key: str, requests: Sequence[Kind], gateway_turns: Callable[[], int]
    ) -> None:
        self.requests = requests
        self._gateway_turns = gateway_turns
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(240.0),
            trust_env=False,
        )
        self.current: Answer | None = None

    async def close(self) -> None:
        """Let go of the connection."""
        await self._http.aclose()

    async def ask(self, kind: Kind) -> Answer:
        """Send one request and read its answer to the end."""
        answer = self.current = Answer(kind, time.monotonic())
        turn = self._gateway_turns()
        try:
            async with self._http.stream("POST", kind.path, json=dict(kind.body)) as reply:
                answer.request_id = reply.headers.get("x-penstock-request-id", "")
                if reply.status_code == 503 and "retry-after" in reply.headers:
                    answer.ending = "refused"
                elif reply.status_code != 200:
                    text = (await reply.aread())[:200].decode(errors="replace")
                    answer.error = f"{reply.status_code}: {text}"
                else:
                    await self._read(reply, answer)
        except httpx.TransportError as error:
            when = "in mid-stream" if answer.request_id else "before the first byte"
            answer.error = f"{type(error).__name__} {when} {error}"
            # A death may not have been noticed yet when its sockets break.
            await asyncio.sleep(0.5)
            if not answer.request_id and isinstance(error, httpx.ConnectError):
                answer.ending = "unreachable"
            elif turn % 2 or self._gateway_turns() != turn:
                answer.ending = "gateway_lost"
        answer.ended_at = time.monotonic()
        return answer

    async def _read(self, reply: httpx.Response, answer: Answer) -> None:
        async for line in reply.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                answer.num_done += 1
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                answer.num_errors += 1
                answer.error = str(chunk["error"].get("message"))
                continue
            answer.response_id = str(chunk["id"]).rpartition("-")[2]
            for choice in chunk["choices"]:
                answer.said.setdefault(choice["index"], Said()).add(choice)
            if chunk["choices"]:
                answer.event_times.append(time.monotonic())
            usage = chunk.get("usage")
            if usage:
                answer.arrived_tokens = usage["completion_tokens"]
            if usage and not chunk["choices"]:
                answer.prompt_tokens = usage["prompt_tokens"]
                answer.completion_tokens = usage["completion_tokens"]
            leaves_after = answer.kind.leaves_after
            if leaves_after is not None and len(answer.event_times) >= leaves_after:
                answer.ending = "left"
                return
        if answer.num_done and not answer.num_errors:
            answer.ending = "finished"


class Crowd:
    """Many clients that go on until told to stop.

    Args:
        clients: One task each.
        known: Kind → its answer in the calm.
        seed: Of the choices.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        known: Mapping[str, Answer],
        seed: int,
    ) -> None:
        self.ledger = Ledger()
        self._clients = clients
        self._known = known
        self._seed = seed
        self._is_stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [
            asyncio.create_task(self._live(client, random.Random(self._seed + number)))
            for number, client in enumerate(self._clients)
        ]

    def open_answers(self) -> list[Answer]:
        """Streams that have begun and not ended."""
        current = (client.current for client in self._clients)
        return [answer for answer in current if answer is not None and answer.is_open]

    async def stop(self, timeout_s: float) -> None:
        """Let every running request end, and start no more.

        Raises:
            TimeoutError: A request did not end.
        """
        self._is_stopping = True
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*self._tasks)

    async def _live(self, client: Client, rng: random.Random) -> None:
        while not self._is_stopping:
            answer = await client.ask(rng.choice(client.requests))
            self.ledger.take(answer, self._known)
            if answer.ending in ("refused", "unreachable", "gateway_lost"):
                await asyncio.sleep(rng.uniform(0.1, 0.5))  # what Retry-After asks of clients


async def learn(client: Client) -> dict[str, Answer]:
    """Each kind's whole answer in the calm.

    Raises:
        AssertionError: One did not end well.
    """
    known = {}
    for kind in client.requests:
        patient = Kind(kind.name, kind.path, kind.body)
        answer = await client.ask(patient)
        for _ in range(_MAX_REFUSALS):  # a machine that others use lets engines seem dead at times
            if answer.ending not in ("refused", "unreachable"):
                break
            await asyncio.sleep(1.0)
            answer = await client.ask(patient)
        assert answer.ending == "finished", f"{kind.name}: {answer.error}"
        known[kind.name] = answer
    return known


async def short_requests(clients: Sequence[Client], number: int, say: Callable[[str], None]) -> int:
    """So many one-token requests as fast as they go; each second one has its text parsed.

    Args:
        clients: Of them.
        number: Of requests.
        say: Is told what went wrong.

    Returns:
        How many did not end well.
    """
    short = {"temperature": 0, "max_tokens": 1}
    plain = _chat("short", "Hello!", **short)
    parsed = _chat("short tool", "Hello!", tools=[_WEATHER_TOOL], **short)
    left = iter(range(number))
    failures = 0

    async def work(client: Client) -> None:
        nonlocal failures
        for turn in left:
            answer = await client.ask(parsed if turn % 2 else plain)
            if answer.ending != "finished":
                failures += 1
                say(f"a calm request {answer.ending}: {answer.error} ({answer.response_id})")

    with contextlib.suppress(StopIteration):
        await asyncio.gather(*(work(client) for client in clients))
    return failures

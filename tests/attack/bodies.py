"""Attacks with bodies: dribbled by strangers, or ten megabytes of valid JSON at full speed."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Literal, get_args

from tests.attack.raw_http import Connection, connection, head, post, source_address
from tests.attack.target import CHAT, COMPLETIONS, EMBEDDING_MODEL, EMBEDDINGS, MODEL, Target

BODY_BYTES: Final = 9_900_000
"""Just under the limit of bodies."""
SLOW_BODY_BYTES: Final = 10 * 1024 * 1024
"""Just the limit."""
_DRIBBLE_BYTES: Final = 128 * 1024
_NUM_AT_FULL_SPEED: Final = 4
_NUM_LEAVERS: Final = 12
_TIMES_LEFT: Final = 3
_LEAVES_AFTER_S: Final = 0.2
"""The body is with the gateway then, and its question on the way."""
Shape = Literal["text", "nested", "token ids", "messages", "keys"]


def large_body(shape: Shape, num_bytes: int = BODY_BYTES) -> tuple[str, bytes]:
    """A path, and a valid JSON body for it of nearly so many bytes."""
    if shape == "text":
        return CHAT, _chat("x" * (num_bytes - 200))
    if shape == "nested":
        depth = 200  # deeper is refused by any parser
        one = "[" * depth + "]" * depth
        lists = ",".join([one] * (num_bytes // (2 * depth + 1) - 1))
        return CHAT, _chat("hi")[:-1] + b',"metadata":{"x":[' + lists.encode() + b"]}}"
    if shape == "token ids":
        ids = "1," * (num_bytes // 2 - 100)
        body = f'{{"model":"{MODEL}","max_tokens":1,"prompt":[{ids}1]}}'
        return COMPLETIONS, body.encode()
    if shape == "messages":
        message = '{"role":"user","content":"hi"},'
        messages = (message * (num_bytes // len(message) - 10)).rstrip(",")
        return CHAT, f'{{"model":"{MODEL}","messages":[{messages}]}}'.encode()
    keys = ",".join(f'"k{number}":0' for number in range(num_bytes // 12))
    return CHAT, _chat("hi")[:-1] + b"," + keys.encode() + b"}"


def _chat(text: str) -> bytes:
    message = {"role": "user", "content": text}
    body = {"model": MODEL, "max_tokens": 1, "messages": [message]}
    return json.dumps(body, separators=(",", ":")).encode()


def dribble(
    size: int, caller: Literal["made-up keys", "with and without"]
) -> Callable[[Target], Coroutine[Any, Any, None]]:
    """So many strangers whose bodies of ten megabytes come slowly and lack their last byte."""

    async def run(target: Target) -> None:
        body = _chat("x" * (SLOW_BODY_BYTES - len(_chat(""))))
        # All but the last byte is there when half of the time is over.
        pause_s = target.seconds / 2 / (len(body) / _DRIBBLE_BYTES)

        async def one(number: int, source: str) -> None:
            is_keyless = caller == "with and without" and number % 2
            key = None if is_keyless else target.stranger()
            async with connection(target.port, source) as slow:
                await slow.send(head("POST", CHAT, key, len(body)))
                await _dribble(target, slow, body, pause_s)
            await asyncio.sleep(pause_s)

        await target.crowd(size, one)

    return run


async def _dribble(target: Target, slow: Connection, body: bytes, pause_s: float) -> None:
    """Send all of a body but its last byte, until the time is up or an answer comes."""
    reading = asyncio.ensure_future(slow.answer())
    num_sent = 0
    half = target.until - target.seconds / 2
    try:
        while not target.is_over and not reading.done():
            piece = body[num_sent : min(num_sent + _DRIBBLE_BYTES, len(body) - 1)]
            await slow.send(piece)
            num_sent += len(piece)
            # Who was refused and came again makes up for the time.
            is_late = num_sent < len(body) - 1 and time.monotonic() > half
            await asyncio.wait([reading], timeout=0 if is_late else pause_s)
        if reading.done():
            target.outcome.take(reading.result(), "a slow stranger")
        else:
            target.outcome.counts["unanswered"] += 1
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        target.outcome.counts["body KB sent"] += num_sent // 1000


def at_full_speed(
    caller: Literal["made-up keys", "no key", "a valid key"],
) -> Callable[[Target], Coroutine[Any, Any, None]]:
    """Bodies of ten megabytes in all shapes, one after the other, four at a time."""

    async def run(target: Target) -> None:
        bodies = [large_body(shape) for shape in get_args(Shape)]
        bodies.append((EMBEDDINGS, large_embedding()))

        async def one(number: int, source: str) -> None:
            path, body = target.rng.choice(bodies)
            key = {"made-up keys": target.stranger(), "no key": None}.get(caller, target.key)
            await target.ask(post(path, body, key), f"10 MB with {caller}", source)

        await target.crowd(_NUM_AT_FULL_SPEED, one)

    return run


def large_embedding() -> bytes:
    """Ten megabytes of texts for /v1/embeddings."""
    texts = ["y" * 4800] * 2048
    return json.dumps({"model": MODEL, "input": texts}).encode()


def leave(path: str, make: Callable[[], bytes]) -> Callable[[Target], Coroutine[Any, Any, None]]:
    """Twelve clients send a body, and leave as soon as it has gone out; thrice."""

    async def run(target: Target) -> None:
        request = post(path, make(), target.key)

        async def once(number: int) -> None:
            async with connection(target.port, source_address(number)) as leaver:
                await leaver.send(request)
                await asyncio.sleep(_LEAVES_AFTER_S)
            target.outcome.counts["left"] += 1

        async def one(number: int) -> None:
            for _ in range(_TIMES_LEFT):
                await target.attempt(once(number))

        await target.together(one(number) for number in range(_NUM_LEAVERS))
        await target.rest()

    return run


def prompt_to_tokenize() -> bytes:
    """A text that costs a tokeniser seconds: words that differ."""
    words = " ".join(f"w{number:x}" for number in range(9_600_000 // 8))
    return json.dumps({"model": MODEL, "prompt": words[:9_500_000]}).encode()


def chat_to_truncate() -> bytes:
    """The same as a chat whose prompt may be cut."""
    text = json.loads(prompt_to_tokenize())["prompt"]
    message = {"role": "user", "content": text}
    body = {"model": MODEL, "max_tokens": 1, "messages": [message], "truncate_prompt_tokens": 8}
    return json.dumps(body).encode()


def inputs_to_embed() -> bytes:
    """Two thousand inputs that may be cut."""
    text = json.loads(prompt_to_tokenize())["prompt"]
    inputs = [text[start : start + 4600] for start in range(0, 2000 * 4600, 4600)]
    return json.dumps(
        {"model": EMBEDDING_MODEL, "input": inputs, "truncate_prompt_tokens": -1}
    ).encode()


def ids_to_detokenize() -> bytes:
    """A million token ids."""
    return json.dumps({"model": MODEL, "tokens": [300 + n % 700 for n in range(2**20)]}).encode()


def text_to_parse() -> bytes:
    """Half a million tool calls."""
    call = '<tool_call>{"name":"f","arguments":{"a":[1,2,3]}}</tool_call>'
    text = call * (8_000_000 // len(call))
    return json.dumps({"text": text, "format": "hermes", "reasoning_format": "think"}).encode()

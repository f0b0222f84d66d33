"""Attacks on engines: small requests with huge answers, bombs of grammars, inputs that kill."""

import asyncio
import time
from typing import Any, Final

from tests.attack.raw_http import post, source_address
from tests.attack.target import CHAT, COMPLETIONS, EMBEDDINGS, MODEL, Target

_BOMBS_AT_A_TIME: Final = 30
_BOMB_TIMEOUT_S: Final = 30.0
_MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
"""An amplified answer above it was not bounded; the faults were 37 and 135 MB."""
POISON: Final = ("[[crash]]", "another [[crash]]")
_POISON_PAUSE_S: Final = 0.05
ENGINE_DEATHS_A_PROMPT: Final = 3


def echo_body() -> dict[str, Any]:
    """128 prompts whose every token comes back with twenty likely others."""
    prompt = "one two three four five six seven eight nine ten " * 95
    return {
        "model": MODEL,
        "prompt": [f"{number} {prompt}" for number in range(128)],
        "echo": True,
        "logprobs": 20,
        "max_tokens": 0,
        "truncate_prompt_tokens": 1900,
    }


def choices_body() -> dict[str, Any]:
    """64 choices whose every token comes with twenty likely others."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me a very long story."}],
        "n": 64,
        "max_tokens": 400,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 20,
    }


async def amplify(target: Target) -> None:
    """Requests of some kilobytes whose answers have hundreds of megabytes, two at a time."""
    requests = ((COMPLETIONS, echo_body()), (CHAT, choices_body()))

    async def one(number: int, source: str) -> None:
        path, body = requests[number % 2]
        request = post(path, body, target.key)
        answer = await target.ask(request, "an amplifying request", source, timeout_s=120.0)
        if answer is None:
            return
        target.outcome.counts["answer MB"] += len(answer.body) // 2**20
        if len(answer.body) > _MAX_ANSWER_BYTES:
            target.outcome.blame(
                f"{path}: {len(request) / 1024:.1f} KB were answered with "
                f"{len(answer.body) // 2**20} MB"
            )

    await target.crowd(2, one)


async def poison(target: Target) -> None:
    """One input at which engines die, again and again; half-way another one.

    One at a time: engines die until it is convicted, and the last one must be there for others.
    """
    half = target.until - target.seconds / 2
    while not target.is_over:
        text = POISON[time.monotonic() > half]
        body = {"model": MODEL, "input": ["harmless", text]}
        request = post(EMBEDDINGS, body, target.key)
        answer = await target.ask(request, "poison", source_address(0), excused="poison_request")
        if answer is not None and answer.status == 500:
            target.outcome.counts["convicted"] += 1
        await asyncio.sleep(_POISON_PAUSE_S)


def bomb(kind: int, salt: int) -> dict[str, Any]:
    """Fields with a grammar that costs its engine much: to compile, in states, or at each token.

    Args:
        kind: Which one.
        salt: Makes it another grammar, which no cache knows.
    """
    word = f"z{salt}"
    optional = {f"{word}_{number}": {"type": "string"} for number in range(400)}
    nested: dict[str, Any] = {"type": "string", "pattern": f"^{word}[a-z]*e[a-z]{{20}}$"}
    for depth in range(10):
        nested = {"anyOf": [nested, {"type": "object", "properties": {f"p{depth}": nested}}]}
    bombs: tuple[dict[str, Any], ...] = (
        {"guided_regex": f"{word}(a|b)*a(a|b){{60}}"},
        {"guided_regex": f"{word}[a-z ]*e[a-z ]{{30}}[a-z ]*e[a-z ]{{30}}"},
        {"guided_regex": f"{word}((a{{1,100}}b{{1,100}}){{1,100}}c{{1,100}}){{1,100}}"},
        {"guided_regex": f"{word}(?:\\S+\\s+){{0,200}}\\S+"},
        {"guided_regex": "|".join(f"{word}.*{number}.*x" for number in range(300))},
        {"guided_json": {"type": "object", "properties": optional}},
        {"guided_json": {"enum": [f"{word}{number}" * 8 for number in range(4000)]}},
        {"guided_json": {"type": "array", "minItems": 5000, "items": {"enum": [word]}}},
        {"guided_json": nested},
        {
            "guided_json": {
                "allOf": [
                    {"type": "string", "pattern": f"[a-z]*{word}[a-z]{{{n}}}"} for n in range(12)
                ]
            }
        },
        {"guided_choice": [f"{word} {number} " * 6 for number in range(4000)]},
        {
            "guided_grammar": f'start: e\ne: e "+" e | e e | "(" e ")" | "{word}" | '
            + " | ".join(f"/[a-z]*{number}[a-z]*/" for number in range(60))
        },
        {  # the longer its text, the more ways there are to read it
            "guided_grammar": f'start: s\ns: s s | s s s | C | "{word}"\nC: /(?s:.)/\n',
            "min_tokens": 400,
            "max_tokens": 400,
        },
    )
    return bombs[kind % len(bombs)]


async def grammar_bombs(target: Target) -> None:
    """Thirty costly grammars at a time, each another one, all of one tenant."""

    async def one(number: int, source: str) -> None:
        message = {"role": "user", "content": "Write."}
        body = {"model": MODEL, "messages": [message], "max_tokens": 40}
        body |= bomb(target.rng.randrange(1000), target.rng.randrange(10**9))
        request = post(CHAT, body, target.key)
        await target.ask(request, "a grammar", source, timeout_s=_BOMB_TIMEOUT_S)

    await target.crowd(_BOMBS_AT_A_TIME, one)

"""Values of any length and content, in every place of every route that a client fills."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from tests.attack.raw_http import head, post
from tests.attack.target import CHAT, COMPLETIONS, EMBEDDINGS, MODEL, Target

DIGITS: Final = "9" * 5000
"""More than Python turns into a number."""
_AT_A_TIME: Final = 8
_PATIENCE_S: Final = 3.0
_RAW_VALUES: Final[tuple[bytes, ...]] = (
    DIGITS.encode(),
    b"-" + DIGITS.encode(),
    b"0" * 5000,
    b"x" * 100_000,
    b"\x00",
    b"a\x00b",
    b"\xff\xfe\xfd",
    b"\xed\xa0\x80",
    "٣٤".encode(),
    "²".encode(),
    b"%00",
    b"%ff%fe",
    b"%ED%A0%80",
    b"1e400",
    b"NaN",
    b"",
    b" ",
    b"'\"`${jndi:x}",
    b"../" * 200,
    b"psk-" + b"k" * 60_000,
    b"\xe2\x80\xae" * 100,
)
_JSON_VALUES: Final[tuple[str, ...]] = (
    DIGITS,
    f"-{DIGITS}",
    f"0.{DIGITS}",
    f"1e{DIGITS}",
    "1e400",
    "-1",
    "18446744073709551616",
    "9223372036854775807",
    "1e308",
    "NaN",
    "true",
    "null",
    '""',
    '"\\u0000"',
    '"\\ud800"',
    '"\\udfff\\ud800"',
    f'"{DIGITS}"',
    f'"{"x" * 100_000}"',
    "[]",
    "{}",
    "[[]]",
    "[" * 150 + "]" * 150,
    "[" * 5000 + "]" * 5000,
    '{"a":' * 5000 + "1" + "}" * 5000,
    '[{"type":"text","text":"\\ud800"}]',
    '[{"role":"user","content":"\\u0000\\ud800"}]',
    '{"type":"json_schema","json_schema":{"name":"x","schema":{"$ref":"#"}}}',
    '{"type":"json_object"}',
    '{"999999999999999999999":1}',
    '{"-1":1e308}',
    "[9223372036854775807]",
    "[-1]",
    "[1.5]",
    '["\\ud800"]',
    "[" + "1," * 20_000 + "1]",
)
_HEADERS: Final = (
    "Content-Length",
    "Transfer-Encoding",
    "Content-Encoding",
    "Content-Type",
    "Authorization",
    "X-API-Key",
    "X-Request-ID",
    "X-Forwarded-For",
    "X-Real-IP",
    "Host",
    "Origin",
    "Expect",
    "Accept",
    "Accept-Encoding",
    "Connection",
    "Upgrade",
    "Range",
    "Cookie",
    "traceparent",
    "Keep-Alive",
    "Bad Name",
)
_GETS: Final = (
    "/live",
    "/ready",
    "/health",
    "/ping",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/v1/models",
    "/v1/tools",
    "/v1/admin/keys",
)
ORDINARY_BODIES: Final[dict[str, dict[str, Any]]] = {
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    COMPLETIONS: {"model": MODEL, "prompt": "hi", "max_tokens": 1},
    "/v1/responses": {"model": MODEL, "input": "hi", "max_output_tokens": 1},
    "/v1/messages": {
        "model": MODEL,
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "hi"}],
    },
    EMBEDDINGS: {"model": MODEL, "input": "hi"},
    "/tokenize": {"model": MODEL, "prompt": "hi"},
    "/detokenize": {"model": MODEL, "tokens": [104]},
    "/v1/parse": {"text": "hi", "format": "hermes"},
    "/v1/tools/execute": {"name": "f", "arguments": {}},
    "/v1/admin/keys": {"name": "attack"},
    "/v1/admin/profile": {"model": MODEL, "seconds": 0.01},
}
"""Path → a body that nobody objects to."""
_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    CHAT: (
        *("messages", "model", "n", "max_tokens", "max_completion_tokens", "temperature", "top_p"),
        *("top_k", "min_p", "seed", "stop", "logit_bias", "logprobs", "top_logprobs", "stream"),
        *("stream_options", "tools", "tool_choice", "response_format", "guided_json", "metadata"),
        *("guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "user"),
        *("truncate_prompt_tokens", "chat_template_kwargs", "min_tokens", "stop_token_ids"),
        *("bad_words", "allowed_token_ids", "prompt_logprobs", "priority", "unknown"),
    ),
    COMPLETIONS: ("prompt", "echo", "best_of", "logprobs", "suffix", "n", "max_tokens"),
    "/v1/responses": (
        *("input", "model", "instructions", "tools", "tool_choice", "text", "reasoning", "stream"),
        *("max_output_tokens", "temperature", "include", "metadata", "top_logprobs"),
    ),
    "/v1/messages": (
        *(
            "messages",
            "model",
            "max_tokens",
            "system",
            "tools",
            "tool_choice",
            "thinking",
            "stream",
        ),
        *("stop_sequences", "temperature", "top_p", "top_k", "output_config", "metadata"),
    ),
    EMBEDDINGS: ("input", "dimensions", "encoding_format", "truncate_prompt_tokens", "model"),
    "/tokenize": ("prompt", "messages", "tools", "model", "return_token_strs"),
    "/detokenize": ("tokens", "model"),
    "/v1/parse": ("text", "format", "reasoning_format", "tools", "prompt_tail", "model"),
    "/v1/tools/execute": ("name", "arguments"),
    "/v1/admin/keys": (
        *("name", "role", "tenant", "requests_per_minute", "tokens_per_minute", "expires_at"),
    ),
    "/v1/admin/profile": ("model", "seconds"),
}
Case = tuple[str, bytes]
"""What it is, for reports, and a whole request."""


def cases(key: str, admin_key: str) -> Iterator[Case]:
    """Every bad value in every place, as whole requests."""
    yield from in_headers(key)
    yield from in_addresses(admin_key)
    yield from in_bodies(key, admin_key)
    yield from in_framing(key)


def in_headers(key: str) -> Iterator[Case]:
    """Bad values of headers, known and unknown."""
    for name in _HEADERS:
        for value in _RAW_VALUES:
            text = value.decode("utf-8", "surrogateescape")
            for method, path in (("GET", "/v1/models"), ("POST", CHAT)):
                has_body = method == "POST" and name != "Transfer-Encoding"
                request = head(method, path, key, 2 if has_body else None, {name: text})
                yield f"{name}: {_short(value)} at {path}", request + b"{}" * has_body


def in_addresses(admin_key: str) -> Iterator[Case]:
    """Bad values in paths and queries, and bodies where there are none."""
    for value in _RAW_VALUES:
        text = value.replace(b" ", b"+").decode("utf-8", "surrogateescape")
        for path in (
            f"/v1/admin/keys?limit={text}",
            f"/v1/admin/keys?after={text}",
            f"/v1/models/{text}",
            f"/{text}",
            f"/live?{text}",
        ):
            yield f"GET {_short(path.encode(errors='replace'))}", head("GET", path, admin_key)
        path = f"/v1/admin/keys/{text}/revoke"
        yield f"DELETE {_short(value)}", head("DELETE", path, admin_key)
    for path in _GETS:
        yield f"a body at {path}", head("GET", path, admin_key, 2) + b"{}"
        yield (
            f"{DIGITS[:4]}… bytes at {path}",
            head("GET", path, admin_key, None, {"Content-Length": DIGITS}),
        )


def in_bodies(key: str, admin_key: str) -> Iterator[Case]:
    """Bad values of every field of every route, and bodies that are bad as a whole."""
    for path, fields in _FIELDS.items():
        caller = admin_key if path.startswith("/v1/admin/") else key
        for field in fields:
            rest = {name: value for name, value in ORDINARY_BODIES[path].items() if name != field}
            begin = json.dumps(rest)[:-1] + ("," if rest else "")
            for value in _JSON_VALUES:
                body = f'{begin}"{field}":{value}}}'.encode()
                yield f"{path} {field}: {_short(value.encode())}", post(path, body, caller)
        for whole in (b"", b"\x00", b"\xff", b"[]", b"{", b'{"model":', b"\xef\xbb\xbf{}", b"{}{}"):
            yield f"{path} {_short(whole)}", post(path, whole, caller)


def in_framing(key: str) -> Iterator[Case]:
    """What is no request at all, or hardly."""
    chunked = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
    for size in (b"f" * 40, b"-1", b"zz", b"", DIGITS.encode(), b"0x2"):
        request = head("POST", CHAT, key, headers=chunked) + size + b"\r\n{}\r\n0\r\n\r\n"
        yield f"a chunk of {_short(size)}", request
    yield "a line of nothing", b"\r\n\r\n\r\n\r\n"
    yield "no HTTP", b"\x16\x03\x01\x02\x00\x01\x00" * 20 + b"\r\n\r\n"
    yield "another version", b"GET /live HTTP/9.9\r\n\r\n"
    yield "a long method", b"G" * 70_000 + b" /live HTTP/1.1\r\n\r\n"
    yield "many headers", head("GET", "/live", headers={f"x{n}": "y" for n in range(5000)})
    yield "a key of bytes", head("GET", "/v1/models", "\udcff\udcfe")


def _short(value: bytes) -> str:
    return repr(value if len(value) <= 24 else value[:16] + b"..." + str(len(value)).encode())[1:]


async def send_all(target: Target, every: Iterable[Case]) -> None:
    """All of them, eight at a time."""
    left = iter(every)

    async def worker() -> None:
        for what, request in left:
            # The answer of a request that is not whole may never come.
            await target.ask(request, what, timeout_s=_PATIENCE_S)

    await target.together(worker() for _ in range(_AT_A_TIME))


async def bad_values(target: Target) -> None:
    """All of them once, in random order."""
    every = list(cases(target.key, target.admin_key))
    target.outcome.notes.append(f"{len(every)} requests")
    target.rng.shuffle(every)
    await send_all(target, every)

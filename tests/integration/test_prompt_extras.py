"""Templates of requests, texts around a middle, and salts of caches, from HTTP to the engine."""

from pathlib import Path
from typing import Any

import pytest

from protocol.wire.messages import Generate, Prepare
from tests.fakes.running_gateway import running_gateway

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
MIDDLE = ("chat", "completions", "fill_in_middle")


@pytest.mark.parametrize("is_allowed", [False, True])
async def test_a_template_of_a_request_is_a_setting(socket_dir: Path, is_allowed: bool) -> None:
    async with running_gateway(socket_dir, request_chat_templates=is_allowed) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        chat = await gateway.chat(chat_template=TEMPLATE)
        counted = await gateway.client.post(
            "/tokenize",
            json={
                "messages": [{"role": "user", "content": "?"}],
                "chat_template": TEMPLATE,
            },
        )
        for response in (chat, counted):
            if is_allowed:
                assert response.status_code == 200, response.text
                continue
            assert response.status_code == 400
            error = response.json()["error"]
            assert (error["param"], error["code"]) == ("chat_template", "unsupported_parameter")
            assert "PENSTOCK_REQUEST_CHAT_TEMPLATES" in error["message"]
        sent = [prepare.chat_template for prepare in engine.of(Prepare)]
        assert sent == ([TEMPLATE, TEMPLATE] if is_allowed else [])


@pytest.mark.parametrize("value", ["", 1, "x" * 262_145])
async def test_a_template_that_is_none_names_its_field(socket_dir: Path, value: object) -> None:
    async with running_gateway(socket_dir, request_chat_templates=True) as gateway:
        await gateway.auth()
        await gateway.engine()
        refused = await gateway.chat(chat_template=value)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "chat_template"


async def complete(
    directory: Path, capabilities: tuple[str, ...], **fields: Any
) -> tuple[Any, Any]:
    async with running_gateway(directory) as gateway:
        await gateway.auth()
        engine = await gateway.engine(capabilities=capabilities)
        engine.stop_token_ids = (7, 9)
        body = {"model": "demo", "prompt": "def f(", **fields}
        return await gateway.client.post("/v1/completions", json=body), engine


async def test_what_stands_behind_the_middle_reaches_the_engine(socket_dir: Path) -> None:
    response, engine = await complete(socket_dir, MIDDLE, suffix="return x", stop_token_ids=[3, 9])
    assert response.status_code == 200, response.text
    (prepare,) = engine.of(Prepare)
    assert (prepare.prompt, prepare.suffix) == ("def f(", "return x")
    (generate,) = engine.of(Generate)
    assert generate.sampling.stop_token_ids == (3, 9, 7)


@pytest.mark.parametrize(
    ("capabilities", "fields", "param"),
    [
        (("chat", "completions"), {}, "suffix"),
        (MIDDLE, {"echo": True}, "echo"),
        (MIDDLE, {"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        (MIDDLE, {"suffix": 1}, "suffix"),
    ],
)
async def test_a_suffix_that_cannot_be_served_is_refused_by_name(
    socket_dir: Path, capabilities: tuple[str, ...], fields: dict[str, Any], param: str
) -> None:
    response, engine = await complete(socket_dir, capabilities, **{"suffix": "x", **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert engine.of(Prepare) == []


async def test_no_suffix_asks_nothing_of_the_model(socket_dir: Path) -> None:
    response, engine = await complete(socket_dir, ("chat", "completions"), suffix="")
    assert response.status_code == 200
    assert engine.of(Prepare)[0].suffix is None


async def test_a_salt_goes_with_the_prompt_and_its_output(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        assert (await gateway.chat(cache_salt="a")).status_code == 200
        body = {"model": "demo", "prompt": ["x", "y"], "cache_salt": "b"}
        assert (await gateway.client.post("/v1/completions", json=body)).status_code == 200
        assert [one.cache_salt for one in engine.of(Prepare)] == ["a", "b", "b"]
        assert [one.cache_salt for one in engine.of(Generate)] == ["a", "b", "b"]
        for wrong in ("", 1, "x" * 257):
            refused = await gateway.chat(cache_salt=wrong)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "cache_salt"


async def test_named_tokens_reach_the_engine_and_stand_behind_the_likeliest(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        engine.wanted_logprobs = {1: -1.5, 9: -7.25}
        chat = await gateway.chat(logprobs=True, top_logprobs=1, logprob_token_ids=[9, 1, 9])
        (generate,) = engine.of(Generate)
        assert generate.sampling.logprob_token_ids == (9, 1)
        (first, *_) = chat.json()["choices"][0]["logprobs"]["content"]
        beside = [one["logprob"] for one in first["top_logprobs"]]
        assert beside[-2:] == [-7.25, -1.5]
        assert len(beside) == 3
        body = {"model": "demo", "prompt": "x", "logprobs": 0, "logprob_token_ids": [9]}
        completion = await gateway.client.post("/v1/completions", json=body)
        (top, *_) = completion.json()["choices"][0]["logprobs"]["top_logprobs"]
        assert -7.25 in top.values()


@pytest.mark.parametrize(
    "fields",
    [
        {"logprob_token_ids": [1]},
        {"logprobs": True, "logprob_token_ids": [-1]},
        {"logprobs": True, "logprob_token_ids": [10**8]},
        {"logprobs": True, "logprob_token_ids": [1] * 129},
    ],
)
async def test_named_tokens_that_cannot_be_told_are_refused(
    socket_dir: Path, fields: dict[str, Any]
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        refused = await gateway.chat(**fields)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"].startswith("logprob_token_ids")

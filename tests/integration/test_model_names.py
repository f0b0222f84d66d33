"""Aliases of models, and the fallbacks of those that are away or too short, through a gateway."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.config import GatewaySettings
from protocol.errors import ConfigurationError, ErrorCode
from protocol.wire.messages import (
    Authorize,
    Failure,
    Generate,
    Prepare,
    Profile,
    Profiled,
    ReadUsage,
)
from tests.fakes.fake_workers import FakeEngine
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway

ALIAS = {"model_aliases": ("gpt-4o=demo",)}
ENDPOINTS = {
    f"PENSTOCK_{role}_ENDPOINT": f"ipc:///tmp/{role}" for role in ("ENGINE", "AUTH", "TOOLPARSER")
}
HEADER = "x-penstock-model"


def too_long() -> Failure:
    code = ErrorCode.CONTEXT_LENGTH_EXCEEDED
    return Failure(request_id="", code=code, message="The prompt is too long.")


async def answered_by(gateway: RunningGateway, model: str, **fields: Any) -> tuple[str, str | None]:
    response = await gateway.chat(model=model, **fields)
    assert response.status_code == 200, response.text
    return response.json()["model"], response.headers.get(HEADER)


async def test_an_alias_is_answered_by_its_model_whose_name_is_told(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, **ALIAS) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        assert await answered_by(gateway, "gpt-4o") == ("demo", "demo")
        assert await answered_by(gateway, "demo") == ("demo", None)
        asked = auth.of(Authorize)
        assert {one.model for one in asked if one.model} == {"demo"}


async def test_every_route_knows_an_alias(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, **ALIAS) as gateway:
        await gateway.auth()
        await gateway.engine()
        listed = (await gateway.client.get("/v1/models")).json()["data"]
        assert {(one["id"], one["root"]) for one in listed} == {
            ("demo", "demo"),
            ("gpt-4o", "demo"),
        }
        assert (await gateway.client.get("/v1/models/gpt-4o")).json()["root"] == "demo"
        for route, body in (
            ("/v1/completions", {"prompt": "hi"}),
            ("/v1/responses", {"input": "hi", "store": False}),
            ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}),
            ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "hi"}]}),
            ("/tokenize", {"prompt": "hi"}),
        ):
            response = await gateway.client.post(route, json={"model": "gpt-4o", **body})
            assert response.status_code == 200, (route, response.text)
        unknown = await gateway.chat(model="gpt-5")
        assert unknown.status_code == 404


async def test_parsing_and_administration_know_an_alias(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, **ALIAS) as gateway:
        auth = await gateway.auth()
        await gateway.engine(tool_format="hermes", tokenizer_info_json='{"bos_token": "<s>"}')
        await gateway.parser()
        body = {"text": "hi", "model": "gpt-4o"}
        parsed = await gateway.client.post("/v1/parse", json=body)
        assert (parsed.status_code, parsed.json()["format"]) == (200, "hermes"), parsed.text
        info = await gateway.client.get("/tokenizer_info", params={"model": "gpt-4o"})
        assert info.json() == {"bos_token": "<s>"}
        headers = {"Authorization": "Bearer psk-admin"}
        cleared = await gateway.client.post(
            "/v1/models/invalidate-cache", json={"model": "gpt-4o"}, headers=headers
        )
        assert [one["model"] for one in cleared.json()["engines"]] == ["demo"], cleared.text
        recording = asyncio.create_task(
            gateway.client.post("/v1/admin/profile", json={"model": "gpt-4o"}, headers=headers)
        )
        (engine,) = [one for one in gateway.workers if isinstance(one, FakeEngine)]
        await engine.until(lambda: bool(engine.of(Profile)))
        told = Profiled(engine.of(Profile)[0].request_id, directory="/x", size_bytes=1)
        engine.send(told)
        assert (await recording).json()["model"] == "demo"
        await gateway.client.get("/v1/usage", params={"model": "gpt-4o"}, headers=headers)
        assert [one.model for one in auth.of(ReadUsage)] == ["demo"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/parse", {"text": "hi", "model": "gpt-5"}),
        ("/v1/models/invalidate-cache", {"model": "gpt-5"}),
        ("/v1/admin/profile", {"model": "gpt-5"}),
        ("/tokenize", {"prompt": "hi", "model": "gpt-5"}),
    ],
)
async def test_what_is_no_name_of_a_model_is_not_found(
    socket_dir: Path, path: str, body: dict[str, Any]
) -> None:
    async with running_gateway(socket_dir, **ALIAS) as gateway:
        await gateway.auth()
        await gateway.engine()
        headers = {"Authorization": "Bearer psk-admin"}
        answer = await gateway.client.post(path, json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert "gpt-5" in answer.json()["error"]["message"]


async def test_how_a_model_s_texts_are_read_is_told_only_to_who_may_use_it(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, **ALIAS, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        auth.allowed_models = ("other*",)
        await gateway.engine(tool_format="hermes")
        await gateway.parser()
        headers = {"Authorization": "Bearer psk-x"}
        for model in ("demo", "gpt-4o"):
            body = {"text": "hi", "model": model}
            answer = await gateway.client.post("/v1/parse", json=body, headers=headers)
            assert answer.status_code == 404, answer.text
            assert "hermes" not in answer.text
            assert "demo" not in answer.text.replace(f"`{model}`", "")


async def test_a_stream_of_an_alias_tells_the_model_too(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, **ALIAS) as gateway:
        await gateway.auth()
        await gateway.engine()
        response = await gateway.chat(model="gpt-4o", stream=True)
        assert response.headers[HEADER] == "demo"
        assert '"model":"demo"' in response.text


async def test_a_model_without_an_engine_is_stood_in_for_by_the_first_that_is_there(
    socket_dir: Path,
) -> None:
    settings = {"model_fallbacks": ("large=medium+demo", "*=demo"), "models": ("large", "medium")}
    async with running_gateway(socket_dir, **settings) as gateway:
        await gateway.auth()
        await gateway.engine()
        assert await answered_by(gateway, "large") == ("demo", "demo")
        medium = await gateway.engine(model="medium")
        assert await answered_by(gateway, "large") == ("medium", "medium")
        await gateway.engine(model="large")
        assert await answered_by(gateway, "large") == ("large", None)
        await gateway.departure(medium)
        # `*` is for every model without fallbacks of its own.
        assert await answered_by(gateway, "medium") == ("demo", "demo")


async def test_a_prompt_beyond_the_context_goes_to_a_longer_model_once(socket_dir: Path) -> None:
    settings = {"model_fallbacks": ("demo=same+long", "same=long")}
    async with running_gateway(socket_dir, **settings) as gateway:
        auth = await gateway.auth()
        short = await gateway.engine(max_model_len=64)
        await gateway.engine(model="same", max_model_len=64)
        long = await gateway.engine(model="long", max_model_len=4096)
        prompt = list(range(3, 103))
        body = {"model": "demo", "prompt": prompt, "max_tokens": 4}
        response = await gateway.client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        assert response.headers[HEADER] == "long"
        assert len(long.of(Generate)) == 1
        assert not short.of(Generate)
        # What the first one reserved is given back.
        authorized = [one for one in auth.of(Authorize) if one.is_metered]
        await gateway.until(lambda: len(auth.settled()) == len(authorized) == 2)
        assert sorted(one.completion_tokens for one in auth.settled()) == [0, 2]
        body["prompt"] = list(range(3, 5000))
        refused = await gateway.client.post("/v1/completions", json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"


async def test_the_context_may_cut_a_message_where_no_fallback_has_a_longer_one(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, model_fallbacks=("demo=long",)) as gateway:
        await gateway.auth()
        short = await gateway.engine(max_model_len=64)
        body = {"model": "demo", "messages": MESSAGES, "max_tokens": 64_000}
        for with_longer in (False, True):
            if with_longer:
                await gateway.engine(model="long", max_model_len=4096)
            response = await gateway.client.post("/v1/messages", json=body)
            assert response.status_code == 200, response.text
            assert short.of(Prepare)[-1].max_tokens == (64_000 if with_longer else None)


async def test_a_fallback_that_the_key_may_not_use_is_not_told(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, model_fallbacks=("demo=secret",)) as gateway:
        auth = await gateway.auth()
        auth.denied_models = ("secret",)
        await gateway.engine(max_model_len=64)
        await gateway.engine(model="secret", max_model_len=4096)
        body = {"model": "demo", "prompt": list(range(3, 103)), "max_tokens": 4}
        refused = await gateway.client.post("/v1/completions", json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        assert "secret" not in refused.text


async def test_other_models_make_no_vectors_for_one_that_is_away(socket_dir: Path) -> None:
    settings = {"model_fallbacks": ("*=demo",), "models": ("vectors",)}
    async with running_gateway(socket_dir, **settings) as gateway:
        await gateway.auth()
        await gateway.engine()
        body = {"model": "vectors", "input": "hi"}
        response = await gateway.client.post("/v1/embeddings", json=body)
        assert response.status_code == 503


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PENSTOCK_MODEL_ALIASES", "gpt-4o"),
        ("PENSTOCK_MODEL_ALIASES", "a=a"),
        ("PENSTOCK_MODEL_ALIASES", "=demo"),
        ("PENSTOCK_MODEL_FALLBACKS", "large"),
        ("PENSTOCK_MODEL_FALLBACKS", "large=small+large"),
        ("PENSTOCK_MODEL_FALLBACKS", "large=*"),
        ("PENSTOCK_MODEL_FALLBACKS", "large=small+"),
    ],
)
def test_a_wrong_pair_is_refused_naming_the_setting(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        GatewaySettings.from_env({**ENDPOINTS, name: value})


def test_pairs_are_read_from_the_environment() -> None:
    settings = GatewaySettings.from_env(
        {
            **ENDPOINTS,
            "PENSTOCK_MODEL_ALIASES": "gpt-4o = demo, claude=demo",
            "PENSTOCK_MODEL_FALLBACKS": "large = medium + small, *=small",
        }
    )
    assert settings.aliases == {"gpt-4o": "demo", "claude": "demo"}
    assert settings.fallbacks == {"large": ("medium", "small"), "*": ("small",)}


async def test_a_stored_response_of_a_fallback_names_it_and_its_items_are_found(
    socket_dir: Path,
) -> None:
    settings = {"model_fallbacks": ("demo=long",)}
    async with running_gateway(socket_dir, **settings) as gateway:
        await gateway.auth()
        short = await gateway.engine(max_model_len=64)
        short.prepare_failure = too_long()
        await gateway.engine(model="long", max_model_len=4096)
        body: dict[str, Any] = {"model": "demo", "input": "word " * 100}
        first = await gateway.client.post("/v1/responses", json=body)
        assert first.status_code == 200, first.text
        assert (first.json()["model"], first.headers[HEADER]) == ("long", "long")
        (item,) = first.json()["output"]
        body["input"] = [
            {"type": "item_reference", "id": item["id"]},
            {"role": "user", "content": "Why?"},
        ]
        second = await gateway.client.post("/v1/responses", json=body)
        assert second.status_code == 200, second.text


async def test_token_ids_are_read_by_no_model_with_another_tokenizer(socket_dir: Path) -> None:
    told = {"large": ("<s>", 64), "other": ("<bos>", 4096), "alike": ("<s>", 4096)}

    def info(model: str) -> dict[str, Any]:
        first, length = told[model]
        text = json.dumps({"bos_token": first, "model_max_length": length, "chat_template": model})
        return {"model": model, "max_model_len": length, "tokenizer_info_json": text}

    settings = {"model_fallbacks": ("large=other+alike",), "models": ("large",)}
    async with running_gateway(socket_dir, **settings) as gateway:
        await gateway.auth()
        large = await gateway.engine(**info("large"))
        large.prepare_failure = too_long()
        await gateway.engine(**info("other"))
        ids = {"model": "large", "prompt": list(range(3, 103)), "max_tokens": 4}
        refused = await gateway.client.post("/v1/completions", json=ids)
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        biased = {"logit_bias": {"5": 1}, "messages": [{"role": "user", "content": "w " * 200}]}
        assert (await gateway.chat(model="large", **biased)).status_code == 400
        del biased["logit_bias"]
        assert await answered_by(gateway, "large", **biased) == ("other", "other")
        await gateway.engine(**info("alike"))
        response = await gateway.client.post("/v1/completions", json=ids)
        assert (response.status_code, response.headers[HEADER]) == (200, "alike")
        await gateway.departure(large)
        response = await gateway.client.post("/v1/completions", json=ids)
        assert (response.status_code, response.headers[HEADER]) == (200, "alike")
        assert await answered_by(gateway, "large") == ("other", "other")

"""POST /tokenize and /detokenize, and what a model's card tells."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from engine_worker.text.chat_messages import parse_messages
from protocol.errors import ErrorCode
from protocol.wire.messages import Authorize, Cancel, Detokenize, Embed, Failure, Prepare
from tests.fakes.fake_workers import VOCAB_SIZE
from tests.fakes.running_gateway import MESSAGES, running_gateway


async def test_a_text_is_tokenised_as_the_engine_does_it(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine()
        body = {"model": "demo", "prompt": "hi", "add_special_tokens": False}
        answer = await gateway.client.post("/tokenize", json=body)
        assert answer.json() == {
            "count": 5,
            "max_model_len": 4096,
            "tokens": [1, 2, 3, 4, 5],
            "token_strs": None,
        }
        (prepare,) = engine.of(Prepare)
        assert (prepare.kind, prepare.prompt) == ("count", "hi")
        assert not prepare.add_special_tokens
        assert auth.of(Authorize)[0].endpoint == "/tokenize"


async def test_a_conversation_is_tokenised_with_its_template(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        tool = {"type": "function", "function": {"name": "f"}}
        body = {
            "messages": MESSAGES,
            "tools": [tool],
            "chat_template_kwargs": {"a": 1},
            "add_generation_prompt": False,
            "return_token_strs": True,
        }
        answer = await gateway.client.post("/tokenize", json=body)
        assert answer.json()["token_strs"] == ["t1", "t2", "t3", "t4", "t5"]
        (prepare,) = engine.of(Prepare)
        assert json.loads(prepare.messages_json) == MESSAGES
        assert json.loads(prepare.tools_json) == [tool]
        assert json.loads(prepare.template_kwargs_json) == {"a": 1}
        assert not prepare.add_generation_prompt
        assert prepare.return_tokens


async def test_tokens_are_spelt_as_text(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        answer = await gateway.client.post("/detokenize", json={"tokens": [7, 9]})
        assert answer.json() == {"prompt": "t7t9"}
        assert engine.of(Detokenize)[0].token_ids == (7, 9)


async def test_the_slot_is_given_back(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(max_requests=1)
        for _ in range(3):
            assert (await gateway.client.post("/tokenize", json={"prompt": "a"})).status_code == 200
        engine.prepare_failure = Failure(
            request_id="", code=ErrorCode.INVALID_REQUEST, message="scripted", param="prompt"
        )
        refused = await gateway.client.post("/tokenize", json={"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
        engine.prepare_failure = None
        assert (await gateway.chat()).status_code == 200


async def test_a_question_goes_to_another_engine_when_the_first_one_leaves(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(is_mute=True)
        body = {"tokens": [1]}
        answer = asyncio.create_task(gateway.client.post("/detokenize", json=body))
        await engine.until(lambda: len(engine.of(Detokenize)) == 1)
        await gateway.departure(engine)
        await gateway.engine()
        assert (await answer).status_code == 200


async def test_a_question_without_another_engine_ends_at_its_deadline(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, request_timeout_s=3.0) as gateway:
        await gateway.auth()
        engine = await gateway.engine(is_mute=True)
        answer = asyncio.create_task(gateway.client.post("/detokenize", json={"tokens": [1]}))
        await engine.until(lambda: len(engine.of(Detokenize)) == 1)
        await gateway.departure(engine)
        assert (await answer).json()["error"]["code"] == "worker_unavailable"


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/detokenize", {"tokens": [1]}, Detokenize),
        ("/tokenize", {"prompt": "hi"}, Prepare),
        ("/v1/embeddings", {"model": "demo", "input": "hi"}, Embed),
    ],
)
async def test_a_client_that_leaves_gives_its_slot_back_and_the_engine_is_told(
    socket_dir: Path, path: str, body: dict[str, Any], kind: type[Any]
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(is_mute=True, capabilities=("embeddings",))
        answer = asyncio.create_task(gateway.client.post(path, json=body))
        await engine.until(lambda: len(engine.of(kind)) == 1)
        (handle,) = gateway.application.directory.engines("demo")
        assert handle.num_requests + handle.num_questions == 1
        answer.cancel()
        await engine.until(lambda: len(engine.of(Cancel)) == 1)
        assert engine.of(Cancel)[0].request_id == engine.of(kind)[0].request_id
        await gateway.until(lambda: handle.num_requests + handle.num_questions == 0)
        assert len(gateway.application.sessions) == 0


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"messages": []}, "messages"),
        (
            "/tokenize",
            {"messages": MESSAGES, "add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
        ),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": []}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [VOCAB_SIZE]}, "tokens"),
    ],
)
async def test_a_wrong_body_is_a_400_that_names_the_field(
    socket_dir: Path, path: str, body: dict[str, Any], param: str
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        answer = await gateway.client.post(path, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param


async def test_the_model_must_be_named_only_when_there_are_several(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        nothing = await gateway.client.post("/tokenize", json={"prompt": "a"})
        assert nothing.json()["error"]["param"] == "model"
        await gateway.engine()
        await gateway.engine(model="other", fingerprint="ff")
        several = await gateway.client.post("/tokenize", json={"prompt": "a"})
        assert several.json()["error"]["param"] == "model"
        wrong = await gateway.client.post("/tokenize", json={"prompt": "a", "model": "none"})
        assert wrong.status_code == 404
        right = await gateway.client.post("/tokenize", json={"prompt": "a", "model": "other"})
        assert right.status_code == 200


async def test_the_tokenizer_is_described_as_its_engine_says(socket_dir: Path) -> None:
    info = {"tokenizer_class": "X", "eos_token": "</s>", "bos_token": None, "chat_template": "{{}}"}
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        nothing = await gateway.client.get("/tokenizer_info")
        assert (nothing.status_code, nothing.json()["error"]["param"]) == (400, "model")
        await gateway.engine(tokenizer_info_json=json.dumps(info))
        answer = await gateway.client.get("/tokenizer_info")
        assert (answer.status_code, answer.json()) == (200, info)
        assert answer.headers["content-type"] == "application/json"
        await gateway.engine(model="older", fingerprint="ff")
        several = await gateway.client.get("/tokenizer_info")
        assert several.json()["error"]["param"] == "model"
        named = await gateway.client.get("/tokenizer_info", params={"model": "demo"})
        assert named.json() == info
        older = await gateway.client.get("/tokenizer_info", params={"model": "older"})
        assert (older.status_code, older.json()["error"]["code"]) == (400, "unsupported_parameter")
        wrong = await gateway.client.get("/tokenizer_info", params={"model": "none"})
        assert wrong.status_code == 404


async def test_a_template_is_shown_to_who_may_use_the_model(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        auth.allowed_models = ("demo",)
        await gateway.engine(tokenizer_info_json='{"chat_template": "seen"}')
        await gateway.engine(model="secret", tokenizer_info_json='{"chat_template": "unseen"}')
        headers = {"X-API-Key": "psk-one"}
        for params, status in (({"model": "demo"}, 200), ({"model": "secret"}, 404), ({}, 400)):
            answer = await gateway.client.get("/tokenizer_info", params=params, headers=headers)
            assert (answer.status_code, "unseen" in answer.text) == (status, False)
            assert "`secret`." not in answer.text
            assert status == 200 or "Available models: `demo`." in answer.text
        counted = await gateway.client.post("/tokenize", json={"prompt": "a"}, headers=headers)
        assert counted.status_code == 400
        assert "secret" not in counted.text


async def test_a_models_card_tells_its_limits_and_defaults(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        card = (await gateway.client.get("/v1/models/demo")).json()
        assert card["capabilities"] == ["chat", "completions"]
        assert card["limits"] == {
            "max_model_len": 4096,
            "vocab_size": VOCAB_SIZE,
            "max_logprobs": 20,
            "max_num_seqs": 0,
            "num_kv_tokens": 0,
            "max_choices": 128,
        }
        assert card["sampling_defaults"]["temperature"] is None
        assert card["embeddings"] is None


@pytest.mark.parametrize("arguments", ["", None, '{"a": 1', {"a": 1}, "null"])
async def test_a_call_of_any_history_reaches_the_engine(socket_dir: Path, arguments: Any) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": None, "tool_call_id": "c"},
    ]
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        answer = await gateway.client.post("/tokenize", json={"messages": messages})
        assert answer.status_code == 200
        (prepare,) = engine.of(Prepare)
        assert prepare.messages_json is not None
        parse_messages(prepare.messages_json)

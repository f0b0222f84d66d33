"""Fields of chat that say little of the text: documents, verbosity, priority, times."""

import json
from pathlib import Path

import pytest

from protocol.wire.messages import Generate, Prepare
from tests.fakes.running_gateway import events_of, running_gateway

DOCUMENTS = [{"title": "Pipes", "text": "A penstock leads water."}]


async def test_documents_and_verbosity_reach_the_template(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        response = await gateway.chat(documents=DOCUMENTS, verbosity="low")
        assert response.status_code == 200
        (prepare,) = engine.of(Prepare)
        assert json.loads(prepare.template_kwargs_json) == {
            "documents": DOCUMENTS,
            "verbosity": "low",
        }
        assert (await gateway.chat(documents=[])).status_code == 200
        assert engine.of(Prepare)[-1].template_kwargs_json is None
        wrong: list[tuple[str, object]] = [
            ("documents", ["text"]),
            ("documents", [{}] * 1025),
            ("verbosity", "loud"),
        ]
        for name, value in wrong:
            refused = await gateway.chat(**{name: value})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"].startswith(name)


@pytest.mark.parametrize("is_read", [True, False])
async def test_a_verbosity_that_no_template_reads_is_told_to_have_no_effect(
    socket_dir: Path, is_read: bool
) -> None:
    settings = {"request_chat_templates": True, "strict_fields": True}
    async with running_gateway(socket_dir, **settings) as gateway:
        await gateway.auth()
        more = ("verbosity",) if is_read else ()
        engine = await gateway.engine(capabilities=("chat", "completions", *more))
        header = "x-penstock-ignored-fields"
        for stream in (False, True):
            answer = await gateway.chat(verbosity="medium", stream=stream)
            assert answer.headers.get(header) == (None if is_read else "verbosity")
            body = {"model": "demo", "input": "hi", "text": {"verbosity": "high"}, "stream": stream}
            answer = await gateway.client.post("/v1/responses", json=body)
            assert answer.headers.get(header) == (None if is_read else "text.verbosity")
        sent = [json.loads(one.template_kwargs_json or "") for one in engine.of(Prepare)]
        assert [one["verbosity"] for one in sent] == ["medium", "high"] * 2
        own = "{{ verbosity }}" if not is_read else "x"
        answer = await gateway.chat(verbosity="low", chat_template=own)
        assert answer.headers.get(header) == ("verbosity" if is_read else None)


@pytest.mark.parametrize(("asked", "sent"), [(None, 0), (0, 0), (-5, 0), (1, 1), (2**31 - 1, 1)])
async def test_a_request_may_let_others_go_first_and_never_push_in(
    socket_dir: Path, asked: int | None, sent: int
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        assert (await gateway.chat(priority=asked)).status_code == 200
        (generate,) = engine.of(Generate)
        assert generate.priority == sent


async def test_times_are_told_to_whoever_asks(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        assert "timings" not in (await gateway.chat()).json()
        whole = (await gateway.chat(include_timings=True)).json()["timings"]
        streamed = await gateway.chat(include_timings=True, stream=True)
        *_, last, done = events_of(streamed.text)
        assert done == "[DONE]"
        assert last["choices"] == []
        for told in (whole, last["timings"]):
            assert 0 < told["first_token_time"] <= told["processing_time"] < 20
            assert told["tokens_per_second"] == pytest.approx(2 / told["processing_time"], rel=0.01)

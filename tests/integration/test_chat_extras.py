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
        assert (await gateway.chat(documents=[], verbosity="medium")).status_code == 200
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

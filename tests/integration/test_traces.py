"""Traces of requests: what a collector gets, what crosses the wire, and collectors that are
away."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from protocol.errors import ConfigurationError, ErrorCode
from protocol.runtime import otlp, tracing
from protocol.runtime.tracing import Span, context_of, is_sampled, new_trace
from protocol.wire.messages import Authorize, Generate, OpenParse, Prepare
from tests.fakes.otlp_collector import Collector, ToldSpan, otlp_collector
from tests.fakes.running_gateway import RunningGateway, running_gateway

CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN = "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{CLIENT}-{CLIENT_SPAN}-01"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SECRET = "psk-a-key-that-nobody-should-see-0123456789"


@pytest.fixture(autouse=True)
def traces_are_off_again() -> Iterator[None]:
    yield
    tracing.close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that this process tells its spans to, soon."""
    monkeypatch.setattr(otlp, "SEND_INTERVAL_S", 0.05)
    with otlp_collector() as collector:
        tracing.setup("gateway", {"PENSTOCK_OTLP_ENDPOINT": collector.url}, build="1.2.3")
        yield collector


async def all_parts(gateway: RunningGateway) -> tuple[Any, Any, Any]:
    auth = await gateway.auth()
    parser = await gateway.parser()
    return auth, parser, await gateway.engine(tool_format="hermes")


async def told(collector: Collector, *names: str) -> list[ToldSpan]:
    """The spans of these names, one each."""
    await asyncio.to_thread(collector.until, *names)
    found = []
    for name in names:
        (span,) = collector.named(name)
        found.append(span)
    return found


async def test_a_request_is_told_with_its_steps_and_what_it_used(
    socket_dir: Path, collector: Collector
) -> None:
    async with running_gateway(socket_dir, model_aliases=("gpt-4o=demo",)) as gateway:
        auth, parser, engine = await all_parts(gateway)
        answer = await gateway.client.post(
            "/v1/chat/completions",
            json={
                "model": "gpt-4o",
                "messages": [{"role": "user", "content": "a secret prompt"}],
                "tools": [TOOL],
                "temperature": 0.5,
                "max_tokens": 9,
            },
            headers={"authorization": f"Bearer {SECRET}"},
        )
        assert answer.status_code == 200
        names = ("POST /v1/chat/completions", "chat demo", "authorize", "prepare")
        http, work, *steps = await told(collector, *names)
        assert (http.parent_id, http.kind, http.is_error) == ("", 2, False)
        assert http.attributes["http.response.status_code"] == 200
        assert work.parent_id == http.span_id
        assert {step.parent_id for step in steps} == {work.span_id}
        assert {span.trace_id for span in (http, work, *steps)} == {http.trace_id}
        assert http.seconds >= work.seconds > 0
        expected = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.response.model": "demo",
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.max_tokens": 9,
            "gen_ai.usage.input_tokens": 5,
            "gen_ai.usage.output_tokens": 2,
            "gen_ai.usage.cache_read.input_tokens": 1,
            "gen_ai.response.finish_reasons": ["stop"],
        }
        assert {name: work.attributes.get(name) for name in expected} == expected
        # Whoever works for it knows where its own spans belong.
        here = f"00-{work.trace_id}-{work.span_id}-01"
        for worker, kind in (
            (auth, Authorize),
            (engine, Prepare),
            (engine, Generate),
            (parser, OpenParse),
        ):
            assert worker.of(kind)[-1].traceparent == here
        await gateway.client.post("/tokenize", json={"model": "gpt-4o", "prompt": "hi"})
        (question,) = await told(collector, "/tokenize demo")
        assert question.attributes["gen_ai.request.model"] == "gpt-4o"
        assert question.attributes["gen_ai.response.model"] == "demo"
    assert {span.service for span in collector.spans} == {"penstock-gateway"}
    for text in (b"a secret prompt", b"Hello", SECRET.encode()):
        assert text not in collector.raw


@pytest.mark.parametrize("clients", ["link", "parent", "ignore"])
async def test_a_clients_trace_is_linked_to_unless_it_is_trusted(
    socket_dir: Path, collector: Collector, clients: str
) -> None:
    async with running_gateway(socket_dir, trace_clients=clients) as gateway:
        await all_parts(gateway)
        await gateway.client.get("/v1/models", headers=TRACEPARENT)
        (span,) = await told(collector, "GET /v1/models")
        is_theirs = clients == "parent"
        assert (span.trace_id == CLIENT, span.parent_id == CLIENT_SPAN) == (is_theirs, is_theirs)
        assert span.links == (((CLIENT, CLIENT_SPAN),) if clients == "link" else ())


async def test_what_a_trusted_client_did_not_sample_is_not_told(
    socket_dir: Path, collector: Collector
) -> None:
    async with running_gateway(socket_dir, trace_clients="parent") as gateway:
        await all_parts(gateway)
        declined = {"traceparent": f"00-{CLIENT}-{CLIENT_SPAN}-00"}
        await gateway.client.get("/v1/models", headers=declined)
        await gateway.client.get("/v1/models", headers=TRACEPARENT)
        (span,) = await told(collector, "GET /v1/models")
        assert span.trace_id == CLIENT


async def test_each_turn_of_a_websocket_is_a_trace_of_its_own(
    socket_dir: Path, collector: Collector
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await all_parts(gateway)
        url = str(gateway.client.base_url).replace("http", "ws", 1) + "/v1/responses"
        async with connect(url, proxy=None, additional_headers=TRACEPARENT) as client:
            for model in ("demo", "missing"):
                message = {"type": "response.create", "model": model, "input": "hi"}
                await client.send(json.dumps(message))
                while json.loads(await client.recv())["type"] not in (
                    "response.completed",
                    "error",
                ):
                    pass
        await asyncio.to_thread(collector.until, "GET /v1/responses")
        turns = collector.named("WEBSOCKET /v1/responses")
        (work,) = collector.named("chat demo")
        assert [turn.attributes["http.response.status_code"] for turn in turns] == [200, 404]
        assert [turn.attributes.get("error.type") for turn in turns] == [None, "model_not_found"]
        assert len({turn.trace_id for turn in turns} | {CLIENT}) == 3
        assert {turn.links for turn in turns} == {((CLIENT, CLIENT_SPAN),)}
        assert (work.trace_id, work.parent_id) == (turns[0].trace_id, turns[0].span_id)


async def test_a_response_in_the_background_is_a_trace_of_its_own(
    socket_dir: Path, collector: Collector
) -> None:
    async with running_gateway(socket_dir) as gateway:
        _, _, engine = await all_parts(gateway)
        for fails in (False, True):
            engine.generate_failure = ErrorCode.INTERNAL_ERROR if fails else None
            collector.spans.clear()
            body = {"model": "demo", "input": "hi", "background": True}
            await gateway.client.post("/v1/responses", json=body)
            asked, made, work = await told(
                collector, "POST /v1/responses", "BACKGROUND /v1/responses", "chat demo"
            )
            assert made.links == ((asked.trace_id, asked.span_id),)
            assert made.trace_id != asked.trace_id
            assert (work.trace_id, work.parent_id) == (made.trace_id, made.span_id)
            status = 500 if fails else 200
            assert (made.attributes["http.response.status_code"], made.is_error) == (status, fails)


async def test_what_fails_is_told_with_its_code_and_probes_are_not(
    socket_dir: Path, collector: Collector
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await all_parts(gateway)
        await gateway.client.get("/live")
        await gateway.chat(model="none")
        await gateway.chat(n=0)
        await asyncio.to_thread(collector.until, "POST /v1/chat/completions", "chat")
        await gateway.until(lambda: len(collector.named("POST /v1/chat/completions")) == 2)
        codes = [
            one.attributes["error.type"] for one in collector.named("POST /v1/chat/completions")
        ]
        assert codes == ["model_not_found", "invalid_request"]
        # The client is to blame, which is no error of a server's span.
        assert not any(one.is_error for one in collector.named("POST /v1/chat/completions"))
        assert collector.named("chat")[0].is_error
        assert collector.named("GET /live") == []


async def test_a_ratio_of_zero_tells_nothing_whatever_the_client_asks(
    socket_dir: Path, collector: Collector
) -> None:
    async with running_gateway(socket_dir, trace_ratio=0.0, trace_clients="parent") as gateway:
        _, _, engine = await all_parts(gateway)
        answer = await gateway.client.post(
            "/v1/chat/completions",
            json={"model": "demo", "messages": [{"role": "user", "content": "hi"}]},
            headers=TRACEPARENT,
        )
        assert answer.status_code == 200
        assert engine.of(Generate)[-1].traceparent == ""
    tracing.close()
    assert collector.spans == []


async def test_a_collector_that_is_away_holds_nobody_up(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(otlp, "SEND_INTERVAL_S", 0.01)
    monkeypatch.setattr(otlp, "SEND_TIMEOUT_S", 0.1)
    monkeypatch.setattr(otlp, "MAX_QUEUED_SPANS", 8)
    monkeypatch.setattr(otlp, "MAX_BATCH_SPANS", 4)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        tracing.setup("gateway", {"PENSTOCK_OTLP_ENDPOINT": url})
        async with running_gateway(socket_dir) as gateway:
            await all_parts(gateway)
            for _ in range(30):
                assert (await gateway.chat()).status_code == 200
            told_once = "takes no traces"
            await gateway.until(lambda: told_once in caplog.text)
        tracing.close()
    assert caplog.text.count(told_once) == 1


def test_a_process_ends_though_its_collector_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "CLOSE_TIMEOUT_S", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tracing.setup("gateway", {"PENSTOCK_OTLP_ENDPOINT": url})
        tracing.tell(Span("x", new_trace(), 0, 0.0, 1.0))
        tracing.close()
    assert not tracing.is_on()


def test_nothing_of_the_sdk_is_imported_while_traces_are_off() -> None:
    program = (
        "import sys, gateway.application, engine_worker.serving.service, toolparser_worker.handler,"
        " auth_worker.service;"
        " assert not [one for one in sys.modules if 'opentelemetry.sdk' in one]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("url", ["collector:4318", "ftp://collector", "http://"])
def test_a_collector_has_a_url(url: str) -> None:
    with pytest.raises(ConfigurationError, match="PENSTOCK_OTLP_ENDPOINT"):
        tracing.setup("gateway", {"PENSTOCK_OTLP_ENDPOINT": url})


def test_without_the_sdk_a_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "protocol.runtime.otlp", None)
    with pytest.raises(ConfigurationError, match=r"penstock\[otlp\]"):
        tracing.setup("gateway", {"PENSTOCK_OTLP_ENDPOINT": "http://127.0.0.1:4318"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"00-{CLIENT}-{CLIENT_SPAN}",
        f"00-{CLIENT}-{CLIENT_SPAN}-00",
        f"00-{'0' * 32}-{CLIENT_SPAN}-01",
        f"00-{CLIENT}-{'0' * 16}-01",
        f"ff-{CLIENT}-{CLIENT_SPAN}-01",
        f"00-{CLIENT.upper()}-{CLIENT_SPAN}-01",
        f"00-{CLIENT}-{CLIENT_SPAN}-01\n",
    ],
)
def test_what_is_no_sampled_traceparent_names_no_place(text: str) -> None:
    assert context_of(text) is None


def test_places_survive_the_wire_and_ratios_agree_everywhere() -> None:
    place = new_trace()
    assert context_of(place.traceparent()) == place
    assert context_of(f"00-{CLIENT}-{CLIENT_SPAN}-03") is not None
    assert place.child().trace_id == place.trace_id
    assert is_sampled(place.trace_id, 1.0)
    assert not is_sampled(place.trace_id, 0.0)
    assert is_sampled(2**63 - 1, 0.5) is True
    assert is_sampled(2**63, 0.5) is False

"""Background responses whose gateway, engine, parser or authority is killed -9: same text, booked
once; and streams whose only engine is."""

import json
import os
import signal
import sqlite3
from contextlib import closing
from typing import Any

import httpx
import pytest

from tests.e2e.harness import Harness, eventually
from tests.e2e.live_stream import ask, known_answer
from tests.e2e.test_when_something_dies import (
    LONG,
    SHORT,
    TOOLS,
    assert_undisturbed,
    find_gateway,
    metric,
    rows_of,
    start_all,
)

pytestmark = pytest.mark.process
NUMBERS: dict[str, Any] = {
    "model": "penstock-demo",
    "input": "Count.",
    "temperature": 0,
    "text": {
        "format": {
            "type": "json_schema",
            "name": "numbers",
            "schema": {
                "type": "array",
                "items": {"type": "integer", "minimum": 10_000, "maximum": 99_999},
                "minItems": 40,
                "maxItems": 40,
            },
        }
    },
}
CALL: dict[str, Any] = {
    "model": "penstock-demo",
    "input": "Remember everything.",
    "temperature": 0,
    "max_output_tokens": 200,
    "tool_choice": "required",
    "tools": [
        {
            "type": "function",
            "name": "remember",
            "parameters": {
                "type": "object",
                "properties": {"note": {"type": "string", "minLength": 300, "maxLength": 340}},
                "required": ["note"],
                "additionalProperties": False,
            },
        }
    ],
}


WITH_TOOLS: dict[str, Any] = {
    **NUMBERS,
    "tools": [{"type": "mcp", "server_label": "weather", "require_approval": "never"}],
    "tool_choice": {"type": "mcp", "server_label": "weather", "name": "get_weather"},
    "max_tool_calls": 1,
}


def post(harness: Harness, body: dict[str, Any]) -> dict[str, Any]:
    reply = httpx.post(f"{harness.url}/v1/responses", json=body, timeout=120, trust_env=False)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def get(harness: Harness, response_id: str) -> dict[str, Any]:
    """The response; empty while nobody is there to be asked."""
    try:
        reply = httpx.get(f"{harness.url}/v1/responses/{response_id}", timeout=10, trust_env=False)
    except httpx.TransportError:
        return {}
    return reply.json() if reply.status_code == 200 else {}


def events(harness: Harness, response_id: str) -> list[dict[str, Any]]:
    reply = httpx.get(
        f"{harness.url}/v1/responses/{response_id}?stream=true", timeout=120, trust_env=False
    )
    lines = [line for line in reply.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def without_ids(response: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in item.items() if key not in ("id", "call_id")}
        for item in response["output"]
    ]


def wait_for_output(harness: Harness, response_id: str, kind: bytes = b".delta") -> None:
    """Until something of it was told."""
    store = f"file:{harness.data_dir}/responses.sqlite3?mode=ro"
    query = "SELECT body FROM events WHERE response_id = ?"

    def has_output() -> bool:
        with closing(sqlite3.connect(store, uri=True)) as connection:
            rows = connection.execute(query, (response_id,)).fetchall()
        return any(kind in body for (body,) in rows)

    eventually(has_output, 120)


def booked(harness: Harness, response_id: str) -> list[tuple[Any, ...]]:
    query = "SELECT outcome, completion_tokens FROM ledger WHERE request_id = ?"
    return rows_of(harness, query, response_id.removeprefix("resp_"))


@pytest.mark.parametrize(
    ("victim", "body"),
    [
        pytest.param("gateway", NUMBERS, id="gateway-numbers"),
        # That what runs goes on when its engine dies, test_when_something_dies.py shows of streams.
        pytest.param("engine_worker", NUMBERS, id="engine_worker-numbers", marks=pytest.mark.long),
        pytest.param("auth_worker", NUMBERS, id="auth_worker-numbers"),
        # Calls are what a parser has to do.
        pytest.param("toolparser_worker", CALL, id="toolparser_worker-call"),
        pytest.param("gateway", CALL, id="gateway-call", marks=pytest.mark.long),
        pytest.param("engine_worker", CALL, id="engine_worker-call", marks=pytest.mark.long),
        pytest.param("toolparser_worker", NUMBERS, id="parser-numbers", marks=pytest.mark.long),
    ],
)
def test_whoever_is_killed_it_ends_once_with_the_same_text(
    mortal: Harness, victim: str, body: dict[str, Any]
) -> None:
    undisturbed = post(mortal, body)
    made = post(mortal, {**body, "background": True})
    wait_for_output(mortal, made["id"])
    (pid,) = mortal.pids(victim)
    os.kill(pid, signal.SIGKILL)
    if victim == "gateway":
        find_gateway(mortal, pid)
    eventually(lambda: get(mortal, made["id"]).get("status") == undisturbed["status"], 120)
    ended = get(mortal, made["id"])
    assert without_ids(ended) == without_ids(undisturbed)
    told = events(mortal, made["id"])
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    ends = [event for event in told if event["type"] == f"response.{ended['status']}"]
    assert [event["response"] for event in ends] == [ended]
    deltas = "".join(event["delta"] for event in told if "delta" in event)
    first = ended["output"][0]
    whole = first["content"][0]["text"] if body is NUMBERS else first["arguments"]
    assert deltas == whole

    def is_booked_once() -> bool:
        used = [one for one in booked(mortal, made["id"]) if one[0] != "unused"]
        return used == [("finished", ended["usage"]["output_tokens"])]

    eventually(is_booked_once)
    mortal.wait_ready()


@pytest.mark.long
def test_a_call_of_a_tool_outlives_its_gateway(mortal: Harness) -> None:
    undisturbed = post(mortal, WITH_TOOLS)
    made = post(mortal, {**WITH_TOOLS, "background": True})
    wait_for_output(mortal, made["id"], b"response.output_text.delta")
    (pid,) = mortal.pids("gateway")
    os.kill(pid, signal.SIGKILL)
    find_gateway(mortal, pid)
    eventually(lambda: get(mortal, made["id"]).get("status") == undisturbed["status"], 120)
    ended = get(mortal, made["id"])
    assert without_ids(ended) == without_ids(undisturbed)
    told = events(mortal, made["id"])
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    kinds = [event["type"] for event in told]
    assert kinds.count("response.mcp_call.in_progress") == 1
    assert kinds.count("response.mcp_call.completed") == 1

    def turns() -> list[tuple[Any, ...]]:
        name = made["id"].removeprefix("resp_")
        query = "SELECT request_id, outcome FROM ledger WHERE request_id IN (?, ?)"
        rows = rows_of(mortal, query, name, f"{name}t1")
        return sorted(one for one in rows if one[1] != "unused")

    name = made["id"].removeprefix("resp_")
    eventually(lambda: turns() == [(name, "finished"), (f"{name}t1", "finished")])
    mortal.wait_ready()


def test_without_another_engine_streams_wait_for_the_restart(mortal: Harness) -> None:
    bodies = {"plain": LONG, "tools": TOOLS}
    known = {name: (body, known_answer(mortal.url, body)) for name, body in bodies.items()}
    streams = start_all(mortal, known)
    (pid,) = mortal.pids("engine_worker")
    os.kill(pid, signal.SIGKILL)
    # Who begins now is sent away until an engine is there.
    ready = {"role": "engine", "phase": "ready"}
    eventually(lambda: metric(mortal, "penstock_gateway_workers", **ready) == 0)
    refused = ask(mortal.url, SHORT)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert_undisturbed(known, streams)
    mortal.wait_ready()

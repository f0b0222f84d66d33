"""The real parser process: announced, parsing, replayed after its death, drained by SIGTERM."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.wire import codec
from protocol.wire.messages import (
    CloseParse,
    OpenParse,
    ParseBatch,
    ParsedBatch,
    ParseDelta,
    ParseEvent,
    ParseOpened,
    ParserEvent,
)
from protocol.wire.peers import Peer
from tests.fakes.recording_gateway import RecordingGateway

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
TOOLS_JSON = '[{"type": "function", "function": {"name": "get_weather"}}]'
TEXT = (
    "<think>Which city?</think>I look it up.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
)
Start = Callable[[], subprocess.Popen[bytes]]
Gateway = RecordingGateway[ParserEvent]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    processes: list[subprocess.Popen[bytes]] = []

    def start_one() -> subprocess.Popen[bytes]:
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PENSTOCK_TOOLPARSER_ENDPOINT": f"ipc://{tmp_path}/p.sock",
        }
        process = subprocess.Popen([sys.executable, "-m", "toolparser_worker"], env=environ)
        processes.append(process)
        return process

    yield start_one
    for process in processes:
        process.kill()
        process.wait()


def new_gateway(tmp_path: Path) -> Gateway:
    return RecordingGateway("toolparser", f"ipc://{tmp_path}/p.sock", codec.parser_event_decoder())


async def parse_all(gateway: Gateway, peer: Peer, pieces: list[str]) -> list[ParseEvent]:
    """Opens the request and sends its text; everything that comes back."""
    gateway.events.clear()
    gateway.server.send(
        peer,
        OpenParse(
            request_id="r",
            attempt=0,
            tool_format="hermes",
            reasoning_format="think",
            tools_json=TOOLS_JSON,
        ),
    )
    for number, piece in enumerate(pieces):
        final = number == len(pieces) - 1
        one = ParseDelta(request_id="r", choice=0, attempt=0, text=piece, final=final)
        gateway.server.send(peer, ParseBatch(deltas=(one,)))
    await gateway.until(lambda: len(gateway.events) == len(pieces) + 1)
    opened, *batches = gateway.events
    assert isinstance(opened, ParseOpened)
    assert all(isinstance(batch, ParsedBatch) for batch in batches)
    return [
        event
        for batch in batches
        if isinstance(batch, ParsedBatch)
        for parsed in batch.deltas
        for event in parsed.events
    ]


def joined(events: list[ParseEvent]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for event in events:
        texts[event.kind] = texts.get(event.kind, "") + event.text + event.name + event.id
    return texts


async def test_a_second_parser_replays_what_a_killed_one_had_and_drains_on_sigterm(
    tmp_path: Path, start: Start
) -> None:
    gateway = new_gateway(tmp_path)
    gateway.start()
    try:
        first = start()
        peer = await gateway.a_ready_peer()
        assert peer.parser is not None
        assert "hermes" in peer.parser.tool_formats
        assert "think" in peer.parser.reasoning_formats
        before = joined(await parse_all(gateway, peer, list(TEXT)))
        assert before["reasoning"] == "Which city?"
        assert before["content"] == "I look it up.\n"
        assert before["tool_call_arguments"] == '{"city": "Oslo"}'

        first.kill()
        await gateway.until(lambda: not gateway.server.peers())
        second = start()
        peer = await gateway.a_ready_peer()
        assert joined(await parse_all(gateway, peer, [TEXT[:30], TEXT[30:]])) == before

        second.send_signal(signal.SIGTERM)
        gateway.server.send(peer, CloseParse(request_id="r", attempt=0))
        await gateway.until(lambda: len(gateway.losses()) == 2)
        assert second.wait(60) == 0
    finally:
        gateway.server.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "PENSTOCK_TOOLPARSER_ENDPOINT is not set"),
        ({"PENSTOCK_PARSER_MAX_SESSIONS": "0"}, "PENSTOCK_PARSER_MAX_SESSIONS must be at least 1"),
    ],
)
def test_a_bad_setting_is_one_clear_line_and_exit_code_one(
    settings: dict[str, str], words: str
) -> None:
    environ = {key: value for key, value in os.environ.items() if "PENSTOCK" not in key}
    ended = subprocess.run(
        [sys.executable, "-m", "toolparser_worker"],
        env={**environ, "PYTHONPATH": str(ROOT), **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert words in ended.stderr

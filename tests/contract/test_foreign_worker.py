"""The worker printed in docs/protocol.md, with a plain MessagePack library, serves a real
gateway."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from protocol.wire import codec
from protocol.wire.messages import (
    OpenParse,
    ParseBatch,
    ParsedBatch,
    ParsedDelta,
    ParseDelta,
    ParseEvent,
    ParseOpened,
    ParserEvent,
    ParserOffer,
)
from tests.fakes.recording_gateway import RecordingGateway

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"


@pytest.mark.process
async def test_the_documented_worker_works_as_printed(tmp_path: Path, socket_dir: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    (tmp_path / "worker.py").write_text(script, encoding="utf-8")
    address = f"ipc://{socket_dir}/t.sock"
    decoder = codec.parser_event_decoder()
    gateway = RecordingGateway[ParserEvent]("toolparser", address, decoder)
    gateway.start()
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(tmp_path / "worker.py"), address, stderr=asyncio.subprocess.PIPE
    )
    peer = await gateway.a_ready_peer()
    assert peer.parser == ParserOffer(tool_formats=(), reasoning_formats=())
    gateway.server.send(peer, OpenParse(request_id="r", attempt=3))
    text = ParseDelta(request_id="r", choice=0, attempt=3, text="hé", final=True)
    gateway.server.send(peer, ParseBatch(deltas=(text,)))
    await gateway.until(lambda: len(gateway.events) == 2)
    parsed = ParsedDelta(
        request_id="r",
        choice=0,
        attempt=3,
        events=(ParseEvent(kind="content", text="hé"),),
        final=True,
    )
    assert gateway.events == [
        ParseOpened(request_id="r", attempt=3),
        ParsedBatch(deltas=(parsed,)),
    ]
    gateway.server.close()
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert b"the gateway says" in errors


def test_every_message_is_named_in_the_document() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    golden = Path(__file__).parent / "golden"
    tags = re.findall(
        r'^ "(\w+)": \{$', "".join(p.read_text() for p in golden.glob("*.json")), re.M
    )
    assert len(tags) > 25
    assert not [tag for tag in tags if f"`{tag}`" not in text]

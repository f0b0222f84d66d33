"""What tool processes write, read by the gateway: real processes, odd results."""

import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from gateway.tools.toolbox import ToolBox

TOOLS = """
import os, sys
from gateway.tools.tool_process import RegisteredTool, serve


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


def fail():
    raise ValueError("no caf\\udce9")


def write(text):
    # Whatever is behind the numbers 3 to 9: the pipe of answers is among them.
    for number in range(3, 10):
        try:
            os.write(number, text.encode())
        except OSError:
            pass


CALLS = {
    "names": lambda: {"caf\\udce9": ["caf\\udce9.txt", "\\ud83d\\ude00"]},
    "pid": os.getpid,
    "big": lambda: [2**64 + 1, -(2**200), 0.1],
    "huge": lambda: 10**400,
    "long_text": lambda: "\u00e4" * 1_500_000,
    "nested": nested,
    "fail": fail,
    "write": write,
    "nan": lambda: float("nan"),
}
TABLE = {name: RegisteredTool(name, "", {"type": "object"}, call) for name, call in CALLS.items()}
sys.exit(serve(lambda: TABLE))
"""


@pytest.fixture
async def box() -> AsyncIterator[ToolBox]:
    made = ToolBox(
        max_processes=1,
        timeout_s=60.0,
        environment=dict(os.environ),
        command=(sys.executable, "-c", TOOLS),
    )
    yield made
    await made.close()


async def test_what_is_no_text_is_replaced_and_costs_neither_result_nor_process(
    box: ToolBox,
) -> None:
    first = await box.execute("pid", "{}")
    named = await box.execute("names", "{}")
    assert named.result == {"caf\ufffd": ["caf\ufffd.txt", "\U0001f600"]}
    failed = await box.execute("fail", "{}")
    assert failed.error == {"type": "ValueError", "message": "no caf\ufffd"}
    assert await box.execute("pid", "{}") == first


async def test_integers_keep_their_digits(box: ToolBox) -> None:
    found = await box.execute("big", "{}")
    assert orjson.dumps(found.as_json()["result"]) == (b"[18446744073709551617,-%d,0.1]" % 2**200)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("huge", "{}", "infinity"),
        ("nan", "{}", "not JSON compliant"),
        ("nested", '{"levels":239}', "it nests deeper than 238 levels"),
        ("nested", '{"levels":5000}', "recursion"),
    ],
)
async def test_what_an_answer_can_t_hold_is_the_tool_s_error_and_costs_no_process(
    box: ToolBox, name: str, arguments: str, words: str
) -> None:
    first = await box.execute("pid", "{}")
    found = await box.execute(name, arguments)
    assert found.error is not None
    assert words in found.error["message"]
    assert await box.execute("pid", "{}") == first


async def test_what_is_nested_as_deep_as_may_be_is_written_into_an_answer(box: ToolBox) -> None:
    found = await box.execute("nested", '{"levels":238}')
    told: Any = found.as_json()
    for _ in range(12):
        told = {"result": told}
    assert orjson.dumps(told).count(b"[") == 238


async def test_a_result_has_the_length_that_it_has_in_utf_8(box: ToolBox) -> None:
    found = await box.execute("long_text", "{}")
    assert found.error is None
    assert len(found.result) == 1_500_000


@pytest.mark.parametrize("text", ["no JSON\n", "[1]\n"])
async def test_what_is_no_answer_is_said_to_be_none(box: ToolBox, text: str) -> None:
    first = await box.execute("pid", "{}")
    found = await box.execute("write", orjson.dumps({"text": text}).decode())
    assert found.error is not None
    assert found.error["type"] == "unreadable"
    second = await box.execute("pid", "{}")
    assert second.error is None
    assert second != first

"""Law 6: how much the machine does and holds, counted by itself and by the allocator."""

import tracemalloc
from collections.abc import Callable

from tests.fakes.format_pairs import FEWER_PAIRS, formats, schemas
from tests.fakes.fuzz_effort import EFFORT
from tests.fakes.loops import of_each
from tests.fakes.parsed_text import REASONING, new_machine
from toolparser_worker.machine.declarations import ElementBody
from toolparser_worker.machine.render import render_calls, render_reasoning

MAX_HELD_BYTES = 64 * 1024
SIZES = (1, 4) if EFFORT > 1 else (1,)
"""Of the deltas."""
ONE_STRING = schemas([("f", '{"a": ""}')])
PROSE = "The quick brown fox jumps over the lazy dog. "


def adversaries(tool: str, reasoning: str) -> dict[str, Callable[[int], str]]:
    """Texts of any length that ask much of the formats."""
    tool_format, reasoning_format = formats(tool, reasoning)
    found: dict[str, Callable[[int], str]] = {
        "content": lambda n: "a < b " * (n // 6),
        "spaces": lambda n: " " * n,
        "objects": lambda n: "{" * n,
        "keys": lambda n: '{"a": ' * (n // 6),
        "brackets": lambda n: "[" * n,
    }
    whole = ""
    if tool_format is not None:
        whole = render_calls(tool_format, [("f", '{"a": "b c"}')])
        found["calls"] = lambda n: whole * (n // len(whole))
    markers = (*(tool_format or REASONING["think"]).markers,)  # type: ignore[union-attr]
    if reasoning_format is not None:
        markers += reasoning_format.markers
    for marker in {*markers}:
        found[f"{marker} again"] = lambda n, m=marker: m * (n // len(m))  # type: ignore[misc]
        found[f"{marker} cut"] = lambda n, m=marker[:-1]: m * (n // (len(m) or 1))  # type: ignore[misc]
    middle = whole.find("b c")
    for place in {len(whole) // 4, len(whole) // 2, 3 * len(whole) // 4, middle}:
        for unit in (" ", "x", '\\"', "{", "'", "1", "<", "\n"):
            found[f"{place} and {unit!r}"] = lambda n, start=whole[:place], u=unit: (  # type: ignore[misc]
                start + u * (n // len(u))
            )
    return found


@of_each("tool,reasoning", FEWER_PAIRS)
def test_work_grows_with_the_text_and_no_faster(tool: str, reasoning: str) -> None:
    for name, adversary in adversaries(tool, reasoning).items():
        short, long = adversary(120 * EFFORT), adversary(240 * EFFORT)
        for size in SIZES:
            growth = operations(tool, reasoning, long, size) - operations(
                tool, reasoning, short, size
            )
            assert growth <= 100 * (len(long) - len(short)), name


def operations(tool: str, reasoning: str, text: str, size: int) -> int:
    """The machine's own count of what it did for a text in deltas of one size."""
    machine = new_machine(*formats(tool, reasoning), tools=ONE_STRING)
    for start in range(0, len(text), size):
        machine.feed(text[start : start + size])
    machine.finish()
    return machine.num_operations


def long_text(tool: str, reasoning: str, num_chars: int) -> str:
    """Reasoning and one call, with text of this length in each."""
    tool_format, reasoning_format = formats(tool, reasoning)
    prose = PROSE * (num_chars // len(PROSE) + 1)
    text = render_reasoning(reasoning_format, prose) if reasoning_format else ""
    if tool_format is not None:
        text += render_calls(tool_format, [("f", f'{{"a": "{prose}"}}')])
    return text


@of_each("tool,reasoning", FEWER_PAIRS)
def test_one_character_at_a_time_costs_at_most_three_times_as_much(
    tool: str, reasoning: str
) -> None:
    text = long_text(tool, reasoning, 400)
    assert operations(tool, reasoning, text, 1) <= 3 * operations(tool, reasoning, text, 4)


@of_each("tool,reasoning", FEWER_PAIRS)
def test_a_stream_holds_little_but_what_is_held_back(tool: str, reasoning: str) -> None:
    tool_format, _ = formats(tool, reasoning)
    text = long_text(tool, reasoning, 2 * MAX_HELD_BYTES)
    # A tree of elements is one value, which waits for its end.
    waits = tool_format is not None and isinstance(tool_format.body, ElementBody)
    machine = new_machine(*formats(tool, reasoning), tools=ONE_STRING)
    machine.feed(text[:64])
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for start in range(64, len(text), 256):
            machine.feed(text[start : start + 256], (start + 256,))
            held, _ = tracemalloc.get_traced_memory()
            assert held - before < MAX_HELD_BYTES + waits * 3 * start
    finally:
        tracemalloc.stop()

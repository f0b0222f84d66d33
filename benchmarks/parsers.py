"""Times the parser machine: per character as the text grows, and per delta as deltas do.

    python benchmarks/parsers.py [--max-chars 1000000] [--repeat 3]

CPU time of one core. Straight lines are the point: the time per character is the same at 1 KB and
at 1 MB.
"""

import argparse
import time
from collections.abc import Callable, Sequence

from toolparser_worker.formats import TOOL_FORMATS, find_reasoning_format, find_tool_format
from toolparser_worker.machine.machine import Machine
from toolparser_worker.machine.render import render_calls
from toolparser_worker.machine.tool_schemas import ToolSchemas

DELTA_SIZES = (1, 4, 16, 64)
WORDS = "The quick brown fox jumps over the lazy dog, if a < b. "
CODE = r"def f(x):\n    return {\"a\": [x, x * 2]}  # done\n"
NUMBERS = '{"x": 1.5, "ok": true, "tags": ["a", "b"]}, '


def _repeated(unit: str, num_chars: int) -> str:
    return (unit * (num_chars // len(unit) + 1))[:num_chars]


SCENARIOS: dict[str, tuple[str | None, str | None, Callable[[int], str]]] = {
    "content, hermes": ("hermes", None, lambda n: _repeated(WORDS, n)),
    "content, llama3_json": ("llama3_json", None, lambda n: _repeated(WORDS, n)),
    "reasoning, think": ("hermes", "think", lambda n: "<think>" + _repeated(WORDS, n)),
    "a long string argument": (
        "hermes",
        None,
        lambda n: '<tool_call>{"name": "f", "arguments": {"s": "' + CODE * (n // len(CODE)),
    ),
    "arguments with structure": (
        "hermes",
        None,
        lambda n: '<tool_call>{"name": "f", "arguments": [' + NUMBERS * (n // len(NUMBERS)),
    ),
    "bare arguments": (
        "llama3_json",
        None,
        lambda n: '{"name": "f", "parameters": {"s": "' + CODE * (n // len(CODE)),
    ),
    "many calls": (
        "hermes",
        None,
        lambda n: _repeated('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n', n),
    ),
}


TOOLS = ToolSchemas(
    [{"function": {"name": "f", "parameters": {"properties": {"s": {"type": "string"}}}}}]
)
PROSE = "The quick brown fox jumps over the lazy dog. "


def _long_argument(name: str) -> Callable[[int], str]:
    """Makes one call in a format, with a string argument of any length."""
    tool_format = TOOL_FORMATS[name]
    return lambda n: render_calls(tool_format, [("f", f'{{"s": "{_repeated(PROSE, n)}"}}')])


NAMES = sorted({declared.name for declared in TOOL_FORMATS.values()})
SCENARIOS |= {f"{name} argument": (name, None, _long_argument(name)) for name in NAMES}


def seconds(name: str, num_chars: int, delta_size: int, repeat: int) -> tuple[float, int]:
    """Parses one scenario's text.

    Returns:
        The best CPU time of `repeat` runs, seconds, and how many characters were parsed.
    """
    tools, reasoning, make = SCENARIOS[name]
    text = make(num_chars)
    deltas = [text[start : start + delta_size] for start in range(0, len(text), delta_size)]
    ends = range(delta_size, len(text) + delta_size, delta_size)
    best = float("inf")
    for _ in range(repeat):
        machine = Machine(
            tool_format=find_tool_format(tools),
            reasoning_format=find_reasoning_format(reasoning),
            call_id=lambda index, name: f"call_{index}",
            tools=TOOLS,
        )
        feed = machine.feed
        begin = time.process_time()
        for delta, end in zip(deltas, ends, strict=True):
            feed(delta, (end,))
        machine.finish()
        best = min(best, time.process_time() - begin)
    return best, len(text)


def tools_of(name: str) -> bool:
    """Whether a scenario stands for one format among all."""
    return name.removesuffix(" argument") in NAMES


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-chars", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args(arguments)
    sizes = [size for size in (1_000, 10_000, 100_000, 1_000_000) if size <= options.max_chars]

    print("ns per character, 4-character deltas, by the length of the text\n")
    print(f"{'':28}" + "".join(f"{size:>12,}" for size in sizes))
    for name in SCENARIOS:
        row = []
        for size in sizes:
            best, num_chars = seconds(name, size, 4, options.repeat)
            row.append(f"{best / num_chars * 1e9:12.0f}")
        print(f"{name:28}" + "".join(row))

    print(
        "\nµs per delta, by the size of the delta in characters (100,000 characters of text);\n"
        "and how much more a character costs when it comes alone than in fours\n"
    )
    print(f"{'':28}" + "".join(f"{size:>12}" for size in DELTA_SIZES) + f"{'1 : 4':>12}")
    means = []
    for name in SCENARIOS:
        per_char = {}
        for size in DELTA_SIZES:
            best, num_chars = seconds(name, min(100_000, options.max_chars), size, options.repeat)
            per_char[size] = best / num_chars
        if name.endswith(" argument") and tools_of(name):
            means.append(per_char[4] * 4e6)
        row = [f"{time * size * 1e6:12.2f}" for size, time in per_char.items()]
        print(f"{name:28}" + "".join(row) + f"{per_char[1] / per_char[4]:12.2f}")
    print(f"\nmean over formats, 4-character deltas in arguments: {sum(means) / len(means):.2f} µs")


if __name__ == "__main__":
    main()

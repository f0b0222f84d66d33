"""The page of agreements: tables by backend, a row for each case."""

from collections.abc import Mapping, Sequence
from typing import Final

from tests.parity.measurement import KINDS, WAYS, Agreement

Results = Mapping[tuple[str, str, str], Mapping[str, Agreement]]
"""By case, backend and type of weights: what each way gave."""

_SHORT: Final = {"float32": "f32", "bfloat16": "bf16", "int8": "int8", "int4": "int4"}
_MISSING: Final = "–"
_HEAD: Final = """# Parity with transformers

Written by `make parity-table` ({date}; {machine}): how near each small random model of
`tests/fakes/model_families.py` comes to transformers in float32 on torch, in each type of weights
and on either backend. Its tokens are random: {num_prompt} of a prompt and {num_output} behind it,
which are given, not chosen.

- *prefill*: the prompt in one step. *chunked*: in steps of 16 tokens. *decode*: what follows, one
  token a step. *cached*: the prompt's second half behind blocks that another request left, in
  chunks. *resumed*: prompt and a part of the output in chunks, the rest token by token.
- The first table of a backend has the share of tokens, rounded down to whole percent, for which
  both think the same token likeliest, type by type. The second one has the largest difference of
  two logits among all those tokens, over the deviation of transformers' logits.
- Weights are random and strong, and layers narrow: two tokens are often as likely as one another,
  and what a type loses is amplified. A trained model agrees far more often
  ([Quality](../quality.md)). What the table shows is that float32 is the same in every way, and
  that within a type the ways agree with one another.
- XLA compiles these programs without its costlier optimisations; `make parity` has it as served.
"""


def page(
    cases: Sequence[str],
    results: Results,
    *,
    date: str,
    machine: str,
    num_prompt: int,
    num_output: int,
) -> str:
    """The page as Markdown.

    Args:
        cases: In their order.
        results: Of what was measured; the page says what wasn't.
        date: When it was measured.
        machine: And on what.
        num_prompt: Tokens of a prompt.
        num_output: Tokens behind it.
    """
    parts = [
        _HEAD.format(
            date=date,
            machine=machine,
            num_prompt=num_prompt,
            num_output=num_output,
        )
    ]
    for backend in dict.fromkeys(backend for backend, _ in KINDS):
        types = [one for other, one in KINDS if other == backend]
        found = {case: _of_types(results, case, backend, types) for case in cases}
        missing = [case for case, by_type in found.items() if not any(by_type)]
        if len(missing) == len(cases):
            parts += [f"Not measured: `{backend}`.", ""]
            continue
        rows = {f"`{case}`": by_type for case, by_type in found.items() if any(by_type)}
        parts += [f"## `{backend}`: the same token likeliest, %", ""]
        parts += [f"Of {', '.join(_SHORT[one] for one in types)}.", ""]
        parts += _table(
            ["case", *WAYS],
            [[name, *(_shares(row, way) for way in WAYS)] for name, row in rows.items()],
        )
        parts += ["", f"## `{backend}`: the largest difference", ""]
        parts += _table(
            ["case", *(_SHORT[one] for one in types)],
            [[name, *map(_largest, row)] for name, row in rows.items()],
        )
        parts += [""]
        if missing:
            names = ", ".join(f"`{case}`" for case in missing)
            parts += [f"Not measured: {names}.", ""]
    return "\n".join(parts)


def _of_types(
    results: Results, case: str, backend: str, types: Sequence[str]
) -> list[Mapping[str, Agreement]]:
    """What was found in each type; empty where it wasn't measured."""
    return [results.get((case, backend, one), {}) for one in types]


def _shares(row: Sequence[Mapping[str, Agreement]], way: str) -> str:
    return " ".join(str(found[way].percent) if found else _MISSING for found in row)


def _largest(found: Mapping[str, Agreement]) -> str:
    return f"{max(one.difference for one in found.values()):.2g}" if found else _MISSING


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]

"""The page of agreements: tables by backend, a row for each case; written, and read back."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.parity.measurement import KINDS, WAYS, Agreement


@dataclass(frozen=True, slots=True)
class Measured:
    """One model in one type on one backend.

    Attributes:
        ways: What each of `WAYS` gave.
        date: When.
    """

    ways: Mapping[str, Agreement]
    date: str


Results = Mapping[tuple[str, str, str], Measured]
"""By case, backend and type of weights."""

_SHORT: Final = {"float32": "f32", "bfloat16": "bf16", "int8": "int8", "int4": "int4"}
_MISSING: Final = "–"
_DATE: Final = "measured"
_HEAD: Final = """# Parity with transformers

Written by `make parity-table` ({machine}): how near each small random model of
`tests/fakes/model_families.py` comes to transformers in float32 on torch, in each type of weights
and on either backend. Its tokens are random: {num_prompt} of a prompt and {num_output} behind it,
which are given, not chosen.

- *prefill*: the prompt in one step. *chunked*: in steps of 16 tokens. *decode*: what follows, one
  token a step. *cached*: the prompt's second half behind blocks that another request left, in
  chunks. *resumed*: prompt and a part of the output in chunks, the rest token by token.
- The first table of a backend has the share of tokens, rounded down to whole percent, for which
  both think the same token likeliest, type by type. The second one has the largest difference of
  two logits among all those tokens, over the deviation of transformers' logits, and when the newest
  number of the row was measured.
- Weights are random and strong, and layers narrow: two tokens are often as likely as one another,
  and what a type loses is amplified. A trained model agrees far more often
  ([Quality](../quality.md)). What the table shows is that float32 is the same in every way, and
  that within a type the ways agree with one another.
- Where experts are chosen, a rounding may choose another one, and all that follows is different.
  transformers in bfloat16 on torch does the same. The mean and the largest of the differences of 48
  tokens' rows, of four models each: `gemma4_with_experts_and_values_of_keys` 0.31 and 3.8, here
  0.33 and 2.9 (routers multiplied in float32 changed nothing); `granite_moe_with_multipliers` 0.055
  and 0.63, here 0.049 and 1.9; without experts, `gemma4_with_shared_keys`, 0.21 and 1.2, here 0.15
  and 0.62 (2026-11-29).
- What XLA computed of a model of int4 was int8. So of those whose attention or MLP went to the
  kernels (Cohere, Falcon-H1, Gemma 3n and 4, latents), int4 of 2026-11-30 is lower than it was.
- XLA compiles these programs without its costlier optimisations; `make parity` has it as served.
"""


def page(
    cases: Sequence[str],
    results: Results,
    *,
    machine: str,
    num_prompt: int,
    num_output: int,
) -> str:
    """The page as Markdown.

    Args:
        cases: In their order.
        results: Of what was measured; the page says what wasn't.
        machine: On what it was measured.
        num_prompt: Tokens of a prompt.
        num_output: Tokens behind it.
    """
    parts = [
        _HEAD.format(
            machine=machine,
            num_prompt=num_prompt,
            num_output=num_output,
        )
    ]
    for backend in dict.fromkeys(backend for backend, _ in KINDS):
        types = [one for other, one in KINDS if other == backend]
        found = {case: _of_types(results, case, backend, types) for case in cases}
        missing = [case for case, row in found.items() if not any(row)]
        if len(missing) == len(cases):
            parts += [f"Not measured: `{backend}`.", ""]
            continue
        rows = {f"`{case}`": row for case, row in found.items() if any(row)}
        parts += [f"## `{backend}`: the same token likeliest, %", ""]
        parts += [f"Of {', '.join(_SHORT[one] for one in types)}.", ""]
        parts += _table(
            ["case", *WAYS],
            [[name, *(_shares(row, way) for way in WAYS)] for name, row in rows.items()],
        )
        parts += ["", f"## `{backend}`: the largest difference", ""]
        parts += _table(
            ["case", *(_SHORT[one] for one in types), _DATE],
            [[name, *map(_largest, row), _date_of(row)] for name, row in rows.items()],
        )
        parts += [""]
        if missing:
            names = ", ".join(f"`{case}`" for case in missing)
            parts += [f"Not measured: {names}.", ""]
    return "\n".join(parts)


def read_page(text: str) -> dict[tuple[str, str, str], Measured]:
    """The results of a page, as far as it says them: `page` makes the same rows of them."""
    shares: dict[tuple[str, str, str], list[str]] = {}
    found: dict[tuple[str, str, str], Measured] = {}
    for section in text.split("\n## ")[1:]:
        title = section.splitlines()[0]
        backend = title.split("`")[1]
        types = [one for other, one in KINDS if other == backend]
        for case, cells in re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE):
            columns = cells.split(" | ")
            if title.endswith("%"):
                by_type = zip(*(column.split() for column in columns), strict=True)
                shares |= {
                    (case, backend, one): list(of_type)
                    for one, of_type in zip(types, by_type, strict=True)
                }
                continue
            for one, difference in zip(types, columns[:-1], strict=True):
                key = case, backend, one
                if difference != _MISSING:
                    ways = {
                        way: Agreement(int(share), 100, float(difference))
                        for way, share in zip(WAYS, shares[key], strict=True)
                    }
                    found[key] = Measured(ways, columns[-1])
    return found


def _of_types(
    results: Results, case: str, backend: str, types: Sequence[str]
) -> list[Measured | None]:
    """What was found in each type; None where it wasn't measured."""
    return [results.get((case, backend, one)) for one in types]


def _shares(row: Sequence[Measured | None], way: str) -> str:
    return " ".join(_MISSING if one is None else str(one.ways[way].percent) for one in row)


def _largest(one: Measured | None) -> str:
    if one is None:
        return _MISSING
    return f"{max(agreement.difference for agreement in one.ways.values()):.2g}"


def _date_of(row: Sequence[Measured | None]) -> str:
    return max(one.date for one in row if one is not None)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]

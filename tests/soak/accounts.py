"""Where output tokens went that were settled and not told: the ledger's rows beside the answers."""

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

TOLD = "the client was told the same"
TOLD_MORE = "the client was told more"
TOLD_LESS = "the client was told less"
UNKNOWN = "no client saw its id: no head of an answer came"
REFUSED = "the client got a 503, and output had been made"
WITHOUT_ROW = "the client was told its usage, and no row has it"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one client knows of one answer.

    Attributes:
        ending: As the client saw it.
        arrived: Output tokens that the last usage named which came; with an ending other than
            `finished` the client may have left, or lost its gateway, after that.
        is_told: Whether the usage at the end came, too.
    """

    ending: str
    arrived: int
    is_told: bool


@dataclass
class Account:
    """Answers of one sort.

    Attributes:
        num_answers: How many.
        settled: Output tokens that the ledger has for them.
        arrived: Those that their clients know of.
    """

    num_answers: int = 0
    settled: int = 0
    arrived: int = 0

    @property
    def difference(self) -> int:
        """What was settled and didn't arrive."""
        return self.settled - self.arrived


def accounts(rows: Iterable[tuple[str, int]], seen: Mapping[str, Seen]) -> dict[str, Account]:
    """Every row of the ledger and every answer in the account of its cause.

    Args:
        rows: Request id and settled output tokens; a request that was charged twice has two.
        seen: Request id → what its client knows.
    """
    settled: dict[str, int] = {}
    for request_id, tokens in rows:
        settled[request_id] = settled.get(request_id, 0) + tokens
    found: dict[str, Account] = {}

    def book(cause: str, tokens: int, arrived: int) -> None:
        account = found.setdefault(cause, Account())
        account.num_answers += 1
        account.settled += tokens
        account.arrived += arrived

    for request_id, tokens in settled.items():
        one = seen.get(request_id)
        if one is not None and one.ending == "refused" and not tokens:
            continue  # a refusal that was charged nothing
        if one is None:
            book(UNKNOWN, tokens, 0)
        else:
            book(_cause(one, tokens), tokens, one.arrived)
    for request_id, one in seen.items():
        if request_id not in settled and one.is_told:
            book(WITHOUT_ROW, 0, one.arrived)
    return found


def _cause(one: Seen, settled: int) -> str:
    if one.ending == "refused":
        return REFUSED
    if not one.is_told:
        return f"the stream ended before its usage: {one.ending}"
    if settled == one.arrived:
        return TOLD
    return TOLD_MORE if one.arrived > settled else TOLD_LESS


def rows_of_keys(database: Path, key_ids: Iterable[str]) -> list[tuple[str, int]]:
    """Request id and output tokens of each row that counts, of some keys."""
    wanted = list(key_ids)
    marks = ",".join("?" * len(wanted))
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(
            "SELECT request_id, completion_tokens FROM ledger"
            f" WHERE outcome <> 'unused' AND key_id IN ({marks})",
            wanted,
        ).fetchall()


def render_accounts(found: Mapping[str, Account]) -> list[str]:
    """A table of Markdown, the largest difference first."""
    lines = [
        "| output tokens of answers of which | answers | settled | arrived | difference |",
        "|---|---|---|---|---|",
    ]
    for cause, one in sorted(found.items(), key=lambda item: -abs(item[1].difference)):
        lines.append(
            f"| {cause} | {one.num_answers} | {one.settled} | {one.arrived} | {one.difference} |"
        )
    return lines

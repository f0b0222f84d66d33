"""The soak's accounts: every row of the ledger and every answer under its cause."""

import sqlite3
from pathlib import Path

from auth_worker.storage import schema
from tests.soak.accounts import (
    REFUSED,
    TOLD,
    TOLD_LESS,
    TOLD_MORE,
    UNKNOWN,
    WITHOUT_ROW,
    Account,
    Seen,
    accounts,
    render_accounts,
    rows_of_keys,
)
from tests.soak.report import Findings, render
from tests.soak.traffic import Answer, Kind, Ledger

CUT = "the stream ended before its usage: gateway_lost"


def test_each_answer_is_booked_under_its_cause() -> None:
    seen = {
        "same": Seen("finished", 10, is_told=True),
        "less": Seen("finished", 10, is_told=True),
        "more": Seen("finished", 10, is_told=True),
        "cut": Seen("gateway_lost", 4, is_told=False),
        "cut too": Seen("gateway_lost", 6, is_told=False),
        "left": Seen("left", 6, is_told=False),
        "lost": Seen("finished", 7, is_told=True),
        "never granted": Seen("gateway_lost", 0, is_told=False),
        "refused": Seen("refused", 0, is_told=False),
        "refused late": Seen("refused", 0, is_told=False),
    }
    rows = [
        *(("same", 10), ("less", 10), ("less", 3), ("more", 9), ("cut", 9), ("cut too", 6)),
        *(("left", 160), ("nobody's", 5), ("refused", 0), ("refused late", 3)),
    ]
    assert accounts(rows, seen) == {
        TOLD: Account(1, 10, 10),
        TOLD_LESS: Account(1, 13, 10),
        TOLD_MORE: Account(1, 9, 10),
        CUT: Account(2, 15, 10),
        "the stream ended before its usage: left": Account(1, 160, 6),
        REFUSED: Account(1, 3, 0),
        UNKNOWN: Account(1, 5, 0),
        WITHOUT_ROW: Account(1, 0, 7),
    }


def test_the_largest_difference_is_told_first() -> None:
    table = render_accounts({TOLD: Account(9, 90, 90), UNKNOWN: Account(1, 5, 0)})
    assert table[2:] == [
        f"| {UNKNOWN} | 1 | 5 | 0 | 5 |",
        f"| {TOLD} | 9 | 90 | 90 | 0 |",
    ]


def test_rows_are_those_that_count_of_the_named_keys(tmp_path: Path) -> None:
    path = tmp_path / "auth.sqlite3"
    columns = ("request_id", "key_id", "completion_tokens", "outcome")
    assert set(columns) <= set(schema.ledger.c.keys())
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE ledger ({', '.join(columns)})")
        database.executemany(
            "INSERT INTO ledger VALUES (?, ?, ?, ?)",
            [
                ("a", "one", 1, "finished"),
                ("b", "two", 2, "expired"),
                ("c", "one", 0, "unused"),
                ("d", "three", 4, "finished"),
            ],
        )
    database.close()
    assert sorted(rows_of_keys(path, ["one", "two"])) == [("a", 1), ("b", 2)]


def test_what_a_client_saw_is_noted_by_the_server_s_id() -> None:
    kind = Kind("k", "/v1/completions", {})
    ledger = Ledger()
    told = Answer(kind, 0.0, "finished", "1", "1", num_done=1)
    told.completion_tokens = told.arrived_tokens = 5
    cut = Answer(kind, 0.0, "gateway_lost", "2", "2", arrived_tokens=3)
    refused = Answer(kind, 0.0, "refused", "3")
    early, unreachable = Answer(kind, 0.0, "gateway_lost"), Answer(kind, 0.0, "unreachable")
    for answer in (told, cut, refused, early, unreachable):
        ledger.take(answer, {})
    assert ledger.seen == {
        "1": Seen("finished", 5, is_told=True),
        "2": Seen("gateway_lost", 3, is_told=False),
        "3": Seen("refused", 0, is_told=False),
    }
    assert ledger.num_lost_early == 1
    assert not ledger.wrong
    assert ledger.delivered_completion_tokens == 5


def test_an_answer_with_anothers_id_is_wrong() -> None:
    ledger = Ledger()
    ledger.take(Answer(Kind("k", "/v1/completions", {}), 0.0, "left", "1", "2"), {})
    assert ledger.wrong == ["k: 2 in 1's answer"]


def test_what_was_charged_and_no_client_can_have_lost_is_not_clean() -> None:
    ledger = Ledger(num_lost_early=2)
    explained = Findings(1.0, ledger, [], accounts={UNKNOWN: Account(2, 9, 0)})
    assert explained.is_clean
    unexplained = Findings(1.0, ledger, [], accounts={UNKNOWN: Account(3, 9, 0)})
    assert not unexplained.is_clean
    assert "| charged, and no client lost so many before a head | 1 |" in render(unexplained)

"""Tables in a terminal of 80 columns and in a pipe: no id, key or amount is cut."""

import pytest

from penstock.tables import print_record, print_table

KEY_ID = "key_7e0c1f9ab2d34e56"
TEAM_ID = "team_9a8b7c6d5e4f3a2b"
HINT = "psk-TEaZ9…x4Qw"
LIST_OF_KEYS = (
    ("id", "name", "role", "owner", "key", "requests", "tokens", "status"),
    [KEY_ID, "laptop of Ada", "user", "user_0123456789abcdef", HINT, 12, 3456789, "active"],
)
AUDIT = (
    ("seq", "at", "actor", "action", "subject", "outcome", "address", "detail"),
    [
        *(123456, "2026-11-29 16:00:00 UTC", KEY_ID, "key_created", "key_0011223344556677"),
        *("done", "2001:db8::8a2e:370:7334", {"name": "laptop", "role": "user"}),
    ],
)
BUDGETS = (
    ("budget", "of", "spent", "left", "amount", "%", "a day", "projected", "days left"),
    [
        *("team of the month", f"team {TEAM_ID}", "1234.567891", "0.000123", "1234.568014"),
        *(99.9, "411.522630", "12345.678901", 0.1),
    ],
)
TEXTS = (("id", "name", "amount"), [KEY_ID, "a long name " * 20, "0.000123"])


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "dumb")  # no colours
    monkeypatch.setenv("COLUMNS", "80")


def words(row: list[object]) -> list[str]:
    return [word for cell in row if not isinstance(cell, dict) for word in str(cell).split()]


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(("columns", "row"), [LIST_OF_KEYS, AUDIT, BUDGETS, TEXTS])
def test_every_word_of_a_table_is_whole_in_80_columns(
    columns: tuple[str, ...], row: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(columns, [row, row])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for word in words(row):
        assert out.count(word) >= 2, word


@pytest.mark.usefixtures("terminal")
def test_a_table_whose_words_fit_stays_a_table_and_its_texts_wrap(
    capsys: pytest.CaptureFixture[str],
) -> None:
    columns, row = TEXTS
    print_table(columns, [row])
    lines = capsys.readouterr().out.splitlines()
    (first,) = [line for line in lines if KEY_ID in line]
    assert "a long name a long name" in first
    assert "0.000123" in first


@pytest.mark.usefixtures("terminal")
def test_what_is_longer_than_a_line_of_a_record_folds(capsys: pytest.CaptureFixture[str]) -> None:
    print_record({"id": KEY_ID, "hash": "0123456789" * 20}, as_json=False)
    out = capsys.readouterr().out
    assert KEY_ID in out
    assert sum(map(out.count, "0123456789")) >= 200
    assert "…" not in out


def test_in_a_pipe_a_row_is_one_line_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("id", "name"), [[KEY_ID, "x " * 1000 + "end"]])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if KEY_ID in line]
    assert "end" in line

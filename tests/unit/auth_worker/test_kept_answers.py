"""Administrators' requests are claimed once; what came of them is kept for a day, for its owner."""

import pytest

from auth_worker.records.operations import ClaimAnswerRow, ClaimedAnswer, KeepAnswerRow, Operation
from auth_worker.storage import answer_table
from auth_worker.storage.answer_table import MAX_AGE_MS
from auth_worker.storage.sql_store import SqlStore

NAME, BODY = b"n" * 32, b"b" * 32


def claimed(store: SqlStore, operation: Operation) -> ClaimedAnswer:
    (result,) = store.apply([operation])
    assert isinstance(result, ClaimedAnswer)
    return result


def claim(name: bytes = NAME, owner: str = "key_1", body: bytes = BODY, at: int = 0) -> Operation:
    return ClaimAnswerRow(name, owner, body, at)


def test_a_name_is_claimed_once_and_its_answer_told_to_its_owner(store: SqlStore) -> None:
    first, second = store.apply([claim(), claim()])
    assert (first, second) == (ClaimedAnswer("new"), ClaimedAnswer("running"))
    assert claimed(store, claim(body=b"x" * 32)).state == "other"
    assert claimed(store, claim(owner="key_2")).state == "other"
    store.apply([KeepAnswerRow(NAME, "key_2", b"forged")])
    store.apply([KeepAnswerRow(NAME, "key_1", b"sealed")])
    assert claimed(store, claim()) == ClaimedAnswer("kept", b"sealed")
    store.apply([KeepAnswerRow(NAME, "key_1", b"")])
    assert claimed(store, claim()).state == "kept"


def test_it_says_for_how_long_it_has_been_running(store: SqlStore) -> None:
    assert claimed(store, claim(at=5000)) == ClaimedAnswer("new")
    assert claimed(store, claim(at=65_000)) == ClaimedAnswer("running", age_ms=60_000)
    assert claimed(store, claim(at=1)).age_ms == 0  # the clock was put back


def test_what_came_to_nothing_may_begin_anew(store: SqlStore) -> None:
    store.apply([claim(), KeepAnswerRow(NAME, "key_1", b"")])
    assert claimed(store, claim()).state == "new"


def test_a_day_later_it_is_forgotten(store: SqlStore) -> None:
    store.apply([claim(), KeepAnswerRow(NAME, "key_1", b"sealed")])
    assert claimed(store, claim(at=MAX_AGE_MS)).state == "kept"
    assert claimed(store, claim(at=MAX_AGE_MS + 1)).state == "new"


def test_one_owner_keeps_no_more_than_so_many(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_table, "MAX_OF_OWNER", 5)
    names = [number.to_bytes(32, "big") for number in range(6)]
    store.apply([claim(name, at=number) for number, name in enumerate(names)])
    assert claimed(store, claim(names[-1], at=2000)).state == "running"
    assert claimed(store, claim(names[0], at=2000)).state == "new"

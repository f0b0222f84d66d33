"""Tries of a batch's lines: what they cost, and what becomes of one that meets a bug of ours."""

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from msgspec.structs import replace
from starlette.types import Message, Receive, Scope, Send

from gateway.batches.journal import Journal
from gateway.batches.line_room import LineAnswer
from gateway.batches.line_runs import LineErrand
from gateway.batches.store import Claim
from gateway.http.errands import Errands
from gateway.request.callers.caller import Caller
from protocol.wire.messages import Settle
from tests.unit.gateway.batches.test_runner import Harness, bad, good


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path)
    yield journal
    journal.close()


def settle(name: str) -> Settle:
    return Settle(lease_id=name, request_id="r", prompt_tokens=3, completion_tokens=2)


@pytest.mark.parametrize("counts", [True, False])
def test_a_settlement_that_comes_after_the_answer_is_settled(
    journal: Journal, *, counts: bool
) -> None:
    settled: list[Settle] = []
    errand = LineErrand(journal, 0, settled.append, Mock())
    assert errand.close(counts=counts) is None  # a deadline; the engine still works on it
    errand.put(settle("late"))
    assert [(one.lease_id, one.is_unused) for one in settled] == [("late", not counts)]


def test_of_a_try_s_requests_only_the_one_with_the_answer_is_used(journal: Journal) -> None:
    settled: list[Settle] = []
    errand = LineErrand(journal, 0, settled.append, Mock())
    errand.put(settle("first"))
    errand.put(settle("second"))
    assert errand.close(counts=True) == settle("second")
    errand.put(settle("late"))
    assert [(one.lease_id, one.is_unused) for one in settled] == [("first", True), ("late", True)]


@pytest.mark.parametrize(
    ("num_late", "num_tokens", "num_tries"), [(1, 0, 2), (1, 5, 1), (99, 0, 3)]
)
async def test_a_line_without_a_token_when_its_time_was_up_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_late: int, num_tokens: int, num_tries: int
) -> None:
    """Lines stand behind everybody's requests, for longer than any of these may take."""
    monkeypatch.setattr("gateway.batches.line_runs._MAX_LATE", 2)
    monkeypatch.setattr("gateway.batches.line_runs._MAX_RETRY_S", 0.0)
    harness, tries = Harness(tmp_path), list[str]()

    async def ask(path: str, body: bytes, caller: Caller) -> Any:
        tries.append(f"lease-{len(tries)}")
        is_late = len(tries) <= num_late
        assert caller.errand is not None
        caller.errand.on_granted(tries[-1])
        used = num_tokens if is_late else 2
        settled = replace(settle(tries[-1]), completion_tokens=used)
        if not is_late:
            caller.errand.put(settled)
            return good()
        # What an engine says of it comes behind the answer.
        asyncio.get_running_loop().call_soon(caller.errand.put, settled)
        return bad(504)

    harness.ask = ask  # type: ignore[method-assign]
    harness.open()
    counts = (await harness.until_ended(harness.create(1)))["request_counts"]
    is_answered = num_tries > num_late
    assert (len(tries), counts["completed"]) == (num_tries, is_answered)
    # What came to nothing costs nothing.
    unused = [one.is_unused for one in harness.ledger.first.values()]
    assert unused == [True] * (num_tries - 1) + [False]


async def test_a_line_waits_for_another_one_of_its_conversation(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.answer = lambda _id: bad(409) if len(harness.asked) == 1 else good()
    counts = (await harness.until_ended(harness.create(1)))["request_counts"]
    assert counts == {"total": 1, "completed": 1, "failed": 0}


async def test_what_is_ignored_of_a_line_stands_in_its_answer(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    ignored = {"x-penstock-ignored-fields": "max_tokns, tools[0].x"}
    harness.answer = lambda custom_id: (
        LineAnswer(200, ignored, b"{}") if custom_id == "c0" else good()
    )
    ended = await harness.until_ended(harness.create(2))
    told = harness.told(ended["output_file_id"])
    assert told["c0"]["response"]["ignored_fields"] == ["max_tokns", "tools[0].x"]
    assert "ignored_fields" not in told["c1"]["response"]


async def test_a_line_s_lease_is_settled_also_when_its_engine_ends_late(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    errands: list[Any] = []

    async def ask(path: str, body: bytes, caller: Caller) -> Any:
        assert caller.errand is not None
        caller.errand.on_granted("lease")
        errands.append(caller.errand)
        return good()

    harness.ask = ask  # type: ignore[method-assign]
    harness.open()
    await harness.until_ended(harness.create(1))
    assert harness.ledger.first == {}
    errands[0].put(settle("lease"))
    assert harness.ledger.first == {"lease": settle("lease")}


@pytest.mark.parametrize("is_whole", [True, False])
async def test_a_line_that_meets_a_bug_has_its_answer(
    caplog: pytest.LogCaptureFixture, *, is_whole: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        start: Message = {"type": "http.response.start", "status": 500 if is_whole else 200}
        await send({**start, "headers": []})
        await send({"type": "http.response.body", "body": b'{"a"', "more_body": True})
        if is_whole:
            await send({"type": "http.response.body", "body": b":1}"})
        raise RuntimeError("a bug")

    caller = Caller(None, "127.0.0.1", "batch_1")
    answer = await Errands(lambda: app).ask("/v1/chat/completions", b"{}", caller)
    assert answer.status == 500
    assert (answer.body == b'{"a":1}') if is_whole else (b"internal_error" in answer.body)
    assert "a bug" in caplog.text


async def test_what_fails_before_it_answers_is_no_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        await Errands(lambda: app).ask("/v1/models", b"{}", Caller(None, "127.0.0.1"))


async def test_a_full_disk_is_no_answer_to_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The route answers 500 then, too, and the line is asked again by whoever has room."""
    harness = Harness(tmp_path)
    real, num_failures = Journal.note_lease, 1

    def full(journal: Journal, line: int, lease_id: str) -> None:
        nonlocal num_failures
        if num_failures:
            num_failures -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        real(journal, line, lease_id)

    monkeypatch.setattr(Journal, "note_lease", full)
    monkeypatch.setattr("gateway.batches.runner.FIRST_PAUSE_S", 0.0)
    asking = harness.ask

    async def ask(path: str, body: bytes, caller: Caller) -> Any:
        try:
            return await asking(path, body, caller)
        except OSError:
            return good("a bug's answer")._replace(status=500)

    harness.ask = ask  # type: ignore[method-assign]
    harness.open()
    ended = await harness.until_ended(harness.create(1))
    assert ended["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


async def test_a_batch_that_can_t_be_locked_keeps_no_other_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    harness = Harness(tmp_path)
    batches = [harness.create(1), harness.create(1)]
    real, num_claims = harness.store.claim, 0

    def claim(tenant: str, batch_id: str) -> Claim | None:
        nonlocal num_claims
        num_claims += 1
        if num_claims == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(tenant, batch_id)

    monkeypatch.setattr(harness.store, "claim", claim)
    for batch in batches:
        assert (await until_ended(harness, batch.id))["status"] == "completed"
    assert "Too many open files" in caplog.text
    await harness.runner.stop()


async def until_ended(harness: Harness, batch_id: str) -> dict[str, Any]:
    while True:
        harness.runner.look()
        found = harness.store.find("t", batch_id)
        if found.status in ("failed", "completed"):
            return found.as_object()
        await asyncio.sleep(0.01)


def test_a_lock_that_fails_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(tmp_path)
    batch = harness.create(1)

    def broken(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = num_open()
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", broken)
        with pytest.raises(OSError, match="No locks"):
            harness.store.claim("t", batch.id)
    assert num_open() == before


async def test_a_look_that_ends_after_the_stop_claims_nothing(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    batch = harness.create(1)
    harness.runner.look()
    await harness.runner.stop()
    claim = harness.store.claim("t", batch.id)
    assert claim is not None
    claim.release()
    assert harness.asked == []


async def test_a_look_that_fails_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    harness = Harness(tmp_path)

    def broken() -> list[Any]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(harness.store, "unfinished", broken)
    harness.runner.look()
    await harness.runner.stop()
    assert "looking for batches failed" in caplog.text

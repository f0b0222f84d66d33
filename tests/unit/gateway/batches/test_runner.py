"""Batches to their end: each line answered and booked once, whatever is killed in between."""

import asyncio
import json
import os
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.batches.files import FileBounds, FileStore
from gateway.batches.line_room import LineAnswer, OnTheirWay
from gateway.batches.lines import Wanted
from gateway.batches.records import Batch
from gateway.batches.runner import MAX_OPEN_A_TENANT, TURN_S, BatchRunner
from gateway.batches.store import BatchStore
from gateway.errors import ResourceNotFoundError
from gateway.request.callers.caller import Caller
from protocol.wire.messages import Settle

CHAT = "/v1/chat/completions"


class Monotonic:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Ledger:
    """What an auth worker would book: each lease once."""

    def __init__(self) -> None:
        self.first: dict[str, Settle] = {}

    def put(self, settle: Settle) -> None:
        self.first.setdefault(settle.lease_id, settle)

    def used(self) -> Counter[str]:
        """By line, how often it was booked as used."""
        return Counter(settle.request_id for settle in self.first.values() if not settle.is_unused)


class Harness:
    """Files, batches and a runner; `answer` is what a line is answered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.monotonic = Monotonic()
        self.ledger = Ledger()
        self.num_free = 4
        self.away: set[str | None] = set()  # models
        self.busy: set[str | None] = set()
        self.asked: list[str] = []
        self.most_under_way = self.under_way = 0
        self.num_leases = 0
        self.has_asked_all = asyncio.Event()  # six of them
        self.answer: Callable[[str], Awaitable[LineAnswer] | LineAnswer] = lambda _id: good()
        self.open()

    def open(self) -> None:
        """A gateway starts."""
        bounds = FileBounds(100, 10**9, 10**8, 86_400 * 30)
        self.open_with(FileStore(self.folder / "files", bounds, self.clock))

    def open_with(self, files: FileStore) -> None:
        """One with these bounds starts."""
        self.files = files
        self.store = BatchStore(self.folder / "batches", self.files, 86_400 * 30, self.clock)
        self.runner = BatchRunner(
            self.store,
            self.files,
            ask=self.ask,
            settle=self.ledger.put,
            num_free=self.num_free_of,
            max_lines=3,
            max_line_bytes=10_000,
            wall_clock=self.clock,
            clock=self.monotonic,
        )

    def num_free_of(self, endpoint: str, wanted: Wanted, on_their_way: OnTheirWay) -> int | None:
        assert endpoint == CHAT
        if wanted.model in self.away:
            return None
        num_begun = self.under_way + sum(on_their_way.values())
        return 0 if wanted.model in self.busy else self.num_free - num_begun

    async def ask(self, path: str, body: bytes, caller: Caller) -> LineAnswer:
        custom_id = json.loads(body)["user"]
        self.asked.append(custom_id)
        errand = caller.errand
        assert path == CHAT
        assert errand is not None
        assert errand.priority > 1
        self.num_leases += 1
        if len(self.asked) == 6:
            self.has_asked_all.set()
        lease_id = f"lease-{self.num_leases}"
        errand.on_granted(lease_id)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            answer = self.answer(custom_id)
            if not isinstance(answer, LineAnswer):
                answer = await answer
            await asyncio.sleep(0)
        finally:
            self.under_way -= 1
        settle = Settle(
            lease_id=lease_id, request_id=custom_id, prompt_tokens=3, completion_tokens=2
        )
        errand.put(settle)
        return answer

    def create(self, num_lines: int, tenant: str = "t", **changes: Any) -> Batch:
        return self.create_of(self.texts(num_lines, **changes), tenant)

    def texts(self, num_lines: int, **changes: Any) -> list[str]:
        return [
            json.dumps(
                {"custom_id": f"c{one}", "method": "POST", "url": CHAT, "body": {"user": f"c{one}"}}
                | changes
            )
            for one in range(num_lines)
        ]

    def create_of(self, texts: list[str], tenant: str = "t") -> Batch:
        file_id, path = self.files.begin(tenant)
        path.write_text("\n".join(texts))
        self.files.finish(tenant, file_id, "in.jsonl", "batch")
        return self.create_again(file_id, tenant)

    def create_again(self, file_id: str, tenant: str = "t", made_id: str = "") -> Batch:
        return self.store.create(
            tenant,
            made_id=made_id,
            key_digest="00" * 32,
            key_id="key_1",
            address="127.0.0.1",
            endpoint=CHAT,
            input_file_id=file_id,
            metadata={"a": "b"},
            output_lifetime_s=None,
        )

    async def until_ended(self, batch: Batch, tenant: str = "t") -> dict[str, Any]:
        while True:
            self.runner.look()
            found = self.store.find(tenant, batch.id)
            if found.status in ("failed", "completed", "expired", "cancelled"):
                await self.runner.stop()
                return found.as_object()
            await asyncio.sleep(0.01)

    def told(self, file_id: str, tenant: str = "t") -> dict[str, Any]:
        text = self.files.content_path(tenant, file_id).read_text()
        return {one["custom_id"]: one for one in map(json.loads, text.splitlines())}


def good(text: str = "ok") -> LineAnswer:
    body = json.dumps({"choices": [text]}).encode()
    return LineAnswer(200, {"x-penstock-request-id": "r1"}, body)


def bad(status: int = 400, **headers: str) -> LineAnswer:
    return LineAnswer(status, headers, b'{"error":{"message":"no"}}')


async def test_every_line_has_its_answer_in_one_of_two_files(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.answer = lambda custom_id: bad() if custom_id == "c3" else good(custom_id)
    batch = await harness.until_ended(harness.create(10))
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 10, "completed": 9, "failed": 1}
    assert batch["usage"]["total_tokens"] == 50
    assert batch["metadata"] == {"a": "b"}
    output, errors = harness.told(batch["output_file_id"]), harness.told(batch["error_file_id"])
    assert set(output) == {f"c{one}" for one in range(10)} - {"c3"}
    assert output["c1"]["response"] == {
        "status_code": 200,
        "request_id": "r1",
        "body": {"choices": ["c1"]},
    }
    assert output["c1"]["error"] is None
    assert errors["c3"]["response"]["status_code"] == 400
    assert harness.ledger.used() == Counter({f"c{one}": 1 for one in range(10)})
    stored = harness.files.find("t", batch["output_file_id"])
    assert stored.purpose == "batch_output"


async def test_no_more_lines_are_under_way_than_there_is_room_for(tmp_path: Path) -> None:
    for num_free, most in ((2, 2), (100, 3)):
        harness = Harness(tmp_path / str(most))
        harness.num_free = num_free
        is_full = asyncio.Event()

        async def answer(
            custom_id: str,
            harness: Harness = harness,
            most: int = most,
            is_full: asyncio.Event = is_full,
        ) -> LineAnswer:
            if harness.under_way == most:
                is_full.set()
            await is_full.wait()  # nothing ends before there is no room left
            return good()

        harness.answer = answer
        await harness.until_ended(harness.create(20))
        assert harness.most_under_way == most


async def test_a_line_that_finds_the_server_full_is_asked_again_and_booked_once(
    tmp_path: Path,
) -> None:
    harness = Harness(tmp_path)

    def answer(custom_id: str) -> LineAnswer:
        return good() if harness.asked.count(custom_id) > 1 else bad(503)

    harness.answer = answer
    batch = await harness.until_ended(harness.create(3))
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert len(harness.asked) == 6
    assert harness.ledger.used() == Counter({"c0": 1, "c1": 1, "c2": 1})


async def test_what_makes_no_sense_to_ask_again_is_an_error(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.answer = lambda _id: bad(429, **{"x-should-retry": "false"})
    batch = await harness.until_ended(harness.create(2))
    assert batch["request_counts"]["failed"] == 2
    assert batch["output_file_id"] is None


async def test_a_wrong_file_fails_and_says_why(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    batch = await harness.until_ended(harness.create(2, url="/v1/embeddings"))
    assert batch["status"] == "failed"
    assert [error["line"] for error in batch["errors"]["data"]] == [1, 2]
    assert batch["errors"]["data"][0]["code"] == "mismatched_url"
    assert harness.asked == []


async def test_the_input_may_be_deleted_and_another_tenant_sees_nothing(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    batch = harness.create(3)
    with pytest.raises(ResourceNotFoundError):
        harness.store.find("other", batch.id)
    with pytest.raises(ResourceNotFoundError):
        harness.store.cancel("other", batch.id)
    assert harness.store.page("other", "", 10) == ([], False)
    harness.files.remove("t", batch.input_file_id)
    assert (await harness.until_ended(batch))["status"] == "completed"


async def test_a_cancelled_batch_ends_and_tells_what_was_not_begun(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    batch = harness.create(10)

    def answer(custom_id: str) -> LineAnswer:
        if custom_id == "c4":
            assert harness.store.cancel("t", batch.id).status == "cancelling"
        return good()

    harness.answer = answer
    ended = await harness.until_ended(batch)
    assert ended["status"] == "cancelled"
    counts = ended["request_counts"]
    assert counts["completed"] + counts["failed"] == counts["total"] == 10
    assert counts["completed"] >= 5
    errors = harness.told(ended["error_file_id"])
    assert {one["error"]["code"] for one in errors.values()} == {"batch_cancelled"}
    assert harness.store.cancel("t", batch.id).status == "cancelled"


async def test_a_batch_whose_window_is_over_ends_as_expired(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    batch = harness.create(4)

    def answer(custom_id: str) -> LineAnswer:
        harness.clock.now += 86_400
        return good()

    harness.answer = answer
    ended = await harness.until_ended(batch)
    assert ended["status"] == "expired"
    assert ended["expired_at"] is not None
    errors = harness.told(ended["error_file_id"])
    assert {one["error"]["code"] for one in errors.values()} == {"batch_expired"}
    assert harness.store.sweep() == 0
    harness.clock.now += 40 * 86_400
    assert harness.store.sweep() == 1


@pytest.mark.parametrize("num_bytes_kept", [None, 0, 1, 30, 300, 700])
async def test_a_killed_gateway_s_lines_are_taken_up_and_each_is_booked_once(
    tmp_path: Path, num_bytes_kept: int | None
) -> None:
    """A kill at any byte of the journal: what the disk held then is what the next one finds."""
    harness = Harness(tmp_path / "first")
    batch = harness.create(6)
    hangs = asyncio.Event()

    async def answer(custom_id: str) -> LineAnswer:
        if int(custom_id[1:]) >= 3:
            await hangs.wait()
        return good(custom_id)

    harness.answer = answer
    harness.runner.look()
    await harness.has_asked_all.wait()
    shutil.copytree(harness.folder, tmp_path / "second")
    later = Harness(tmp_path / "second")
    # What was booked before the kill stays booked.
    later.ledger.first = dict(harness.ledger.first)
    later.num_leases = 100
    (journal,) = (tmp_path / "second").glob("batches/*/*/journal.jsonl")
    if num_bytes_kept is not None:
        # A settlement is sent behind its record: what has none here was never sent.
        kept = journal.read_bytes()[:num_bytes_kept]
        journal.write_bytes(kept)
        whole = kept[: kept.rfind(b"\n") + 1]
        later.ledger.first = {
            lease: one
            for lease, one in later.ledger.first.items()
            if lease.encode().hex().encode() in whole
        }
    ended = await later.until_ended(batch)
    assert ended["status"] == "completed"
    assert ended["request_counts"] == {"total": 6, "completed": 6, "failed": 0}
    assert later.ledger.used() == Counter({f"c{one}": 1 for one in range(6)})
    assert set(later.told(ended["output_file_id"])) == {f"c{one}" for one in range(6)}
    hangs.set()
    await harness.runner.stop()


async def test_two_gateways_of_one_folder_never_work_on_one_batch(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    batch = harness.create(30)
    first = harness.runner
    first.look()
    harness.open()  # a second gateway; locks are by open file, so one process shows it as well
    harness.runner.look()
    ended = await harness.until_ended(batch)
    await first.stop()
    assert ended["request_counts"]["completed"] == 30
    assert len(harness.asked) == 30


async def test_who_waits_for_its_limits_keeps_nobody_else_from_running(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    limited = harness.create(9, "limited")

    def answer(custom_id: str) -> LineAnswer:
        return good() if other_has_begun else bad(429, **{"retry-after": "60"})

    harness.answer, other_has_begun = answer, False
    harness.runner.look()
    while len(harness.asked) < 3:  # noqa: ASYNC110 - as many as may be under way at a time
        await asyncio.sleep(0)
    other_has_begun = True
    other = harness.create(5)
    harness.num_free = 100
    async with asyncio.timeout(60):
        while harness.store.find("t", other.id).status != "completed":
            harness.runner.look()
            await asyncio.sleep(0.01)
    assert harness.store.find("limited", limited.id).status == "in_progress"
    assert len(harness.asked) == 3 + 5
    await harness.runner.stop()


def open_descriptors(folder: Path) -> int:
    """Files of a folder that this process has open."""
    links = [one for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    return sum(str(folder) in os.path.realpath(one) for one in links)


async def test_a_tenant_s_batches_hold_few_files_open_and_each_has_its_turn(
    tmp_path: Path,
) -> None:
    harness = Harness(tmp_path)
    harness.answer = lambda _id: bad(429)  # its limits are used up
    batches = [harness.create(1) for _ in range(3 * MAX_OPEN_A_TENANT)]
    seen: set[str] = set()

    def begun() -> set[str]:
        return {
            batch.id
            for batch in batches
            if list((tmp_path / "batches").glob(f"*/{batch.id}/journal.jsonl"))
        }

    async with asyncio.timeout(60):
        while len(seen) < len(batches):
            harness.runner.look()
            await asyncio.sleep(0.01)
            seen = begun()
            assert open_descriptors(tmp_path) <= 5 * MAX_OPEN_A_TENANT
            harness.monotonic.now += TURN_S / 10
    # Nobody else had to wait for that.
    harness.answer = lambda _id: good()
    other = harness.create(1, "other")
    async with asyncio.timeout(60):
        while harness.store.find("other", other.id).status != "completed":
            harness.runner.look()
            await asyncio.sleep(0.01)
    await harness.runner.stop()


async def test_a_line_that_two_models_were_asked_for_leaves_no_lease_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(tmp_path)

    async def ask(_path: str, body: bytes, caller: Caller) -> LineAnswer:
        custom_id = json.loads(body)["user"]
        assert caller.errand is not None
        for model, num_tokens in (("short", 0), ("long", 3)):
            lease_id = f"{model}-{custom_id}"
            caller.errand.on_granted(lease_id)
            settle = Settle(
                lease_id=lease_id,
                request_id=custom_id,
                prompt_tokens=num_tokens,
                completion_tokens=0,
            )
            caller.errand.put(settle)
        return good()

    monkeypatch.setattr(harness, "ask", ask)
    harness.open()
    told = await harness.until_ended(harness.create(2))
    assert told["request_counts"]["completed"] == 2
    assert told["usage"]["input_tokens"] == 6
    is_unused = {lease_id: one.is_unused for lease_id, one in harness.ledger.first.items()}
    assert is_unused == {"short-c0": True, "long-c0": False, "short-c1": True, "long-c1": False}

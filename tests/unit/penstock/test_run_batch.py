"""A file through a server's batches: checked there, answered once, taken up where a run ended."""

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock import batch_client, run_batch
from penstock.batch_input import parts_of, read_input
from penstock.batch_output import BatchOutput
from penstock.batch_run import check_lines
from penstock.errors import CommandError, ServerError, UsageError
from tests.fakes.batch_server import CHAT, EMBEDDINGS, Lab, request_line, write


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_every_request_is_answered_in_the_order_of_the_input_whatever_its_url(lab: Lab) -> None:
    urls = (CHAT, EMBEDDINGS)
    given = [request_line(f"q{n}", urls[n % 2]) for n in range(20)]
    run = lab.run(write(lab.folder / "in", *given, ""), "demo", api_key="psk-x")
    assert (run.counts.succeeded, run.counts.failed) == (20, 0)
    assert list(lab.answers) == [f"q{n}" for n in range(20)]
    assert lab.answers["q7"]["response"]["body"] == {"echo": {"model": "demo", "q": "q7"}}
    assert [batch["endpoint"] for batch in lab.server.batches.values()] == [CHAT, EMBEDDINGS]
    assert lab.server.keys == {"Bearer psk-x"}
    assert lab.server.files == {}  # nothing is left there


def test_answers_are_kept_byte_for_byte(lab: Lab) -> None:
    line = json.dumps(request_line("a", seed=1)).replace("1}", "1.10000000000000000001e2}")
    lab.run(write(lab.folder / "in", line))
    assert "110.0" in lab.output.read_text("utf-8")


def test_what_failed_is_asked_again_by_the_next_run_and_what_was_answered_is_not(lab: Lab) -> None:
    path = write(lab.folder / "in", *(request_line(name) for name in "abc"))
    lab.server.status_of = lambda body: 500 if body["q"] == "b" else 200
    run = lab.run(path)
    assert (run.counts.succeeded, run.counts.failed, run.counts.skipped) == (2, 1, 0)
    lab.server.status_of = lambda body: 200
    lab.server.asked.clear()
    run = lab.run(path)
    assert (run.counts.succeeded, run.counts.failed, run.counts.skipped) == (1, 0, 2)
    assert lab.server.asked == ["b"]
    assert list(lab.answers) == ["a", "b", "c"]


def test_a_run_that_was_cut_off_is_taken_up_and_nothing_is_asked_twice(lab: Lab) -> None:
    path = write(lab.folder / "in", *(request_line(name) for name in "abc"))

    def die() -> None:
        raise RuntimeError("killed")

    lab.server.num_looks, lab.poll = 5, die
    with pytest.raises(RuntimeError):
        lab.run(path)
    lab.poll = lambda: None
    run = lab.run(path)
    assert run.counts.succeeded == 3
    assert sorted(lab.server.asked) == ["a", "b", "c"]
    assert len(lab.server.batches) == 1


def test_batches_of_another_output_are_left_alone_and_of_another_input_ended(lab: Lab) -> None:
    path = write(lab.folder / "in", request_line("a"), request_line("b"))

    def die() -> None:
        raise RuntimeError("killed")

    lab.server.num_looks, lab.poll = 5, die
    for name in ("out", "other"):
        lab.output = lab.folder / name
        with pytest.raises(RuntimeError):
            lab.run(path)
    lab.poll, lab.server.num_looks, lab.output = lambda: None, 1, lab.folder / "out"
    run = lab.run(write(lab.folder / "in", request_line("a"), request_line("c")))
    assert run.counts.succeeded == 2
    assert [one["status"] for one in lab.server.batches.values()] == [
        "cancelled",
        "in_progress",
        "completed",
    ]


def test_the_same_output_in_another_container_is_another_one(lab: Lab) -> None:
    path = write(lab.folder / "in", request_line("a"), request_line("b"))
    lab.server.num_looks = 5

    def run_another() -> None:
        lab.poll = lambda: None
        lab.output.rename(lab.folder / "of the first")  # its own disk has none
        other = write(lab.folder / "other", request_line("c"))
        assert lab.run(other, run_id="second").counts.succeeded == 1
        lab.output.unlink()
        (lab.folder / "of the first").rename(lab.output)

    lab.poll = run_another
    assert lab.run(path, run_id="first").counts.succeeded == 2
    assert [one["status"] for one in lab.server.batches.values()] == ["completed"] * 2


def test_a_stop_ends_the_batches_and_keeps_what_was_answered(lab: Lab) -> None:
    path = write(lab.folder / "in", *(request_line(name) for name in "abc"))
    lab.server.num_looks = 100

    def stop() -> None:
        lab.is_stopping = True

    lab.poll = stop
    run = lab.run(path)
    assert (run.counts.succeeded, run.counts.failed) == (1, 0)
    assert list(lab.answers) == ["a"]
    lab.is_stopping, lab.poll, lab.server.num_looks = False, lambda: None, 1
    run = lab.run(path)
    assert (run.counts.succeeded, run.counts.skipped) == (2, 1)
    assert list(lab.answers) == ["a", "b", "c"]


def test_lines_that_a_window_left_over_get_another_one_while_answers_come(lab: Lab) -> None:
    path = write(lab.folder / "in", *(request_line(name) for name in "abcde"))
    lab.server.max_lines_a_batch = 2
    run = lab.run(path)
    assert run.counts.succeeded == 5
    assert lab.server.asked == list("abcde")
    lab.server.max_lines_a_batch, lab.output = 0, lab.folder / "none"
    run = lab.run(path)
    assert (run.counts.succeeded, run.counts.failed) == (0, 0)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", r"in:3: .*not valid JSON"),
        ("[]", "in:3: .*no JSON object"),
        ({"method": "POST", "url": CHAT, "body": {}}, "in:3: .*custom_id"),
        (request_line("a") | {"method": "GET"}, "in:3: .*POST"),
        (request_line("a") | {"body": []}, "in:3: .*body"),
        (request_line("a", stream=True), "in:3: .*stream"),
        (request_line("a", background=True), "in:3: .*background"),
        (request_line("a", long="x" * 1000), "in:3: .*more than 1000 bytes"),
    ],
)
def test_a_wrong_line_is_named_in_the_words_of_the_gateway(lab: Lab, line: Any, named: str) -> None:
    path = write(lab.folder / "in", request_line("fine"), "", line)
    with pytest.raises(UsageError, match=named):
        lab.run(path)
    assert lab.server.asked == []


def test_a_url_that_no_batch_has_is_named_with_its_line(lab: Lab) -> None:
    path = write(lab.folder / "in", request_line("a"), request_line("b", "/v1/files"))
    with pytest.raises(UsageError, match=r"in:2: 400: unknown endpoint"):
        lab.run(path)
    assert {one["status"] for one in lab.server.batches.values()} <= {"cancelled", "completed"}


def test_lines_are_checked_by_the_same_code_where_no_server_runs_yet(tmp_path: Path) -> None:
    wrong = write(tmp_path / "in", request_line("fine"), "", request_line("a", stream=True), "{")
    source = read_input(wrong)
    with pytest.raises(UsageError, match=r"in:3: A batch can't use `stream`.* \(1 more lines"):
        check_lines(source, parts_of(source.lines), tmp_path / "out")
    source = read_input(write(tmp_path / "in", request_line("b", "/v1/files")))
    with pytest.raises(UsageError, match=r"in:1: `url` must be one of /v1/chat/completions"):
        check_lines(source, parts_of(source.lines), tmp_path / "out")
    source = read_input(write(tmp_path / "in", request_line("a"), request_line("b", EMBEDDINGS)))
    check_lines(source, parts_of(source.lines), tmp_path / "out")


def test_a_server_that_is_away_for_a_while_is_waited_for(lab: Lab) -> None:
    path = write(lab.folder / "in", request_line("a"))
    away: list[httpx.Response | Exception] = [
        httpx.ConnectError("gone"),
        httpx.Response(503),
        httpx.ReadError("cut"),
    ]
    for at in range(1, 6):
        fine = [httpx.Response(200) for _ in range(at)]
        lab.server.replies = [*fine, *away]
        lab.output = lab.folder / f"out{at}"
        assert lab.run(path).counts.succeeded == 1
    assert len(lab.server.batches) == 5
    lab.server.replies, lab.output = away, lab.folder / "own"
    assert lab.run(path, was_reached=True).counts.succeeded == 1
    said = lab.said[-1]
    assert said.startswith("http://server does not answer (ConnectError); is `penstock serve` run")
    assert said.endswith(" It is asked again for 10 minutes.")
    assert len(lab.said) == 6  # a line for all that goes wrong within a minute


def test_a_batch_whose_creation_was_answered_into_the_void_is_not_made_twice(lab: Lab) -> None:
    path = write(lab.folder / "in", request_line("a"))
    real = lab.server._created
    has_cut: list[bool] = []

    def cut(wanted: dict[str, Any]) -> httpx.Response:
        reply = real(wanted)
        if not has_cut:
            has_cut.append(True)
            raise httpx.ReadError("cut")
        return reply

    lab.server._created = cut  # type: ignore[method-assign]
    assert lab.run(path).counts.succeeded == 1
    assert len(lab.server.batches) == 1


def test_a_batch_that_a_slow_server_makes_after_all_is_not_made_twice(lab: Lab) -> None:
    """It had no answer in time, and is on the server's disk only once it was asked for again."""
    path = write(lab.folder / "in", request_line("a"))
    real = lab.server._answer
    begun: dict[str, httpx.Request] = {}
    kept: dict[str, httpx.Response] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        if (request.method, request.url.path) != ("POST", "/v1/batches"):
            return real(request)
        key = request.headers.get("idempotency-key", f"none {len(begun)}")
        if not begun:
            begun[key] = request
            raise httpx.ReadTimeout("nothing came")
        if begun.keys() == {key} and key not in kept:
            kept[key] = real(request)
            return httpx.Response(409, json={"error": {"message": "it is running"}})
        if key not in kept:
            for late in begun.values():
                real(late)
            kept[key] = real(request)
        return kept[key]

    lab.server._answer = answer  # type: ignore[method-assign]
    assert lab.run(path).counts.succeeded == 1
    assert len(lab.server.batches) == 1
    assert lab.server.asked == ["a"]


def test_each_batch_is_asked_for_with_a_key_of_its_own(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.batch_input.MAX_LINES", 1)
    path = write(lab.folder / "in", request_line("a"), request_line("b"))
    real = lab.server._answer
    keys: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if (request.method, request.url.path) == ("POST", "/v1/batches"):
            keys.append(request.headers.get("idempotency-key"))
            if len(keys) == 1:
                return httpx.Response(503)
        return real(request)

    lab.server._answer = answer  # type: ignore[method-assign]
    assert lab.run(path).counts.succeeded == 2
    assert None not in keys
    assert keys[0] == keys[1] != keys[2]


def test_a_server_that_stays_away_is_given_up_with_one_line(lab: Lab) -> None:
    path = write(lab.folder / "in", request_line("a"))
    lab.server.replies = [httpx.Response(200), *[httpx.ConnectError("gone")] * 10]
    now = iter(range(0, 10**6, int(batch_client.PATIENCE_S)))
    with pytest.raises(ServerError, match="does not answer"):
        lab.run(path, clock=lambda: float(next(now)))


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ConnectTimeout("late")])
def test_a_server_that_was_never_reached_is_not_waited_for(lab: Lab, error: Exception) -> None:
    path = write(lab.folder / "in", request_line("a"))
    lab.server.replies = [error, *[httpx.Response(200)] * 9]
    with pytest.raises(ServerError, match="does not answer"):
        lab.run(path)
    assert lab.server.routes == ["GET /v1/batches"]


def test_what_is_no_penstock_is_not_waited_for(lab: Lab) -> None:
    path = write(lab.folder / "in", request_line("a"))
    lab.server._answer = lambda request: httpx.Response(200, text="Welcome!")  # type: ignore[method-assign]
    with pytest.raises(ServerError, match="not as Penstock does"):
        lab.run(path)
    assert lab.server.routes == ["GET /v1/batches"]


def test_what_the_server_has_no_room_for_waits_for_the_end_of_another_batch(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.batch_input.MAX_LINES", 2)
    path = write(lab.folder / "in", *(request_line(name) for name in "abcdefg"))
    lab.server.num_looks, lab.server.max_unfinished = 3, 2
    assert lab.run(path).counts.succeeded == 7
    assert sorted(lab.server.asked) == list("abcdefg")
    assert len(lab.server.batches) == 4


@pytest.mark.parametrize("status", [400, 402, 413, 429])
def test_a_refusal_ends_the_other_batches_and_keeps_their_answers(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("penstock.batch_input.MAX_LINES", 2)
    path = write(lab.folder / "in", *(request_line(name) for name in "abcd"))
    lab.server.num_looks = 3
    real = lab.server._created

    def refuse_the_second(wanted: dict[str, Any]) -> httpx.Response:
        refusal = httpx.Response(status, json={"error": {"message": "no more"}})
        return refusal if lab.server.batches else real(wanted)

    lab.server._created = refuse_the_second  # type: ignore[method-assign]
    now = iter(range(10**9))
    with pytest.raises(ServerError, match=f"{status}: no more"):
        lab.run(path, clock=lambda: 100.0 * next(now))
    # A 400 may be a limit that passes when another batch ends, so that one runs to its end.
    assert list(lab.answers) == (["b", "a"] if status == 400 else ["a"])
    (batch,) = lab.server.batches.values()
    assert batch["status"] == ("completed" if status == 400 else "cancelled")
    assert lab.server.files == {}


def test_a_server_that_refuses_is_not_asked_again(lab: Lab) -> None:
    path = write(lab.folder / "in", request_line("a"))
    lab.server.replies = [httpx.Response(401, json={"error": {"message": "no key"}})]
    with pytest.raises(ServerError, match="401: no key"):
        lab.run(path)


def test_a_full_disk_is_one_clear_end_of_the_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(lab.folder / "in", *(request_line(f"q{n}") for n in range(20)))

    def write_nothing(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("penstock.batch_output.os.write", write_nothing)
    with pytest.raises(CommandError, match=r"out can't be written: No space left on device\."):
        lab.run(path)
    monkeypatch.undo()
    lab.server.asked.clear()
    assert lab.run(path).counts.succeeded == 20
    assert lab.server.asked == []  # the server still had the answers


def test_answers_that_were_written_before_a_full_disk_are_not_counted_or_written_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(lab.folder / "in", *(request_line(name) for name in "abc"))
    written: list[int] = []
    real = os.write

    def write_two(descriptor: int, data: bytes) -> int:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(real(descriptor, data))
        return written[-1]

    monkeypatch.setattr("penstock.batch_output.os.write", write_two)
    with pytest.raises(CommandError, match="No space left on device"):
        lab.run(path)
    monkeypatch.undo()
    appended: list[bytes] = []
    append = BatchOutput.append

    def note(output: BatchOutput, line: bytes) -> None:
        appended.append(line)
        append(output, line)

    monkeypatch.setattr(BatchOutput, "append", note)
    counts = lab.run(path).counts
    assert (counts.total, counts.skipped, counts.succeeded, counts.failed) == (3, 2, 1, 0)
    assert len(appended) == 1
    assert lab.server.files == {}


def test_answers_are_on_the_disk_before_the_server_forgets_them(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(lab.folder / "in", request_line("a"), request_line("b"))
    lab.server.status_of = lambda body: 500 if body["q"] == "b" else 200
    real = BatchOutput.sync

    def sync(output: BatchOutput) -> None:
        real(output)
        lab.server.routes.append(f"{len(lab.output.read_bytes().splitlines())} lines on the disk")

    monkeypatch.setattr(BatchOutput, "sync", sync)
    lab.run(path)
    answers = [f"/v1/files/file-{kind}-batch_0" for kind in ("output", "error")]
    assert lab.server.routes[-5:] == [
        *(f"GET {name}/content" for name in answers),
        "2 lines on the disk",
        *(f"DELETE {name}" for name in answers),
    ]


def test_how_many_run_at_a_time_is_the_running_servers_own_business(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="PENSTOCK_MAX_BATCH_REQUESTS"):
        run_batch.run(
            tmp_path / "in",
            tmp_path / "out",
            url="http://127.0.0.1:1",
            settings=None,  # type: ignore[arg-type]
            api_key=None,
            concurrency=4,
            console=None,  # type: ignore[arg-type]
        )

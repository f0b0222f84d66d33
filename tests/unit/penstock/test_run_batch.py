"""Batches: checked before anything starts, answered line by line, taken up where they ended."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.batch_output import BatchOutput
from penstock.errors import CommandError, UsageError
from penstock.run_batch import BatchCounts, read_batch, run_batch


def request_line(custom_id: str, **changes: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": custom_id}]}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return {**line, **changes}


def write(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


class Server:
    """Answers with the last message; `replies` go first."""

    def __init__(self, *replies: httpx.Response | Exception) -> None:
        self.replies = list(replies)
        self.asked: list[Any] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.url.path, json.loads(request.content), dict(request.headers)))
        if self.replies:
            reply = self.replies.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return reply
        text = self.asked[-1][1]["messages"][-1]["content"]
        content = json.dumps({"echo": text})
        return httpx.Response(200, content=content, headers={"x-request-id": "r1"})


async def run(
    server: Server, path: Path, output: Path, **options: Any
) -> tuple[BatchCounts, dict[str, Any]]:
    with BatchOutput(output) as answers:
        counts = await run_batch(
            read_batch(path),
            answers,
            url=options.get("url", "http://server"),
            api_key=options.get("api_key"),
            default_model=options.get("default_model"),
            concurrency=4,
            on_progress=lambda counts: None,
            transport=httpx.MockTransport(server),
        )
    return counts, answers_of(output)


def answers_of(path: Path) -> dict[str, Any]:
    answers = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    return {answer["custom_id"]: answer for answer in answers}


async def test_every_request_has_one_answer_in_openai_shape(tmp_path: Path) -> None:
    path = write(tmp_path / "in", *(request_line(f"q{n}") for n in range(20)), "")
    server = Server()
    counts, answers = await run(
        server, path, tmp_path / "out", default_model="demo", api_key="psk-x"
    )
    assert (counts.succeeded, counts.failed) == (20, 0)
    assert len(answers) == 20
    answer = answers["q7"]
    assert answer["error"] is None
    assert answer["response"] == {
        "status_code": 200,
        "request_id": "r1",
        "body": {"echo": "q7"},
    }
    assert answer["id"].startswith("batch_req_")
    path_asked, body, headers = server.asked[0]
    assert (path_asked, body["model"]) == ("/v1/chat/completions", "demo")
    assert headers["authorization"] == "Bearer psk-x"


async def test_a_model_in_the_body_goes_before_the_default(tmp_path: Path) -> None:
    line = request_line("a")
    line["body"]["model"] = "own"
    server = Server()
    await run(server, write(tmp_path / "in", line), tmp_path / "out", default_model="demo")
    assert server.asked[0][1]["model"] == "own"


async def test_a_run_that_was_cut_off_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = write(tmp_path / "in", request_line("a"), request_line("b"), request_line("c"))
    good = {"id": "1", "custom_id": "a", "response": {"status_code": 200}, "error": None}
    bad = {"id": "2", "custom_id": "b", "response": {"status_code": 500}, "error": None}
    output = write(tmp_path / "out", good, bad, '{"id": "3", "custom_id": "c", "resp')
    output.write_bytes(output.read_bytes()[:-1])
    server = Server()
    counts, answers = await run(server, path, output)
    assert {body["messages"][0]["content"] for _, body, _ in server.asked} == {"b", "c"}
    assert (counts.skipped, counts.succeeded) == (1, 2)
    assert answers["a"] == good
    assert set(answers) == {"a", "b", "c"}


async def test_a_full_server_is_asked_again_and_a_refusal_is_an_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "in", request_line("a"))
    busy = httpx.Response(503, headers={"retry-after": "0"})
    wrong = httpx.Response(400, json={"error": {"message": "no"}})
    counts, answers = await run(Server(busy, wrong), path, tmp_path / "out")
    assert counts.failed == 1
    assert answers["a"]["response"]["status_code"] == 400
    assert answers["a"]["response"]["body"]["error"]["message"] == "no"


async def test_a_limit_that_no_time_lifts_is_an_answer_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "in", request_line("a"))
    spent = httpx.Response(429, headers={"x-should-retry": "false"}, json={})
    server = Server(spent)
    await run(server, path, tmp_path / "out")
    assert len(server.asked) == 1


async def test_a_server_that_went_away_is_an_error_of_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.run_batch._FIRST_PAUSE_S", 0.0)
    path = write(tmp_path / "in", request_line("a"), request_line("b"))
    gone = [httpx.ConnectError("gone")] * 6
    counts, answers = await run(Server(*gone), path, tmp_path / "out")
    failed = [answer for answer in answers.values() if answer["error"]]
    assert counts.failed == len(failed) <= 1
    assert all(answer["error"]["code"] == "connection_error" for answer in failed)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "no JSON"),
        ("[]", "custom_id"),
        (request_line("a", method="GET"), "POST"),
        (request_line("a", url="/v1/files"), "/v1/embeddings"),
        (request_line("a", body=[]), "body"),
        (request_line("a", body={"stream": True}), "stream"),
        (request_line("fine"), "line 1"),
    ],
)
def test_a_wrong_line_is_named_before_anything_is_sent(
    tmp_path: Path, line: Any, named: str
) -> None:
    path = write(tmp_path / "in", request_line("fine"), line)
    with pytest.raises(UsageError, match=rf"in:2.*{named}"):
        read_batch(path)


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no request"):
        read_batch(write(tmp_path / "in"))
    with pytest.raises(UsageError, match="can't be read"):
        read_batch(tmp_path / "missing")


async def test_what_is_no_unicode_or_no_json_number_goes_to_the_server_and_back(
    tmp_path: Path,
) -> None:
    line = request_line("\ud800")
    line["body"]["temperature"] = float("nan")
    path = write(tmp_path / "in", line)
    counts, answers = await run(Server(), path, tmp_path / "out")
    assert counts.succeeded == 1
    assert answers["\ud800"]["response"]["body"] == {"echo": "\ud800"}


async def test_a_reply_that_cannot_be_unpacked_is_an_error_of_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.run_batch._FIRST_PAUSE_S", 0.0)
    path = write(tmp_path / "in", request_line("a"))
    counts, answers = await run(Server(*[httpx.DecodingError("gzip")] * 6), path, tmp_path / "out")
    assert counts.failed == 1
    assert answers["a"]["error"]["code"] == "connection_error"


async def test_a_full_disk_is_one_clear_end_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "in", *(request_line(f"q{n}") for n in range(20)))

    def write_nothing(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("penstock.batch_output.os.write", write_nothing)
    with pytest.raises(CommandError, match=r"out can't be written: No space left on device\."):
        await run(Server(), path, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "named"),
    [({"url": "http://[::1"}, "--url"), ({"api_key": "\u2013"}, "PENSTOCK_API_KEY")],
)
async def test_a_malformed_address_or_key_is_named(
    tmp_path: Path, options: dict[str, str], named: str
) -> None:
    path = write(tmp_path / "in", request_line("a"))
    with pytest.raises(UsageError, match=named):
        await run(Server(), path, tmp_path / "out", **options)

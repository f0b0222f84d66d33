"""A file through a server's batches: checked there, answered once, taken up where a run ended."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.batches import lines
from gateway.http.bodies.multipart import FormReader
from penstock import batch_client, run_batch
from penstock.api_client import ApiClient
from penstock.batch_client import BatchClient
from penstock.batch_input import parts_of, read_input
from penstock.batch_output import BatchOutput
from penstock.errors import CommandError, ServerError, UsageError
from penstock.run_batch import BatchRun, Watch, check_lines

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


def request_line(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"q": custom_id, **body}}


def write(path: Path, *given: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in given]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


class Server:
    """Files and batches in memory; a batch ends once it was looked at `num_looks` times."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.keys: set[str] = set()
        self.replies: list[httpx.Response | Exception] = []
        self.num_looks = 1
        self.max_lines_a_batch = 10**6
        self.status_of: Callable[[dict[str, Any]], int] = lambda body: 200

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.keys.add(request.headers.get("authorization", ""))
        if self.replies:
            reply = self.replies.pop(0)
            if isinstance(reply, Exception):
                raise reply
            if reply.is_error:
                return reply
        return self._answer(request)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        name = path.rsplit("/", 1)[-1]
        if path == "/v1/files":
            return self._uploaded(request)
        if path.startswith("/v1/files/"):
            name = path.split("/")[3]
            if name not in self.files:
                return httpx.Response(404, json={"error": {"message": "no file"}})
            if request.method == "DELETE":
                del self.files[name]
                return httpx.Response(200, json={})
            return httpx.Response(200, content=self.files[name])
        if path == "/v1/batches" and request.method == "GET":
            newest_first = list(reversed(self.batches.values()))
            return httpx.Response(200, json={"data": newest_first, "has_more": False})
        if path == "/v1/batches":
            return self._created(json.loads(request.content))
        if name == "cancel":
            assert request.headers["content-type"] == "application/json"
            batch = self.batches[path.split("/")[3]]
            self._end(batch, "cancelled")
            return httpx.Response(200, json=batch)
        return httpx.Response(200, json=self._looked_at(name))

    def _uploaded(self, request: httpx.Request) -> httpx.Response:
        sink = io.BytesIO()

        def take(piece: bytes) -> None:
            sink.write(piece)

        reader = FormReader(request.headers["content-type"], "file", take)
        reader.feed(request.read())
        assert reader.fields["purpose"] == "batch"
        name = f"file-{len(self.files)}-{len(self.batches)}"
        self.files[name] = sink.getvalue()
        return httpx.Response(200, json={"id": name})

    def _created(self, wanted: dict[str, Any]) -> httpx.Response:
        if wanted["endpoint"] not in (CHAT, EMBEDDINGS):
            error = {"message": "unknown endpoint", "param": "endpoint"}
            return httpx.Response(400, json={"error": error})
        name = f"batch_{len(self.batches)}"
        batch = {"id": name, "status": "in_progress", "looks": 0, **wanted}
        batch["input"] = self.files[wanted["input_file_id"]]
        path = self.folder / f"{name}.jsonl"
        path.write_bytes(batch["input"])
        errors = lines.check(path, wanted["endpoint"], 1000)[1]
        if errors:
            told = [{"message": one.message, "line": one.line} for one in errors]
            batch |= {"status": "failed", "errors": {"data": told}}
        batch["input"] = batch["input"].decode()
        self.batches[name] = batch
        return httpx.Response(200, json=batch)

    def _looked_at(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        batch["looks"] += 1
        if batch["status"] == "in_progress" and batch["looks"] >= self.num_looks:
            self._end(batch, "completed")
        return batch

    def _end(self, batch: dict[str, Any], status: str) -> None:
        """Answer its lines; of one that is cancelled, or has too many, only the first ones."""
        files: dict[str, list[str]] = {"output": [], "error": []}
        given = batch["input"].splitlines()
        num_run = 1 if status == "cancelled" else self.max_lines_a_batch
        for number, text in enumerate(given):
            line = json.loads(text)
            record: dict[str, Any] = {"id": f"batch_req_{number}", "custom_id": line["custom_id"]}
            if number < num_run:
                self.asked.append(line["custom_id"])
                code = self.status_of(line["body"])
                record["response"] = {"status_code": code, "body": {"echo": line["body"]}}
                record["error"] = None
            else:
                code = 0
                kind = "cancelled" if status == "cancelled" else "expired"
                record |= {"response": None, "error": {"code": f"batch_{kind}"}}
            files["output" if code == 200 else "error"].append(json.dumps(record))
        batch["status"] = status if num_run >= len(given) or status != "completed" else "expired"
        for kind, told in files.items():
            batch[f"{kind}_file_id"] = None
            if told:
                name = f"file-{kind}-{batch['id']}"
                self.files[name] = "".join(f"{text}\n" for text in reversed(told)).encode()
                batch[f"{kind}_file_id"] = name


class Lab:
    """A run at that server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server(folder)
        self.output = folder / "out"
        self.is_stopping = False
        self.poll: Callable[[], None] = lambda: None

    def run(self, path: Path, model: str | None = None, **options: Any) -> BatchRun:
        source = read_input(path)
        transport = httpx.MockTransport(self.server)
        with (
            BatchOutput(self.output) as output,
            ApiClient("http://server/v1", options.get("api_key"), transport) as client,
        ):
            watch = Watch(lambda: self.poll(), lambda: self.is_stopping, lambda seconds: None)
            run = BatchRun(
                source,
                output,
                BatchClient(client, watch.pause, options.get("clock", lambda: 0.0)),
                watch,
                default_model=model,
                on_progress=lambda counts: None,
            )
            run.run()
            output.put_in_order(line.custom_id or "" for line in source.lines)
        return run

    @property
    def answers(self) -> dict[str, Any]:
        told = [json.loads(text) for text in self.output.read_text("utf-8").splitlines()]
        return {one["custom_id"]: one for one in told}


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
    for at in range(6):
        fine = [httpx.Response(200) for _ in range(at)]
        lab.server.replies = [*fine, *away]
        lab.output = lab.folder / f"out{at}"
        assert lab.run(path).counts.succeeded == 1
    assert len(lab.server.batches) == 6


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


def test_a_server_that_stays_away_is_given_up_with_one_line(lab: Lab) -> None:
    path = write(lab.folder / "in", request_line("a"))
    lab.server.replies = [httpx.ConnectError("gone")] * 10
    now = iter(range(0, 10**6, int(batch_client.PATIENCE_S)))
    with pytest.raises(ServerError, match="does not answer"):
        lab.run(path, clock=lambda: float(next(now)))


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

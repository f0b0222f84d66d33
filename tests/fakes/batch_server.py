"""A server's files and batches in memory, and runs of `penstock run-batch` at it."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from gateway.batches import lines
from gateway.http.bodies.multipart import FormReader
from penstock.api_client import ApiClient
from penstock.batch_client import BatchClient
from penstock.batch_input import read_input
from penstock.batch_output import BatchOutput
from penstock.batch_run import BatchRun, Watch

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
        self.max_unfinished = 10**6
        self.routes: list[str] = []
        self.status_of: Callable[[dict[str, Any]], int] = lambda body: 200

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.keys.add(request.headers.get("authorization", ""))
        self.routes.append(f"{request.method} {request.url.path}")
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
        num_unfinished = [one["status"] for one in self.batches.values()].count("in_progress")
        if num_unfinished >= self.max_unfinished:
            error = {"message": "too many are under way"}
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
        self.said: list[str] = []
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
                BatchClient(
                    client,
                    watch.pause,
                    options.get("clock", lambda: 0.0),
                    say=self.said.append,
                    was_reached=options.get("was_reached", False),
                ),
                watch,
                run_id=options.get("run_id", f"of {self.output.name}"),
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

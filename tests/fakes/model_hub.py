"""A hub of models on this machine, as far as huggingface_hub needs one to list and download."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "a" * 40


@dataclass
class ModelHub:
    """What a hub serves, and what it was asked for.

    Attributes:
        url: Its address.
        repos: `org/model` with its files by name.
        total: Numbers of a model, as the hub tells of GGUF files; None tells nothing.
        size: Of each file, as the hub tells it; None tells what it is.
        downloaded: Names of files in the order in which they were fetched.
    """

    url: str
    repos: dict[str, dict[str, bytes]]
    total: int | None = None
    size: int | None = None
    downloaded: list[str] = field(default_factory=list)

    def environment(self, home: Path) -> dict[str, str]:
        """What makes huggingface_hub use it, with an empty cache."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@contextmanager
def model_hub(
    repos: dict[str, dict[str, bytes]], total: int | None = None, size: int | None = None
) -> Iterator[ModelHub]:
    hub = ModelHub("", repos, total, size)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            url = urlsplit(unquote(self.path))
            parts = url.path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                repo = "/".join(parts[2:4])
                is_tree = parts[4:5] == ["tree"]
                answer = self._tree(repo) if is_tree else self._info(repo, parse_qs(url.query))
                self._send(answer, with_body)
                return
            repo, file = "/".join(parts[:2]), "/".join(parts[4:])
            content = hub.repos.get(repo, {}).get(file)
            if content is not None and with_body:
                hub.downloaded.append(file)
            self._send(content, with_body)

        def _info(self, repo: str, query: dict[str, list[str]]) -> bytes | None:
            files = hub.repos.get(repo)
            if files is None:
                return None
            answer: dict[str, object] = {"id": repo, "_id": "x", "sha": COMMIT}
            if "gguf" in query.get("expand", []):
                answer["gguf"] = None if hub.total is None else {"total": hub.total}
            else:
                answer["siblings"] = [
                    {"rfilename": name, "size": hub.size or len(content)}
                    for name, content in files.items()
                ]
            return json.dumps(answer).encode()

        def _tree(self, repo: str) -> bytes:
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "size": hub.size or len(content),
                    "oid": hashlib.sha1(content).hexdigest(),
                }
                for name, content in hub.repos.get(repo, {}).items()
            ]
            return json.dumps(entries).encode()

        def _send(self, content: bytes | None, with_body: bool) -> None:
            self.send_response(200 if content is not None else 404)
            body = content or b""
            if content is None:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

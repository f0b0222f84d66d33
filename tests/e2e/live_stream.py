"""A streamed chat answer that a thread reads while the test does things to the processes."""

import json
import threading
from typing import Any

import httpx


def ask(url: str, body: dict[str, Any], timeout_s: float = 120.0) -> httpx.Response:
    """One request without a stream."""
    body = {**body, "stream": False}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=timeout_s, trust_env=False)


def known_answer(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """What an undisturbed request answers: each choice's message, tokens and finish reason."""
    reply = ask(url, body)
    assert reply.status_code == 200, reply.text
    return [_without_ids(choice) for choice in reply.json()["choices"]]


class LiveStream:
    """A stream that is being read; its chunks join to what one body would have been."""

    def __init__(self, url: str, body: dict[str, Any], *, num_started: int = 4) -> None:
        self.chunks: list[Any] = []
        self.status = 0
        self.error: Exception | None = None
        self._is_done = False
        self._num_started = num_started
        self._started = threading.Event()
        self._url = f"{url}/v1/chat/completions"
        self._body = {**body, "stream": True}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_started(self) -> None:
        """Until some chunks have come."""
        assert self._started.wait(120)
        assert self.status == 200, self.chunks

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Until its end."""
        self._thread.join(180)
        assert not self._thread.is_alive(), "the stream never ended"

    def answer(self) -> list[dict[str, Any]]:
        """As `known_answer`, after exactly one end of each choice and the closing mark."""
        self.join()
        assert self.error is None
        assert self._is_done
        errors = [chunk["error"] for chunk in self.chunks if "error" in chunk]
        assert not errors, errors
        choices: dict[int, dict[str, Any]] = {}
        for chunk in self.chunks:
            for one in chunk["choices"]:
                choice = choices.setdefault(one["index"], {"ends": [], "message": {}, "tokens": []})
                choice["tokens"] += (one["logprobs"] or {}).get("content", [])
                _join(choice["message"], one["delta"])
                if one["finish_reason"]:
                    choice["ends"].append(one["finish_reason"])
        assert all(len(choice["ends"]) == 1 for choice in choices.values())
        return [
            {
                "index": index,
                "message": {**choice["message"], "content": choice["message"].get("content")},
                "tokens": choice["tokens"],
                "finish_reason": choice["ends"][0],
            }
            for index, choice in sorted(choices.items())
        ]

    @property
    def ends(self) -> list[str]:
        """The terminal events so far."""
        found = []
        for chunk in self.chunks:
            if "error" in chunk:
                found.append("error")
            found += [c["finish_reason"] for c in chunk.get("choices", []) if c["finish_reason"]]
        return found

    def _read(self) -> None:
        try:
            with httpx.stream(
                "POST", self._url, json=self._body, timeout=180, trust_env=False
            ) as reply:
                self.status = reply.status_code
                for line in reply.iter_lines():
                    if line == "data: [DONE]":
                        self._is_done = True
                    elif line.startswith("data: "):
                        self.chunks.append(json.loads(line.removeprefix("data: ")))
                        if len(self.chunks) >= self._num_started:
                            self._started.set()
        except httpx.TransportError as error:
            self.error = error
        finally:
            self._started.set()


def _join(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key in ("content", "reasoning_content"):
        if delta.get(key):
            message[key] = (message.get(key) or "") + delta[key]
    for part in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if "id" in part:
            calls.append({"name": part["function"]["name"], "arguments": ""})
        calls[part["index"]]["arguments"] += part["function"].get("arguments", "")


def _without_ids(choice: dict[str, Any]) -> dict[str, Any]:
    """Call ids depend on the request's id, which is new each time."""
    message = {
        key: choice["message"][key]
        for key in ("content", "reasoning_content")
        if choice["message"].get(key)
    }
    message.setdefault("content", None)
    calls = choice["message"].get("tool_calls")
    if calls:
        message["tool_calls"] = [
            {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
            for call in calls
        ]
    return {
        "index": choice["index"],
        "message": message,
        "tokens": (choice["logprobs"] or {}).get("content", []),
        "finish_reason": choice["finish_reason"],
    }

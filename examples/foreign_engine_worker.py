"""An engine worker that imports nothing of Penstock: plain `msgpack` and `pyzmq`, a hundred lines.

It serves a model called `echo` that spells the prompt backwards, one character a token. Anything
that speaks MessagePack can be an engine like this; docs/protocol.md has the messages.

    export PENSTOCK_ENGINE_ENDPOINT=ipc:///path/to/engine
    .venv/bin/python examples/foreign_engine_worker.py
"""

import json
import os
import time
import uuid
from typing import Any

import msgpack
import zmq

INSTANCE_ID = uuid.uuid4().hex
CREDITS = {"max_requests": 64, "max_tokens": 1_000_000}
MAX_MODEL_LEN = 4096
OFFER = {
    "model": "echo",
    "fingerprint": "echo-1",
    "resume_version": 1,
    "max_model_len": MAX_MODEL_LEN,
    "created": 0,
    "credits": CREDITS,
    "has_chat_template": True,
    "vocab_size": 0x110000,
    "capabilities": ["chat", "completions"],
}


class EchoEngine:
    """The whole worker: one socket, a dictionary of running requests, a loop."""

    def __init__(self, endpoint: str) -> None:
        self.socket: Any = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, INSTANCE_ID.encode())
        self.socket.setsockopt(zmq.LINGER, 500)
        self.socket.connect(endpoint)
        self.running: dict[tuple[str, int], dict[str, Any]] = {}
        self.num_steps = 0

    def send(self, kind: str, **fields: Any) -> None:
        """One message: a MessagePack map whose `type` names it."""
        self.socket.send(msgpack.packb({"type": kind, **fields}))

    def announce(self) -> None:
        """Say who we are; the first message of every connection."""
        self.send(
            "ready", role="engine", instance_id=INSTANCE_ID, protocol_version=[1, 0],
            build="foreign-example", phase="ready", engine=OFFER,
        )  # fmt: skip

    def handle(self, message: dict[str, Any]) -> None:
        """Act on one command; messages that we don't know are none of our business."""
        kind = message["type"]
        if kind == "prepare":
            text = message.get("prompt") or ""
            if message.get("messages_json"):
                text = str(json.loads(message["messages_json"])[-1]["content"])
            ids = [ord(character) for character in text]
            self.send(
                "prepared", request_id=message["request_id"], prompt_token_ids=ids,
                max_output_tokens=MAX_MODEL_LEN - len(ids),
            )  # fmt: skip
        elif kind == "generate":
            key = (message["request_id"], message["choice"])
            limit = message["sampling"].get("max_tokens") or len(message["prompt_token_ids"])
            rest = list(reversed(message["prompt_token_ids"]))[
                : min(limit, message["lease_tokens"])
            ]
            # Go on where another engine stopped: what it has sent is not sent again.
            sent = len(message.get("output_token_ids", ()))
            self.running[key] = {"message": message, "rest": rest[sent:], "sent": sent}
        elif kind == "abort":
            for key in [key for key in self.running if key[0] == message["request_id"]]:
                self.running[key]["rest"] = []
                self.running[key]["reason"] = "abort"

    def step(self) -> None:
        """One token for every running request, all in one message."""
        deltas, ends = [], []
        for key, state in list(self.running.items()):
            message = state["message"]
            identity = {"request_id": key[0], "choice": key[1], "attempt": message["attempt"]}
            if state["rest"]:
                token = state["rest"].pop(0)
                state["sent"] += 1
                deltas.append(
                    {**identity, "text": chr(token), "token_ids": [token],
                     "token_ends": [state["sent"]]}
                )  # fmt: skip
            if not state["rest"]:
                usage = {
                    "prompt_tokens": len(message["prompt_token_ids"]),
                    "completion_tokens": state["sent"],
                }
                reason = state.get("reason", "stop")
                ends.append(
                    {"type": "finished", **identity, "finish_reason": reason, "usage": usage}
                )
                del self.running[key]
        self.num_steps += 1
        self.send(
            "step_output", deltas=deltas, ends=ends, progress_counter=self.num_steps,
            load={"num_running": len(self.running)}, credits=CREDITS,
        )  # fmt: skip

    def run(self) -> None:
        """Announce, then obey, step and beat until the gateway says goodbye."""
        self.announce()
        next_beat = 0.0
        seen_gateway = ""
        while True:
            if self.socket.poll(0 if self.running else 100):
                message = msgpack.unpackb(self.socket.recv())
                if message["type"] in ("goodbye", "drain"):
                    return
                if message["type"] == "heartbeat" and message["instance_id"] != seen_gateway:
                    seen_gateway = message["instance_id"]
                    self.announce()
                self.handle(message)
            if self.running:
                self.step()
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + 1.0
                if not seen_gateway:
                    self.announce()
                self.send(
                    "heartbeat", instance_id=INSTANCE_ID, phase="ready",
                    progress_counter=self.num_steps, load={"num_running": len(self.running)},
                    credits=CREDITS,
                )  # fmt: skip


if __name__ == "__main__":
    EchoEngine(os.environ["PENSTOCK_ENGINE_ENDPOINT"]).run()

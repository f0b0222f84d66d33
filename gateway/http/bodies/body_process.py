"""A process that parses large bodies, one at a time: `python -m gateway.http.bodies.body_process`.

A task comes as two frames on its standard input, an answer leaves as one on its standard output; a
frame is its length in eight bytes and then its bytes. It ends when the input does.
"""

import contextlib
import gc
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gateway.errors import InvalidRequestError
from gateway.http.bodies.parsed_bodies import Refusal
from gateway.http.bodies.parsers import KINDS, ParseContext
from protocol.wire import codec

LENGTH_BYTES = 8
RESULT = b"\x00"
REFUSAL = b"\x01"
FAILURE = b"\x02"
"""Before where a bug of ours showed itself, as text."""
_MAX_TOLD_CALLS = 8
_OOM_FILE = Path("/proc/self/oom_score_adj")
_OOM_SCORE = "500"
"""Where memory ends, this process goes before the gateway."""


@dataclass(frozen=True, slots=True)
class ParseTask:
    """What to do with the body in the frame behind.

    Attributes:
        kind: Of `KINDS`.
    """

    kind: str
    context: ParseContext


_task_decoder: codec.Decoder[ParseTask] = codec.Decoder(ParseTask)


def answer(task_frame: bytes, body: bytes) -> bytes:
    """The answer to one task, whatever goes wrong with it: the process is there for the next."""
    try:
        task = _task_decoder.decode(task_frame)
        return RESULT + codec.encode_value(KINDS[task.kind].parse(body, task.context))
    except InvalidRequestError as error:
        return REFUSAL + codec.encode_value(Refusal.of(error))
    except Exception as error:  # noqa: BLE001
        return FAILURE + _place_of(error).encode("utf-8", "backslashreplace")


def _place_of(error: Exception) -> str:
    """Where an error was raised; its message may quote the body, which belongs into no log."""
    calls = traceback.format_tb(error.__traceback__, limit=-_MAX_TOLD_CALLS)
    return "".join(calls) + type(error).__name__


def main() -> int:
    """Serve until the gateway closes the pipe."""
    with contextlib.suppress(OSError):  # other systems, and sandboxes
        _OOM_FILE.write_text(_OOM_SCORE, encoding="ascii")
    # JSON has no cycles: looking for them among millions of fresh objects takes many times longer
    # than parsing.
    gc.disable()
    tasks, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        task = _read_frame(tasks)
        body = _read_frame(tasks)
        if task is None or body is None:
            return 0
        frame = answer(task, body)
        del task, body  # of a parsed body only the answer is kept
        gc.collect()
        try:
            answers.write(len(frame).to_bytes(LENGTH_BYTES, "big"))
            answers.write(frame)
            answers.flush()
        except BrokenPipeError:
            return 0  # the gateway has died meanwhile


def _read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame; None at the end."""
    head = stream.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    length = int.from_bytes(head, "big")
    data = stream.read(length)
    return data if len(data) == length else None


if __name__ == "__main__":
    sys.exit(main())

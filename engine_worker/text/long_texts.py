"""Tokenises long texts in a process beside the engine's, which is ended when nobody waits any more.

One call of the tokenizer takes a second for a megabyte and can't be interrupted; and what it made,
millions of tokens, is freed while no other thread of its process runs.
"""

import subprocess
import threading
import weakref
from array import array
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final

from engine_worker.errors import AbandonedError, EngineError
from protocol.runtime.helper_process import start_helper

LONG_BYTES: Final = 256 * 1024
"""A longer text is tokenised there: a quarter of a second."""
_IN_PLACE_BYTES: Final = 2 * 1024 * 1024
"""A longer one waits for the process when it is busy. What templates make of a conversation that is
short enough for a thread of everybody's is shorter, and must not wait for somebody's long text."""
ID_TYPE: Final = "I"
_MODULE: Final = "engine_worker.text.long_text_process"
_LOOK_S: Final = 0.05
"""How often it is asked whether somebody still waits."""
_STOP_TIMEOUT_S: Final = 5.0
_NUM_TRIES: Final = 2
"""A process that was idle for long has ended by itself; the next one is fresh."""


class LongTexts:
    """The process of one tokenizer, started at the first long text; for any thread.

    Args:
        serialize: Makes the tokenizer's JSON text.
    """

    def __init__(self, serialize: Callable[[], str]) -> None:
        self._serialize = serialize
        self._lock = threading.Lock()
        self._helper: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._end: Callable[[], object] = lambda: None

    def encode(
        self, text: bytes, *, add_special_tokens: bool, is_wanted: Callable[[], bool]
    ) -> list[int] | None:
        """Token ids of a text.

        Args:
            text: In UTF-8.
            add_special_tokens: Whether the tokenizer adds what begins and ends a text.
            is_wanted: Asked now and then; the process is ended when it says no.

        Returns:
            None when the process is busy and the text not so long that it has to wait.

        Raises:
            AbandonedError: It is not wanted any more.
            EngineError: The process died.
        """
        while not self._lock.acquire(timeout=_LOOK_S):
            if len(text) <= _IN_PLACE_BYTES:
                return None
            if not is_wanted():
                raise AbandonedError("Nobody waits for the tokens of this text.")
        try:
            for _ in range(_NUM_TRIES):
                try:
                    _, connection = self._helper or self._start()
                    connection.send_bytes(bytes([add_special_tokens]) + text)
                    while not connection.poll(_LOOK_S):
                        if not is_wanted():
                            self._stop()
                            raise AbandonedError("Nobody waits for the tokens of this text.")
                    answer = connection.recv_bytes()
                except (EOFError, OSError):
                    self._stop()
                else:
                    return array(ID_TYPE, answer).tolist()
        finally:
            self._lock.release()
        raise EngineError("The engine failed to tokenise a long text: its process died.")

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        self._helper = start_helper(_MODULE)
        self._end = weakref.finalize(self, _end, *self._helper)
        self._helper[1].send_bytes(self._serialize().encode())
        return self._helper

    def _stop(self) -> None:
        self._helper = None
        self._end()


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    process.kill()
    process.wait(_STOP_TIMEOUT_S)

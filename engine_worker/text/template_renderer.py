"""Renders chat templates, those of strangers in processes with bounds of memory and time.

Nothing in Jinja's sandbox bounds what a template takes: `{{ 'a' * 10**10 }}`, a message that it
repeats for each of the others, a loop in a loop. An address space can be bounded from outside.
"""

import atexit
import json
import os
import queue
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from signal import SIGXCPU
from typing import Any, Final

from engine_worker.errors import HelperLostError
from engine_worker.text.template_process import (
    MAX_TEXT_CHARACTERS,
    OUT_OF_MEMORY,
    OUT_OF_TIME,
    TEXT,
    render,
)
from protocol.errors import ErrorCode
from protocol.runtime.child_environment import child_environment
from protocol.runtime.helper_process import died_of_its_work

NUM_PROCESSES: Final = 2
"""Conversations that are rendered at a time."""
MAX_COMPUTE_S: Final = 10.0
"""Of one conversation, in processor time; the longest take well below a second."""
_MAX_ANSWER_BYTES: Final = 4 * MAX_TEXT_CHARACTERS + 1
_MODULE: Final = "engine_worker.text.template_process"
_PACKAGES: Final = str(Path(__file__).parents[2])
_NUM_TRIES: Final = 2
_STOP_TIMEOUT_S: Final = 5.0
_OWN_TEMPLATE: Final = Path(__file__).parents[1] / "demo" / "chat_template.jinja"


class TemplateRefusedError(Exception):
    """The template refused a conversation; the text says why."""


class TemplateCostError(Exception):
    """The template takes more memory or time than there is for a conversation."""


class TemplateRenderer:
    """The processes, each started when it is first needed; safe to use from several threads."""

    def __init__(self) -> None:
        # Those that run come first: another one takes seconds to start.
        self._idle: queue.PriorityQueue[tuple[bool, int]] = queue.PriorityQueue()
        self._processes = [_Process() for _ in range(NUM_PROCESSES)]
        for number in range(NUM_PROCESSES):
            self._idle.put((True, number))
        self._own = ""
        atexit.register(self.close)
        with suppress(OSError):
            self._own = _OWN_TEMPLATE.read_text(encoding="utf-8")

    def render(
        self,
        source: str,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        variables: dict[str, Any],
        *,
        is_ours: bool = False,
        max_compute_s: float = MAX_COMPUTE_S,
    ) -> str:
        """The text that a template makes of a conversation.

        Args:
            source: The template.
            messages: JSON values, as all arguments.
            tools: The tools that it may use.
            variables: Further ones of the template, and options of the renderer.
            is_ours: It comes with this package, and is rendered here and now.
            max_compute_s: Processor time.

        Raises:
            TemplateRefusedError: The template raised.
            TemplateCostError: It was stopped.
            HelperLostError: The process was killed, whatever it did.
        """
        arguments = (source, messages, tools, variables, max_compute_s)
        if is_ours:
            return _text_of(*render(*arguments), max_compute_s)
        _, number = self._idle.get()
        process = self._processes[number]
        try:
            answer = process.ask(json.dumps(arguments).encode("ascii"))
        finally:
            self._idle.put((not process.is_alive, number))
        return _text_of(answer[:1], answer[1:].decode("utf-8", "surrogatepass"), max_compute_s)

    def close(self) -> None:
        """End the processes; another conversation starts them again."""
        for process in self._processes:
            process.end()

    def is_ours(self, source: str) -> bool:
        """Whether a template is that of the bundled model."""
        return source == self._own


class _Process:
    """One process; used by one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it was started, and not lost since."""
        return self._connection is not None

    def ask(self, request: bytes) -> bytes:
        """The answer to one request; what the process died of, if it died of it.

        Raises:
            HelperLostError: It was killed, and the next one too.
        """
        if self._process is not None and self._process.poll() is not None:
            self.end()  # somebody killed it between two requests
        for _ in range(_NUM_TRIES):
            connection = self._connection or self._start()
            try:
                connection.send_bytes(request)
                return connection.recv_bytes(_MAX_ANSWER_BYTES)
            except (EOFError, OSError):
                ended = self.end()
                if died_of_its_work(ended):
                    return OUT_OF_TIME if ended == -SIGXCPU else OUT_OF_MEMORY
            except BaseException:
                self.end(at_once=True)
                raise
        raise HelperLostError(
            "The process that renders chat templates was killed twice; the machine may be short of"
            " memory.",
            code=ErrorCode.INTERNAL_ERROR,
        )

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())]
            path = [_PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={
                    **child_environment(os.environ),
                    "PYTHONPATH": os.pathsep.join(path),
                    "OPENBLAS_NUM_THREADS": "1",
                    "TRANSFORMERS_VERBOSITY": "error",
                },
            )
            self._connection = Connection(ours.detach())
        return self._connection

    def end(self, *, at_once: bool = False) -> int | None:
        """End it; how it ended by itself, if it did.

        Args:
            at_once: Whatever it is doing; otherwise it may see first that nobody asks any more.
        """
        connection, process = self._connection, self._process
        self._connection = self._process = None
        if connection is not None:
            connection.close()
        if process is None:
            return None
        if at_once:
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
        if process.returncode is None:
            process.kill()
            process.wait(_STOP_TIMEOUT_S)
        return process.returncode


def _text_of(kind: bytes, text: str, max_compute_s: float) -> str:
    if kind == TEXT:
        return text
    if kind == OUT_OF_TIME:
        raise TemplateCostError(f"computed for more than {max_compute_s:g} s")
    if kind == OUT_OF_MEMORY:
        raise TemplateCostError("takes more memory than one conversation may")
    raise TemplateRefusedError(text)


RENDERER: Final = TemplateRenderer()
"""Of this process: what its models and tests share."""

"""The process that renders chat templates of strangers: its memory and its time are bounded.

It is run as a module, and ends when its parent does.
"""

import json
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from engine_worker.text.time_limit import OutOfTimeError, limited

MAX_MEMORY_BYTES: Final = 2**30
"""Address space beside what the process has before its first template."""
MAX_TEXT_CHARACTERS: Final = 2**26
"""A prompt has no more; far beyond any context."""
_GRACE_S: Final = 3
"""A call of C code that can't be stopped has so much longer before the process is ended."""

TEXT: Final = b"t"
REFUSED: Final = b"r"
OUT_OF_TIME: Final = b"c"
OUT_OF_MEMORY: Final = b"m"


def render(
    source: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    variables: dict[str, Any],
    max_compute_s: float,
) -> tuple[bytes, str]:
    """What a template makes of a conversation.

    Args:
        source: The template.
        messages: The conversation.
        tools: The tools that it may use.
        variables: Further ones of the template, and options of the renderer.
        max_compute_s: Processor time.

    Returns:
        `TEXT` and the text, or why there is none and the template's words.
    """
    # transformers' sandboxed renderer without `apply_chat_template` around it, which drops fields
    # that are null although some templates look for them.
    from transformers.utils import chat_template_utils

    try:
        with limited(max_compute_s):
            rendered, _ = chat_template_utils.render_jinja_template(
                conversations=[messages], tools=tools, chat_template=source, **variables
            )
    except OutOfTimeError:
        return OUT_OF_TIME, ""
    except MemoryError:
        # Compiled templates are all that is kept.
        chat_template_utils._compile_jinja_template.cache_clear()
        return OUT_OF_MEMORY, ""
    except Exception as error:  # noqa: BLE001 - a stranger's code raises anything
        return REFUSED, (str(error).strip() or type(error).__name__)[:500]
    text: str = rendered[0]
    return (OUT_OF_MEMORY, "") if len(text) > MAX_TEXT_CHARACTERS else (TEXT, text)


def main(file_descriptor: int) -> None:
    """Answer request after request until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's end is this one's
    connection = Connection(file_descriptor)
    from transformers.utils import chat_template_utils

    chat_template_utils.render_jinja_template([[]], chat_template="")
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    max_bytes = used * resource.getpagesize() + MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        connection.send_bytes(_answer(request))
        del request


def _answer(request: bytes) -> bytes:
    try:
        source, messages, tools, variables, max_compute_s = json.loads(request)
        until_s = time.process_time() + max_compute_s + _GRACE_S
        resource.setrlimit(resource.RLIMIT_CPU, (int(until_s), resource.RLIM_INFINITY))
        kind, text = render(source, messages, tools, variables, max_compute_s)
        return kind + text.encode("utf-8", "surrogatepass")
    except MemoryError:
        return OUT_OF_MEMORY


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""A process for supervisor tests: writes its pid, then obeys FAKE_CHILD.

`run` waits for SIGTERM, `stubborn` doesn't heed it, `exit CODE` ends at once; `need PATH` writes
"here" and runs if the file is there and fails for now if not, as with a full disk; `drain` writes
"draining" at the first SIGTERM and ends at the second.
"""

import os
import signal
import sys
import threading
from pathlib import Path


def main() -> int:
    """Behave as told by the environment."""
    behaviour = os.environ["FAKE_CHILD"]
    stopped = threading.Event()
    handler = signal.SIG_IGN if behaviour == "stubborn" else (lambda *_: stopped.set())
    signal.signal(signal.SIGTERM, handler)
    with Path(os.environ["FAKE_CHILD_FILE"]).open("a", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    if behaviour.startswith("exit"):
        return int(behaviour.split()[1])
    if behaviour.startswith("need"):
        if not Path(behaviour.split()[1]).exists():
            return os.EX_TEMPFAIL
        with Path(os.environ["FAKE_CHILD_FILE"]).open("a", encoding="ascii") as file:
            file.write("here\n")
    stopped.wait(60)
    if behaviour == "drain":
        stopped.clear()
        with Path(os.environ["FAKE_CHILD_FILE"]).open("a", encoding="ascii") as file:
            file.write("draining\n")
        stopped.wait(60)
    with Path(os.environ["FAKE_CHILD_FILE"]).open("a", encoding="ascii") as file:
        file.write("stopped\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

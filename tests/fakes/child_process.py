"""A process for supervisor tests: writes its pid, then obeys FAKE_CHILD (run, exit CODE, stubborn)."""

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
    stopped.wait(60)
    with Path(os.environ["FAKE_CHILD_FILE"]).open("a", encoding="ascii") as file:
        file.write("stopped\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs a module of ours that gives way to those whom somebody waits for at the moment.

`python -m protocol.runtime.give_way MODULE ARGUMENTS` is `python -m MODULE ARGUMENTS` with less of
the cores from the first import on.
"""

import os
import runpy
import sys
import time
from pathlib import Path
from typing import Final

NICENESS: Final = 5
"""With as much to do, a process of a niceness of 5 gets a third of what one of 0 gets, so whoever
waits for it gets an answer on a machine with other work, too."""
MODULE: Final = "protocol.runtime.give_way"
_SESSION: Final = Path("/proc/self/autogroup")
_NUM_TRIES: Final = 20
_PAUSE_S: Final = 0.05
"""Linux takes one such change of an ordinary user in a tenth of a second, whoever it is."""


def give_way(niceness: int = NICENESS, session: Path = _SESSION) -> None:
    """From now on this process gets less of the cores than others.

    Where no control group divides them, Linux divides the cores between sessions first, and
    niceness counts within a session only (sched(7), "The autogroup feature"). So a process that
    leads one makes all of it nice.

    Args:
        niceness: Added to that of the process.
        session: Where the niceness of this process's session stands.
    """
    os.nice(niceness)
    if os.getsid(0) != os.getpid():
        return
    for _ in range(_NUM_TRIES):
        try:
            session.write_text(str(niceness), encoding="ascii")
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        except OSError:  # another system, or a sandbox
            return
        else:
            return


def main() -> None:
    """The module that is named first gets the other arguments."""
    give_way()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

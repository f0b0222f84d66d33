"""Ends the processes that a crashed process of pytest-xdist has left behind."""

import contextlib

import psutil

RUN = "PYTEST_XDIST_TESTRUNUID"
WORKER = "PYTEST_XDIST_WORKER"


def end_left_behind(run_id: str, worker_id: str) -> list[int]:
    """Kill what a worker's tests have started, and all that came of it.

    xdist names run and worker in the environment, which every process of a test inherits.

    Returns:
        The ids of what was killed.
    """
    killed = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if (environment.get(RUN), environment.get(WORKER)) == (run_id, worker_id):
                process.kill()
                killed.append(process.pid)
    return killed

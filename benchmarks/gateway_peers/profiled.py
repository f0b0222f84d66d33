"""Starts the gateway under a profiler or a counter, which SIGUSR1 switches on and SIGUSR2 off.

    python -m benchmarks.gateway_peers.profiled profile --out FILE     # cProfile
    python -m benchmarks.gateway_peers.profiled count --out FILE       # calls of loop and sockets

What was measured is in the file once it is there: a cProfile dump, or a JSON object of counts. The
gateway itself is started by its module name and knows nothing of it.
"""

import argparse
import asyncio
import cProfile
import functools
import gc
import json
import runpy
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop
import zmq

_COUNTS: Counter[str] = Counter()
_LOOP_METHODS = (
    "call_soon",
    "call_soon_threadsafe",
    "call_later",
    "call_at",
    "create_task",
    "create_future",
    "run_in_executor",
)
_SOCKET_METHODS = ("send", "recv", "recv_multipart", "getsockopt")


def _counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        _COUNTS[name] += 1
        try:
            return original(*args, **kwargs)
        except zmq.Again:
            _COUNTS[f"{name} (nothing there)"] += 1
            raise

    return wrapper


def _make_counting_loop() -> asyncio.AbstractEventLoop:
    methods = {name: _counted(f"loop.{name}", getattr(uvloop.Loop, name)) for name in _LOOP_METHODS}
    counting: type[asyncio.AbstractEventLoop] = type("CountingLoop", (uvloop.Loop,), methods)
    return counting()


def _install_counters() -> None:
    uvloop.new_event_loop = _make_counting_loop  # type: ignore[assignment]
    for name in _SOCKET_METHODS:
        original = _counted(f"zmq.{name}", getattr(zmq.Socket, name))
        setattr(zmq.Socket, name, original)
    gc.callbacks.append(_CollectorWatch())


class _CollectorWatch:
    """Counts what the cycle collector does, and how many CPU microseconds it takes for it."""

    def __init__(self) -> None:
        self._started_s = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started_s = time.thread_time()
            return
        generation = info["generation"]
        spent_us = round(1e6 * (time.thread_time() - self._started_s))
        _COUNTS[f"gc of generation {generation}, runs"] += 1
        _COUNTS[f"gc of generation {generation}, microseconds"] += spent_us
        _COUNTS["gc: objects freed, which only cycles kept"] += info["collected"]


def _write(path: Path, write: Callable[[Path], object]) -> None:
    fresh = path.with_suffix(".new")
    write(fresh)
    fresh.replace(path)


def main() -> None:
    """Run the gateway."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("profile", "count"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    profiler = cProfile.Profile()

    def begin(_number: int, _frame: object) -> None:
        _COUNTS.clear()
        if args.what == "profile":
            profiler.enable()

    def end(_number: int, _frame: object) -> None:
        if args.what == "profile":
            profiler.disable()
            _write(args.out, lambda path: profiler.dump_stats(str(path)))
        else:
            text = json.dumps(_COUNTS)
            _write(args.out, lambda path: path.write_text(text, encoding="ascii"))

    if args.what == "count":
        _install_counters()
    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    sys.argv = ["gateway"]
    runpy.run_module("gateway", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

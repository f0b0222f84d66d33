"""Starts the gateway with a look at what holds up its event loop, written down when it is asked.

    python -m tests.attack.stalls FILE      # SIGUSR1 begins anew, SIGUSR2 writes FILE

The loop notes every two milliseconds how much time has passed, and how much of it it computed or
waited for a core; a thread looks meanwhile at what it is doing. So a stall of the server is told
from one of the machine. The gateway itself is started by its module name and knows nothing of it.
"""

import asyncio
import json
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import uvloop

STALL_S: Final = 0.005
"""Shorter ones are no stalls."""
_BEAT_S: Final = 0.002
_LOOK_S: Final = 0.001
_MAX_FRAMES: Final = 7
_MAX_STALLS: Final = 5000
_ROOT: Final = str(Path(__file__).parents[2]) + "/"


@dataclass(frozen=True)
class Stall:
    """A time in which the loop did not come round.

    Attributes:
        wall_ms: How long.
        computed_ms: Of that, what the loop's thread computed.
        queued_ms: What it waited for a core.
        where: What it did, by the samples taken meanwhile: the innermost call first.
    """

    wall_ms: float
    computed_ms: float
    queued_ms: float
    where: tuple[str, ...] = ()

    @property
    def own_ms(self) -> float:
        """What was no wait for a core: computing, waiting for the disk, the kernel or a lock."""
        return self.wall_ms - self.queued_ms


def queued_s(schedstat: str) -> float:
    """How long a thread has waited for a core in its life, by its `/proc/…/schedstat`."""
    return int(schedstat.split()[1]) / 1e9


def summary(stalls: list[Stall], seconds: float) -> list[str]:
    """What there was, in lines for people: the longest ones, and where most of the time went."""
    own = sorted(stalls, key=lambda one: -one.own_ms)
    lines = [
        f"{len(stalls)} in {seconds:.0f} s; not for want of a core {sum(o.own_ms for o in own):.0f}"
        f" ms in all, the longest {own[0].own_ms if own else 0:.0f} ms"
    ]
    by_place: Counter[str] = Counter()
    for one in stalls:
        by_place[" < ".join(one.where[:3]) or "unseen"] += round(one.own_ms)
    lines += [f"{total} ms in all: {place}" for place, total in by_place.most_common(8)]
    lines += [
        f"{one.own_ms:.0f} ms ({one.computed_ms:.0f} computed, {one.queued_ms:.0f} more for want "
        f"of a core): {' < '.join(one.where) or 'unseen'}"
        for one in own[:8]
    ]
    return lines


class _Watch:
    """Looks at the loop of the thread that makes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread_id = threading.get_ident()
        schedstat = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._schedstat = schedstat.open(encoding="ascii")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._began_at = self._beat_at = time.monotonic()
        self._cpu_s = self._queued_s = 0.0
        self._seen: Counter[tuple[str, ...]] = Counter()
        self._stalls: list[Stall] = []

    def make_loop(self) -> asyncio.AbstractEventLoop:
        self._loop = uvloop.Loop()
        self._loop.call_soon(self._beat)
        threading.Thread(target=self._look, name="stalls", daemon=True).start()
        return self._loop

    def _beat(self) -> None:
        now, cpu_s = time.monotonic(), time.thread_time()
        self._schedstat.seek(0)
        queued = queued_s(self._schedstat.read())
        wall_s = now - self._beat_at - _BEAT_S
        seen, self._seen = self._seen, Counter()  # the thread may still add to the old one
        if wall_s > STALL_S and len(self._stalls) < _MAX_STALLS:
            where = max(dict(seen).items(), key=lambda one: one[1])[0] if seen else ()
            self._stalls.append(
                Stall(
                    wall_s * 1e3,
                    (cpu_s - self._cpu_s) * 1e3,
                    min(wall_s, queued - self._queued_s) * 1e3,
                    where,
                )
            )
        self._beat_at, self._cpu_s, self._queued_s = now, cpu_s, queued
        assert self._loop is not None
        self._loop.call_later(_BEAT_S, self._beat)

    def _look(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            if time.monotonic() - self._beat_at > _BEAT_S + STALL_S / 2:
                frame = sys._current_frames().get(self._thread_id)
                self._seen[_calls(frame)] += 1

    def begin(self, _number: int, _frame: object) -> None:
        """Forget what was seen."""
        self._stalls.clear()
        self._began_at = time.monotonic()

    def write(self, _number: int, _frame: object) -> None:
        """Write down what was seen since."""
        seconds = time.monotonic() - self._began_at
        fresh = self._path.with_suffix(".new")
        told = {"seconds": seconds, "stalls": [asdict(one) for one in self._stalls]}
        fresh.write_text(json.dumps(told), encoding="utf-8")
        fresh.replace(self._path)


def _calls(frame: FrameType | None) -> tuple[str, ...]:
    calls: list[str] = []
    while frame is not None and len(calls) < _MAX_FRAMES:
        name = frame.f_code.co_filename.removeprefix(_ROOT).rpartition("site-packages/")[2]
        calls.append(f"{name}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return tuple(calls)


def main() -> None:
    """Run the gateway."""
    watch = _Watch(Path(sys.argv[1]))
    uvloop.new_event_loop = watch.make_loop  # type: ignore[assignment]
    signal.signal(signal.SIGUSR1, watch.begin)
    signal.signal(signal.SIGUSR2, watch.write)
    sys.argv = ["gateway"]
    runpy.run_module("gateway", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""Through how many files of the gateway one chat request goes, from its route to its settlement."""

import sys
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any, Final

from gateway.housekeeping import Housekeeping
from gateway.ledger.outbox import Outbox
from tests.fakes.running_gateway import RunningGateway, running_gateway

GATEWAY: Final = Path(__file__).parents[2] / "gateway"
_CHORES: Final = frozenset({Housekeeping._on_time.__code__, Outbox._spill_later.__code__})
"""What a timer begins that may be due amid the request; it is no part of its way."""
LONG: Final = 10
"""Lines of a function that a reader has to stop at."""
MAX_FILES: Final = 62
MAX_RETURNS: Final = 177
"""To files that the walk had left."""
MAX_FILES_OF_LONG: Final = 46
MAX_RETURNS_OF_LONG: Final = 69
"""The same of functions of at least `LONG` lines; all four a little above what they are, see
docs/architecture.md."""


class Walk:
    """The calls of functions of the gateway in this thread, in order, as files and lengths."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self._is_on = False
        self._lengths: dict[Any, int] = {}
        # A coroutine is called again whenever it goes on; that is no step to another place.
        self._begun: dict[int, FrameType] = {}

    def __enter__(self) -> "Walk":
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_exc: object) -> None:
        sys.setprofile(None)

    def files(self, *, min_lines: int = 1) -> list[str]:
        """What a reader opens one after the other."""
        names = (name for name, num_lines in self.calls if num_lines >= min_lines)
        return [name for name, _ in groupby(names)]

    def _see(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(GATEWAY)):
            return
        if id(frame) in self._begun or _is_of_a_chore(frame):
            return
        self._begun[id(frame)] = frame
        name = str(Path(code.co_filename).relative_to(GATEWAY))
        self._is_on |= name == "http/routes/inference/generate.py"
        if self._is_on:
            self.calls.append((name, self._length(code)))
        if self._is_on and code is Outbox.put.__code__:
            sys.setprofile(None)

    def _length(self, code: Any) -> int:
        if code not in self._lengths:
            lines = [line for _, _, line in code.co_lines() if line is not None]
            self._lengths[code] = max(lines) - code.co_firstlineno + 1
        return self._lengths[code]


def _is_of_a_chore(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in _CHORES:
            return True
        frame = frame.f_back
    return False


async def _walk(gateway: RunningGateway) -> Walk:
    with Walk() as walk:
        await gateway.chat(stream=True)
    return walk


async def test_the_way_of_a_request_gets_no_longer(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        await gateway.chat(stream=True)  # who calls is known from now on
        walks = [await _walk(gateway) for _ in range(3)]
    # On a busy machine something else may be due amid one of them.
    walk = min(walks, key=lambda one: len(one.calls))
    files, long_ones = walk.files(), walk.files(min_lines=LONG)
    assert files[-1] == "ledger/outbox.py", "the walk ends with the settlement"
    assert len(set(files)) <= MAX_FILES
    assert len(files) - len(set(files)) <= MAX_RETURNS
    assert len(set(long_ones)) <= MAX_FILES_OF_LONG
    assert len(long_ones) - len(set(long_ones)) <= MAX_RETURNS_OF_LONG

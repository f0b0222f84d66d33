"""What was refused before it was an HTTP request: all of it counted, some of it in the access log.

Such refusals cost a client next to nothing, so a line for each would let strangers fill a disk.
"""

import asyncio
import itertools
import secrets
from dataclasses import dataclass
from typing import Final

from gateway.telemetry.access_log import AccessLog, AccessRecord
from gateway.telemetry.metrics import Metrics

MAX_LINES: Final = 20
"""Of one kind, in one window; a last one says how many more there were."""
WINDOW_S: Final = 60.0
UNKNOWN: Final = "unknown"


@dataclass(slots=True)
class _Window:
    num_lines: int = 0
    num_left_out: int = 0
    status: int = 0


class Refusals:
    """Tells of refused connections.

    Args:
        access_log: Gets at most `MAX_LINES` and one line for each kind in a window.
        metrics: Counts all.
    """

    def __init__(self, access_log: AccessLog, metrics: Metrics) -> None:
        self._access_log = access_log
        self._metrics = metrics
        self._windows: dict[str, _Window] = {}
        # As those of requests: unique among all processes.
        self._id_prefix = secrets.token_hex(8)
        self._numbers = itertools.count(1)

    def tell(
        self, address: str, status: int, error_code: str, began_at: float, method: str = UNKNOWN
    ) -> str:
        """Somebody was refused.

        Args:
            address: The client's.
            status: Of the answer; 0 for none.
            error_code: Why; what may stand there is bounded.
            began_at: When it began to come, on the event loop's clock.
            method: Of HTTP, as far as it is known.

        Returns:
            The request's id, for the answer.
        """
        request_id = f"{self._id_prefix}{next(self._numbers):016x}"
        self._metrics.on_http_answer(UNKNOWN, status)
        window = self._windows.get(error_code)
        if window is None:
            window = self._windows[error_code] = _Window()
            loop = asyncio.get_running_loop()
            loop.call_later(WINDOW_S, self._close_window, error_code)
        window.status = status
        if window.num_lines < MAX_LINES:
            window.num_lines += 1
            record = AccessRecord(request_id, "", method, began_at, address=address)
            record.status, record.error_code = status, error_code
            self._access_log.write(record, asyncio.get_running_loop().time())
        else:
            window.num_left_out += 1
        return request_id

    def _close_window(self, error_code: str) -> None:
        window = self._windows.pop(error_code)
        if window.num_left_out:
            now = asyncio.get_running_loop().time()
            record = AccessRecord("", "", UNKNOWN, now - WINDOW_S)
            record.status, record.error_code = window.status, error_code
            record.num_left_out = window.num_left_out
            self._access_log.write(record, now)

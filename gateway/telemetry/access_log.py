"""One log line for every HTTP request: who asked for what, how it ended, how long it took."""

import logging

from msgspec import Struct

_logger = logging.getLogger("penstock.access")


class AccessRecord(Struct):
    """What is known of one request when its answer is out; never a prompt or a key.

    Attributes:
        request_id: Made by the gateway; the one that workers log.
        trace_id: The client's `X-Request-ID`; empty when it sent none.
        method: Of HTTP.
        route: The route template; `unknown` for a path that is not served.
        address: The client's.
        key_id: Whose key it was, as far as that is known.
        model: As served; empty for routes without one.
        outcome: `finished`, `aborted`, `failed`; empty where no metered work was done.
        error_code: Why it was refused or failed.
        first_output_s: From arrival to the first output; None when there was none.
        prompt_tokens: What was charged, as are the next two.
        tags: What hooks said of it.
        num_left_out: For so many more like it no line was written.
    """

    request_id: str
    trace_id: str
    method: str
    started_at: float
    address: str = ""
    route: str = "unknown"
    key_id: str = ""
    model: str = ""
    outcome: str = ""
    error_code: str = ""
    status: int = 0
    first_output_s: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    tags: dict[str, str] = {}
    num_left_out: int = 0


class AccessLog:
    """Writes the lines.

    Args:
        is_on: `PENSTOCK_ACCESS_LOG`.
    """

    def __init__(self, *, is_on: bool) -> None:
        self._is_on = is_on

    def write(self, record: AccessRecord, now: float) -> None:
        """One line; `now` on the clock of `started_at`, monotonic seconds."""
        if not self._is_on or not _logger.isEnabledFor(logging.INFO):
            return
        fields: dict[str, object] = {
            "request_id": record.request_id,
            "method": record.method,
            "route": record.route,
            "status": record.status,
            "duration_ms": round((now - record.started_at) * 1000, 1),
        }
        for name in ("trace_id", "address", "key_id", "model", "outcome", "error_code"):
            value = getattr(record, name)
            if value:
                fields[name] = value
        if record.first_output_s is not None:
            fields["first_output_ms"] = round(record.first_output_s * 1000, 1)
        if record.prompt_tokens or record.completion_tokens:
            fields["prompt_tokens"] = record.prompt_tokens
            fields["completion_tokens"] = record.completion_tokens
            fields["cached_tokens"] = record.cached_tokens
        if record.tags:
            fields["tags"] = record.tags
        if record.num_left_out:
            fields["left_out"] = record.num_left_out
        _logger.info(
            "%s %s %d", record.method, record.route, record.status, extra={"fields": fields}
        )

"""The trace of one attempt at a background response: one of its own, linked to who asked for it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from gateway.errors import GatewayError
from gateway.http.background.background_task import BackgroundTask
from gateway.http.errors.error_table import ERROR_TABLE
from gateway.request.jobs.job import RESPONSES_ENDPOINT
from gateway.telemetry.access_log import AccessRecord
from gateway.telemetry.request_trace import RequestTraces

_METHOD: Final = "BACKGROUND"


class TracedTask:
    """A task, and what becomes of it.

    Attributes:
        task: Whose requests belong to the trace.
    """

    def __init__(self, task: BackgroundTask, record: AccessRecord) -> None:
        self.task = task
        self._record = record

    def fail(self, error: GatewayError) -> None:
        """It ended with an error, or was put off."""
        self._record.error_code = str(error.code)
        self._record.status = ERROR_TABLE[error.code].status


@contextmanager
def traced(
    task: BackgroundTask, response_id: str, traces: RequestTraces | None
) -> Iterator[TracedTask]:
    """A trace of a task, which is told when the block ends.

    Args:
        task: With the place in the trace of the request that queued it.
        response_id: Of its response.
        traces: Begins it; None for no traces.
    """
    headers = [(b"traceparent", task.traceparent.encode())] if task.traceparent else []
    trace = None if traces is None else traces.begin(headers)
    record = AccessRecord(
        response_id, task.trace_id, _METHOD, time.monotonic(), route=RESPONSES_ENDPOINT, status=200
    )
    place = "" if trace is None else trace.context.traceparent()
    try:
        yield TracedTask(replace(task, traceparent=place), record)
    except GatewayError as error:
        record.error_code, record.status = str(error.code), ERROR_TABLE[error.code].status
        raise
    finally:
        if trace is not None:
            trace.tell(record, time.monotonic())

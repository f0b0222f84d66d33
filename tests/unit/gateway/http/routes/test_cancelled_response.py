"""What a background response says once it is cancelled."""

from gateway.http.background.background_task import cancelled
from gateway.storage.records import StoredResponse


def test_a_cancelled_response_keeps_every_digit() -> None:
    tools = b'"tools":[{"maximum":18446744073709551616,"x":0.1000000000000000055}]'
    body = b'{"status":"in_progress",' + tools + b"}"
    stored = StoredResponse("resp_1", "in_progress", None, None, 0, body, b"[]", b"[]")
    told = cancelled(stored, 3)
    assert told.body == b'{"status":"cancelled",' + tools + b"}"
    assert tools in told.event

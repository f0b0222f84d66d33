"""Log lines: JSON or plain, with the request, without keys."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from protocol.runtime import logs


@pytest.fixture(autouse=True)
def restored_root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_json_line_carries_process_request_and_message() -> None:
    stream = io.StringIO()
    logs.setup("gateway", "info", stream)
    token = logs.request_id.set("req-1")
    logging.getLogger("penstock.test").info("hello %s", "you")
    logs.request_id.reset(token)
    line = json.loads(stream.getvalue())
    assert line["message"] == "hello you"
    assert line["request_id"] == "req-1"
    assert line["process"] == "gateway"
    assert line["level"] == "info"
    assert line["time"].endswith("Z")


@pytest.mark.parametrize("log_format", ["json", "human"])
def test_lines_about_a_request_carry_its_id_and_its_clients(log_format: logs.LogFormat) -> None:
    stream = io.StringIO()
    logs.setup("engine", "info", stream, log_format)
    logger = logging.getLogger("penstock.test")
    with logs.about("req-1", "mine-7"):
        logger.warning("in")
        with logs.about("req-2"):
            logger.warning("deeper")
    logger.warning("out")
    within, deeper, outside = stream.getvalue().splitlines()
    if log_format == "json":
        assert json.loads(within)["trace_id"] == "mine-7"
        assert json.loads(within)["request_id"] == "req-1"
        assert "trace_id" not in json.loads(deeper)
    else:
        assert within.endswith("in [req-1 mine-7]")
        assert deeper.endswith("deeper [req-2]")
    assert "req-1" not in outside
    assert "mine-7" not in outside


def test_human_lines_can_be_asked_for() -> None:
    stream = io.StringIO()
    logs.setup("engine", "debug", stream, "human")
    logging.getLogger("penstock.test").debug("loading")
    assert " debug   engine: loading" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "human"])
def test_keys_and_tokens_never_reach_a_line(log_format: logs.LogFormat) -> None:
    stream = io.StringIO()
    logs.setup("gateway", "info", stream, log_format)
    logger = logging.getLogger("penstock.test")
    try:
        raise ValueError("bad psk-SECRETsecret0123456789")
    except ValueError:
        logger.exception("Authorization: Bearer eyJhbGciOi.SECRET, key psk-SECRETsecret_-42")
    assert "SECRET" not in stream.getvalue()
    assert "psk-***" in stream.getvalue()


def test_hints_of_keys_stay_readable() -> None:
    assert logs.redact("psk-ab…wxyz") == "psk-ab…wxyz"


def test_lines_below_the_level_are_dropped() -> None:
    stream = io.StringIO()
    logs.setup("gateway", "warning", stream)
    logging.getLogger("penstock.test").info("nobody reads this")
    assert stream.getvalue() == ""


def test_what_is_no_unicode_costs_no_line() -> None:
    stream = io.StringIO()
    logs.setup("gateway", "info", stream, "json")
    logger = logging.getLogger("penstock.test")
    logger.info("cannot read %s", "half-\ud800", extra={"fields": {"size": 2**70, "ratio": 0.5}})
    line = json.loads(stream.getvalue())
    assert line["message"] == "cannot read half-\ud800"
    assert (line["size"], line["ratio"]) == (2**70, 0.5)


@pytest.mark.parametrize("word", ["Bearer", "bearer", "BEARER", "authorization:BeArEr"])
def test_a_token_is_blacked_out_however_its_scheme_is_written(word: str) -> None:
    assert logs.redact(f"{word} SECRETsecret.1234") == f"{word} ***"

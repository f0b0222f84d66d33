"""What runs beside requests: their tasks, the table of all of them, and the queue of events."""

import asyncio
import logging

import pytest

from gateway.errors import GatewayError, OverloadedError
from gateway.request.delivery.events import ContentText
from gateway.request.delivery.pipeline import MAX_UNREAD, EventQueue
from gateway.request.lifecycle.background import Background
from gateway.request.lifecycle.sessions import SessionTable
from protocol.wire.messages import LeaseReport
from tests.fakes.virtual_time import idle


class Ran:
    """Counts how far a piece of work came."""

    def __init__(self, error: Exception | None = None) -> None:
        self.steps: list[str] = []
        self.error = error

    async def work(self) -> None:
        self.steps.append("begun")
        await asyncio.sleep(1.0)
        if self.error is not None:
            raise self.error
        self.steps.append("done")


async def test_tasks_run_beside_their_request() -> None:
    errors: list[GatewayError] = []
    background, ran = Background("r", errors.append), Ran()
    background.spawn(ran.work())
    await asyncio.sleep(2.0)
    assert ran.steps == ["begun", "done"]
    assert (errors, background._tasks) == ([], set())


async def test_after_the_end_nothing_is_begun_and_nothing_goes_on() -> None:
    errors: list[GatewayError] = []
    background, running, late = Background("r", errors.append), Ran(), Ran()
    background.spawn(running.work())
    await idle()
    background.close()
    background.close()
    background.spawn(late.work())
    await asyncio.sleep(2.0)
    assert (running.steps, late.steps, errors) == (["begun"], [], [])
    assert background._tasks == set()


async def test_an_error_of_a_task_ends_its_request() -> None:
    errors: list[GatewayError] = []
    error = OverloadedError("full")
    Background("r", errors.append).spawn(Ran(error).work())
    await asyncio.sleep(2.0)
    assert errors == [error]


async def test_a_bug_in_a_task_ends_its_request_in_words(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[GatewayError] = []
    bug = RuntimeError("a bug")
    Background("r", errors.append).spawn(Ran(bug).work())
    await asyncio.sleep(2.0)
    assert [str(error) for error in errors] == ["Internal server error."]
    assert caplog.messages == ["request r failed"]
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is bug
    caplog.clear()


class Session:
    """A request as the table knows it."""

    def __init__(self, name: str, report: LeaseReport | None = None, *, is_broken: bool = False):
        self.request_id = name
        self.report = report
        self.is_broken = is_broken
        self.errors: list[GatewayError] = []
        self.has_given_up = False

    def lease_report(self) -> LeaseReport | None:
        if self.is_broken:
            raise RuntimeError("a bug")
        return self.report

    def fail(self, error: GatewayError) -> None:
        if self.is_broken:
            raise RuntimeError("a bug")
        self.errors.append(error)

    def give_up(self) -> None:
        if self.is_broken:
            raise RuntimeError("a bug")
        self.has_given_up = True


def report(name: str) -> LeaseReport:
    return LeaseReport(lease_id=name, prompt_tokens=0, completion_tokens=0)


def test_one_request_that_raises_hides_no_other_ones_lease(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One raising session ended the renewal of all leases."""
    table = SessionTable()
    sessions = [
        Session("a", report("a")),
        Session("b", is_broken=True),
        Session("c"),
        Session("d", report("d")),
    ]
    for session in sessions:
        table.add(session)
    assert len(table) == 4
    reports = sorted(table.lease_reports(), key=lambda one: one.lease_id)
    assert reports == [report("a"), report("d")]
    assert caplog.messages == ["request b could not report its lease"]
    assert caplog.records[0].exc_info is not None
    caplog.clear()


def test_one_request_that_raises_keeps_no_other_one_from_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = SessionTable()
    good = [Session(name) for name in "acd"]
    for session in (*good, Session("b", is_broken=True)):
        table.add(session)
    error = GatewayError("the end")
    table.fail_all(error)
    table.give_up_all()
    assert [session.errors for session in good] == [[error]] * 3
    assert all(session.has_given_up for session in good)
    assert caplog.messages == ["request b could not be ended"] * 2
    assert caplog.records[0].levelno == logging.ERROR
    caplog.clear()


def test_a_settled_request_is_reported_no_more() -> None:
    table, session = SessionTable(), Session("a", report("a"))
    table.add(session)
    table.discard(session)
    table.discard(session)
    assert (len(table), table.lease_reports()) == (0, ())


async def test_each_request_whose_time_is_over_is_told_once_and_no_settled_one() -> None:
    table, loop = SessionTable(), asyncio.get_running_loop()
    told: list[tuple[str, float]] = []
    begun = loop.time()
    times = {"a": 30.0, "b": 10.0, "c": 10.0, "d": 20.0, "e": 20.0}
    sessions = {name: Session(name) for name in times}
    for name, seconds in times.items():
        table.add_for(
            sessions[name],
            seconds,
            lambda name=name: told.append((name, loop.time() - begun)),  # type: ignore[misc]
        )
    table.discard(sessions["c"])
    table.discard(sessions["e"])
    await asyncio.sleep(100)
    assert told == [("b", 10.0), ("d", 20.0), ("a", 30.0)]
    table.add_for(sessions["c"], 5.0, lambda: told.append(("c", loop.time() - begun)))
    await asyncio.sleep(100)
    assert told[3:] == [("c", 105.0)]
    assert len(table) == 4


async def test_whom_the_end_of_another_one_settled_is_neither_told_nor_kept() -> None:
    table, told = SessionTable(), asyncio.Event()
    first, second = Session("first"), Session("second")

    def ends_both() -> None:
        table.discard(second)
        table.discard(first)
        told.set()

    table.add_for(first, 1.0, ends_both)
    table.add_for(second, 1.0, ends_both)
    await told.wait()
    assert len(table) == 0


async def test_one_request_that_raises_keeps_no_other_one_from_its_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table, told = SessionTable(), asyncio.Event()

    def raises() -> None:
        raise RuntimeError("a bug")

    table.add_for(Session("broken"), 1.0, raises)
    table.add_for(Session("good"), 1.0, told.set)
    await told.wait()
    assert caplog.messages == ["request broken could not be ended"]
    caplog.clear()


def event(number: int = 0) -> ContentText:
    return ContentText(0, str(number))


async def test_what_gathered_is_taken_at_once_and_the_end_comes_after_it() -> None:
    queue = EventQueue()
    queue.put(event(1))
    queue.put(event(2))
    queue.close()
    queue.put(event(3))
    assert await queue.take(None) == [event(1), event(2)]
    assert await queue.take(None) is None
    assert await queue.take(0.0) is None


async def test_an_error_comes_after_the_events_and_the_first_end_counts() -> None:
    queue, error = EventQueue(), GatewayError("the end")
    queue.put(event())
    queue.close(error)
    queue.close()
    queue.close(GatewayError("another"))
    assert await queue.take(None) == [event()]
    with pytest.raises(GatewayError) as raised:
        await queue.take(None)
    assert raised.value is error
    assert await queue.take(None) is None  # it is told once


async def test_a_reader_waits_for_the_next_event() -> None:
    queue = EventQueue()
    taking = asyncio.create_task(queue.take(None))
    await asyncio.sleep(1000.0)
    assert not taking.done()
    queue.put(event(1))
    queue.put(event(2))
    assert await taking == [event(1), event(2)]


@pytest.mark.parametrize("error", [None, GatewayError("the end")])
async def test_a_reader_that_waits_learns_of_the_end(error: GatewayError | None) -> None:
    queue = EventQueue()
    taking = asyncio.create_task(queue.take(None))
    await idle()
    queue.close(error)
    (outcome,) = await asyncio.gather(taking, return_exceptions=True)
    assert outcome is error


async def test_a_silence_is_an_empty_list() -> None:
    queue, loop = EventQueue(), asyncio.get_running_loop()
    assert await queue.take(5.0) == []
    assert loop.time() == 5.0
    taking = asyncio.create_task(queue.take(5.0))
    await asyncio.sleep(1.0)
    queue.put(event())
    assert await taking == [event()]
    # The timer of an answered question ends no later one.
    assert await queue.take(4.5) == []
    assert loop.time() == 10.5


async def test_a_reader_that_was_cancelled_leaves_the_events_to_the_next() -> None:
    queue = EventQueue()
    taking = asyncio.create_task(queue.take(3.0))
    await idle()
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    queue.put(event())
    assert await queue.take(None) == [event()]


async def test_a_reader_lags_from_many_unread_events_on_and_catches_up_at_once() -> None:
    caught_up: list[int] = []
    queue = EventQueue()
    for _ in range(MAX_UNREAD - 1):
        queue.put(event())
    lagging = [queue.is_lagging]
    assert len(await queue.take(None) or ()) == MAX_UNREAD - 1
    assert caught_up == []
    for _ in range(MAX_UNREAD):
        queue.put(event())
    lagging.append(queue.is_lagging)
    queue.on_caught_up = lambda: caught_up.append(1)
    await queue.take(None)
    lagging.append(queue.is_lagging)
    assert (lagging, caught_up) == ([False, True, False], [1])
    # Who waited was told, once.
    queue.put(event())
    await queue.take(None)
    assert caught_up == [1]


async def test_nobody_need_be_told_that_a_reader_caught_up() -> None:
    queue = EventQueue()
    for _ in range(MAX_UNREAD):
        queue.put(event())
    assert len(await queue.take(None) or ()) == MAX_UNREAD

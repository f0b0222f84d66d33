"""A request that is made several times: what each attempt settles, and on which lease."""

from gateway.errors import GatewayError, InvalidRequestError, OverloadedError, ShuttingDownError
from gateway.request.leases.takes import Takes
from protocol.errors import ErrorCode
from protocol.wire.messages import Generate, Prepare, Settle, Usage
from tests.fakes.request_parts import CALLER, Generation, Parts, generation_job
from tests.fakes.virtual_time import idle

USED = Usage(prompt_tokens=5, completion_tokens=3)


class Attempt:
    """One attempt, and what it told."""

    def __init__(self, *earlier: str) -> None:
        self.leases: list[str] = []
        self.num_sent: list[int] = []
        self.parts = Parts()
        self.engine = self.parts.engine()
        self.takes = Takes(earlier, self._note, self._is_put_off)

    async def _note(self, lease_id: str) -> None:
        self.leases.append(lease_id)
        self.num_sent.append(len(self.parts.engine_wire.of(Generate)))

    @staticmethod
    def _is_put_off(error: GatewayError) -> bool:
        return isinstance(error, OverloadedError | ShuttingDownError)

    async def run(self, lease_id: str, take: str = "") -> Generation:
        job = generation_job().changed(take=take)
        request, work = self.parts.factory.generation(job, CALLER, "r", self.takes)
        started = Generation(self.parts, request, work)
        await idle()
        await self.parts.grant(lease_id)
        await self.parts.prepare_next()
        await started.task
        return started

    def settled(self) -> list[tuple[str, int, bool]]:
        settles: list[Settle] = self.parts.outbox.settles
        return [(one.lease_id, one.completion_tokens, one.is_unused) for one in settles]


async def test_the_lease_is_told_before_anything_is_generated() -> None:
    attempt = Attempt()
    await attempt.run("lease-1")
    assert (attempt.leases, attempt.num_sent) == (["lease-1"], [0])


async def test_a_first_attempt_is_booked_on_its_own_lease() -> None:
    attempt = Attempt()
    started = await attempt.run("lease-1")
    await attempt.parts.finish(attempt.engine, usage=USED)
    assert attempt.settled() == []  # its reader has not compared it yet
    for _ in range(2):
        started.request.conclude()
    assert attempt.settled() == [("lease-1", 3, False)]


async def test_what_finished_and_is_made_again_settles_nothing() -> None:
    attempt = Attempt("lease-1")
    started = await attempt.run("lease-2")
    await attempt.parts.finish(attempt.engine, usage=USED)
    started.request.conclude(is_made_again=True)
    started.request.conclude()
    assert attempt.settled() == []


async def test_a_later_attempt_is_booked_on_the_first_lease_and_takes_back_the_others() -> None:
    attempt = Attempt("lease-1", "lease-2")
    started = await attempt.run("lease-3")
    await attempt.parts.finish(attempt.engine, usage=USED)
    started.request.conclude()
    assert attempt.settled() == [
        ("lease-1", 3, False),
        ("lease-2", 0, True),
        ("lease-3", 0, True),
    ]


async def test_a_refusal_of_a_later_attempt_says_that_an_earlier_one_had_begun() -> None:
    attempt = Attempt("lease-1")
    started = await attempt.run("lease-2")
    started.request.fail(InvalidRequestError("no"))
    await attempt.parts.fail(attempt.engine, "r", ErrorCode.INVALID_REQUEST, choice=0, attempt=1)
    settles = attempt.parts.outbox.settles
    assert [(one.is_unused, one.has_begun) for one in settles] == [(False, True), (True, False)]


async def test_what_is_put_off_settles_nothing() -> None:
    attempt = Attempt("lease-1")
    started = await attempt.run("lease-2")
    started.request.fail(ShuttingDownError())
    await attempt.parts.finish(attempt.engine, "abort", usage=USED)
    assert attempt.settled() == []
    started.request.take_back()
    assert attempt.settled() == [("lease-2", 0, True)]
    assert attempt.parts.outbox.settles[0].outcome == "aborted"


async def test_an_end_that_is_none_of_those_is_booked() -> None:
    attempt = Attempt("lease-1")
    started = await attempt.run("lease-2")
    started.request.fail(GatewayError("no"))
    await attempt.parts.finish(attempt.engine, "abort", usage=USED)
    assert attempt.settled() == [("lease-1", 3, False), ("lease-2", 0, True)]


async def test_an_attempt_has_ids_of_its_own_at_engines() -> None:
    attempt = Attempt()
    await attempt.run("lease-1", take="ab12")
    assert [one.request_id for one in attempt.parts.engine_wire.of(Prepare)] == ["r-ab12"]
    assert [one.request_id for one in attempt.parts.engine_wire.of(Generate)] == ["r-ab12"]

"""What a tenant's share pays for a choice that engines refuse, lose and finish."""

import asyncio

import pytest

from gateway.dispatch.admission import Admission
from gateway.dispatch.slots import Share, Slot
from protocol.errors import ErrorCode
from tests.fakes.request_parts import Parts
from tests.fakes.virtual_time import idle


async def test_a_share_pays_once_for_a_choice_that_moved_and_for_no_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paid: list[tuple[Share | None, int | None]] = []

    def release(admission: Admission, slot: Slot, used_tokens: int | None = None) -> None:
        paid.append((slot.share, used_tokens))
        given_back(admission, slot, used_tokens)

    parts = Parts()
    first = parts.engine("a")
    started = await parts.running()
    given_back = Admission.release
    monkeypatch.setattr(Admission, "release", release)
    await parts.fail(first, "r", ErrorCode.CREDIT_EXCEEDED, choice=0, attempt=1)
    await asyncio.sleep(2.0)
    await parts.output(first, 2, attempt=2)
    second = parts.engine("b")
    parts.lose(first)
    await idle()
    await parts.output(second, 4, attempt=3)
    await parts.finish(second, attempt=3)
    await started.events()
    (share, _), *_ = paid
    num_prompt_tokens = len(parts.generates()[0].prompt_token_ids)
    assert share is not None
    assert paid == [(share, None), (share, num_prompt_tokens + 2), (share, 4)]

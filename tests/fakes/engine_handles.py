"""Live engines as routing sees them, and an admission over them with a clock that a test moves."""

import asyncio
from typing import Any

from gateway.dispatch.admission import Admission
from gateway.dispatch.slots import EngineHandle, Share, Slot
from protocol.version import PROTOCOL_VERSION
from protocol.wire.messages import Credits, EngineOffer, Load
from protocol.wire.peers import Peer


def engine(
    name: str = "e",
    *,
    max_requests: int = 1,
    max_tokens: int = 1000,
    fingerprint: str = "f",
    num_running: int = 0,
    max_num_seqs: int = 1,
) -> EngineHandle:
    offer = EngineOffer(
        model="m",
        fingerprint=fingerprint,
        resume_version=1,
        max_model_len=100,
        created=0,
        credits=Credits(max_requests=max_requests, max_tokens=max_tokens),
        max_num_seqs=max_num_seqs,
    )
    peer = Peer(
        identity=name.encode(),
        role="engine",
        instance_id=name,
        protocol_version=PROTOCOL_VERSION,
        build="",
        last_heard=0.0,
        progress_since=0.0,
        phase_since=0.0,
        phase="ready",
        engine=offer,
        load=Load(num_running=num_running),
    )
    return EngineHandle(peer, offer)


class Desk:
    """An admission over a list of engines, with a clock that the test moves."""

    def __init__(self, *engines: EngineHandle, max_queue: int = 100) -> None:
        self.engines = list(engines)
        self.now = 0.0
        self.admission = Admission(lambda _: self.engines, max_queue, lambda: self.now)
        self.order: list[str] = []

    async def slot(
        self, tenant: str = "t", priority: int = 0, tokens: int = 10, **options: Any
    ) -> Slot:
        slot = await self.admission.acquire(
            "m", tenant=tenant, priority=priority, tokens=tokens, **options
        )
        self.order.append(tenant)
        return slot

    async def queued(
        self, tenant: str = "t", priority: int = 0, tokens: int = 10, **options: Any
    ) -> "asyncio.Task[Slot]":
        """A request that has taken its place in the queue."""
        task = asyncio.create_task(self.slot(tenant, priority, tokens, **options))
        await asyncio.sleep(0)
        return task

    async def again(
        self,
        *,
        accepts: tuple[EngineHandle, ...] | None = None,
        tokens: int = 10,
        is_alone: bool = False,
        is_patient: bool = True,
        share: Share | None = None,
    ) -> "asyncio.Task[Slot]":
        """Work that lost its engine asks for another one."""
        task = asyncio.create_task(
            self.admission.acquire_again(
                "m",
                tokens=tokens,
                accepts=lambda one: accepts is None or one in accepts,
                is_alone=is_alone,
                may_come=lambda: is_patient,
                share=share,
            )
        )
        await asyncio.sleep(0)
        return task


async def left(*tasks: "asyncio.Task[Slot]") -> None:
    """Their clients leave."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

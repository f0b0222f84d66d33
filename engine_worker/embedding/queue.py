"""The embedding thread: takes commands, tokenises, computes what is there as one batch, answers."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from engine_worker.embedding.embedder import Vectors, shorten
from engine_worker.embedding.service import Embeddings
from engine_worker.errors import DeadlineError, InvalidRequestError, RequestError
from protocol.errors import ErrorCode
from protocol.wire.messages import Embed, Embedded, Failure, Message

MAX_INPUTS: Final = 2048
"""Texts of one request, as OpenAI has it."""
_MAX_PENDING_INPUTS: Final = 8 * MAX_INPUTS
_MAX_BATCH_INPUTS: Final = 256
"""Further requests join a batch until it has so many."""
_RETRY_AFTER_S: Final = 1.0

_log = logging.getLogger("penstock.embedding")


class Outlet(Protocol):
    """Where answers go."""

    def send(self, gateway_id: str, message: Message) -> None:
        """Send in order; dropped silently when the gateway is gone."""


@dataclass(frozen=True, slots=True)
class _Item:
    gateway_id: str
    command: Embed
    deadline: float
    num_inputs: int


class EmbeddingQueue:
    """Embeddings of one model; `submit` may be called from any thread, `run` has one of its own.

    Args:
        embeddings: Used by nobody else.
        outlet: Where answers go.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        outlet: Outlet,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._embeddings = embeddings
        self._outlet = outlet
        self._clock = clock
        self._inbox: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._num_pending_inputs = 0
        self._lost: set[str] = set()
        self.num_unfinished = 0
        self.num_batches = 0

    def submit(self, gateway_id: str, command: Embed) -> None:
        """Take a command, or refuse it at once."""
        num_inputs = max(1, len(command.texts) + len(command.token_ids))
        with self._lock:
            is_full = self._num_pending_inputs + num_inputs > _MAX_PENDING_INPUTS
            if not is_full:
                self._num_pending_inputs += num_inputs
                self.num_unfinished += 1
                self._lost.discard(gateway_id)
        if is_full:
            self._outlet.send(
                gateway_id,
                Failure(
                    request_id=command.request_id,
                    code=ErrorCode.OVERLOADED,
                    message=f"More than {_MAX_PENDING_INPUTS} texts wait to be embedded.",
                    retry_after_s=_RETRY_AFTER_S,
                ),
            )
            return
        deadline = self._clock() + command.deadline_s
        self._inbox.put(_Item(gateway_id, command, deadline, num_inputs))

    def forget_gateway(self, gateway_id: str) -> None:
        """What a lost gateway wanted is not worth computing."""
        with self._lock:
            self._lost.add(gateway_id)

    def close(self) -> None:
        """End `run`; what waits is dropped."""
        self._inbox.put(None)

    def run(self) -> None:
        """Work until `close`."""
        while self.run_once():
            pass

    def run_once(self) -> bool:
        """Wait for a command, and answer all that one batch holds.

        Returns:
            False once it is to end.
        """
        items: list[_Item] = []
        item = self._inbox.get()
        num_inputs = 0
        while item is not None:
            items.append(item)
            num_inputs += item.num_inputs
            if num_inputs >= _MAX_BATCH_INPUTS:
                break
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                break
        self._answer(sorted(items, key=lambda item: item.command.priority))
        with self._lock:
            self._num_pending_inputs -= num_inputs
            self.num_unfinished -= len(items)
            if not self.num_unfinished:
                self._lost.clear()  # nothing of theirs is left
        return item is not None

    def _answer(self, items: Sequence[_Item]) -> None:
        asked: list[tuple[_Item, list[list[int]]]] = []
        for item in items:
            if item.gateway_id in self._lost:
                continue
            try:
                asked.append((item, self._rows(item)))
            except RequestError as error:
                self._fail(item, error.code, error.message, error.param)
        rows = [row for _, group in asked for row in group]
        try:
            vectors = self._embeddings.embed(rows)
        except Exception:  # noqa: BLE001 - whatever the compute side raises, the next batch goes on
            _log.exception("a batch of %d texts failed", len(rows))
            for item, _ in asked:
                self._fail(item, ErrorCode.INTERNAL_ERROR, "The engine failed at this batch.")
            return
        self.num_batches += 1
        first = 0
        for item, group in asked:
            self._send(item, vectors[first : first + len(group)], group)
            first += len(group)

    def _rows(self, item: _Item) -> list[list[int]]:
        """Token ids of all inputs of a request.

        Raises:
            RequestError: One of them can't be embedded.
        """
        command = item.command
        if item.deadline <= self._clock():
            raise DeadlineError("The request's time ran out before it was worked on.")
        if bool(command.texts) == bool(command.token_ids):
            raise InvalidRequestError("Give texts or token ids, at least one.", param="input")
        if item.num_inputs > MAX_INPUTS:
            raise InvalidRequestError(
                f"There are {item.num_inputs} inputs; at most {MAX_INPUTS} work.", param="input"
            )
        self._embeddings.check_dimensions(command.dimensions)
        return self._embeddings.rows(
            command.texts, command.token_ids, command.truncate_prompt_tokens
        )

    def _send(self, item: _Item, vectors: Vectors, rows: Sequence[Sequence[int]]) -> None:
        command = item.command
        if command.dimensions is not None:
            vectors = shorten(vectors, command.dimensions)
        if not np.isfinite(vectors).all():
            self._fail(item, ErrorCode.INTERNAL_ERROR, "The model computed no number (NaN).")
            return
        self._outlet.send(
            item.gateway_id,
            Embedded(
                request_id=command.request_id,
                num_dimensions=vectors.shape[1],
                vectors=np.ascontiguousarray(vectors, "<f4").tobytes(),
                num_tokens=tuple(len(row) for row in rows),
            ),
        )

    def _fail(self, item: _Item, code: ErrorCode, message: str, param: str | None = None) -> None:
        self._outlet.send(
            item.gateway_id,
            Failure(request_id=item.command.request_id, code=code, message=message, param=param),
        )

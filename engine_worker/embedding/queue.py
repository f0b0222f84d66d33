"""The embedding thread: takes turns between tenants, tokenises, computes a batch, answers."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from engine_worker.core.scheduling.turn_queue import TurnQueue
from engine_worker.embedding.embedder import Vectors, shorten
from engine_worker.embedding.service import Embeddings
from engine_worker.errors import DeadlineError, InvalidRequestError
from protocol.errors import ErrorCode, PenstockError
from protocol.runtime import logs
from protocol.wire.messages import Embed, Embedded, Failure, Message

MAX_INPUTS: Final = 2048
"""Texts of one request, as OpenAI has it."""
_MAX_PENDING_INPUTS: Final = 8 * MAX_INPUTS
_MAX_TENANT_INPUTS: Final = 4 * MAX_INPUTS
_SIZE_OF_AN_INPUT: Final = 4096
"""Of characters or token ids: a longer request counts as so many more inputs while it waits."""
_MAX_BATCH_INPUTS: Final = 256
"""Further requests join a batch until it has so many; a larger request takes several turns."""
_RETRY_AFTER_S: Final = 1.0

_log = logging.getLogger("penstock.embedding")


class Outlet(Protocol):
    """Where answers go."""

    def send(self, gateway_id: str, message: Message) -> None:
        """Send in order; dropped silently when the gateway is gone."""


@dataclass(slots=True, eq=False)
class _Item:
    """A command of a gateway.

    Attributes:
        deadline: Monotonic seconds.
        vectors: Of the inputs that are computed, from the first on.
        num_tokens: Of each of these.
    """

    gateway_id: str
    command: Embed
    deadline: float
    vectors: list[Vectors] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)

    @property
    def num_inputs(self) -> int:
        return len(self.command.texts) + len(self.command.token_ids)

    @property
    def num_left(self) -> int:
        return self.num_inputs - len(self.num_tokens)


_Part = tuple[_Item, list[list[int]]]
"""A request and the token ids of its inputs that are computed in one batch."""


class EmbeddingQueue:
    """Embeddings of one model; `submit` may be called from any thread, `run` has one of its own.

    Each command has exactly one answer, unless nobody waits for it any more: then what is not
    computed yet never will be.

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
        self._changed = threading.Condition()
        self._waiting = TurnQueue[_Item](_MAX_PENDING_INPUTS, _MAX_TENANT_INPUTS)
        # What somebody still waits for, begun or not.
        self._wanted: set[_Item] = set()
        self._is_closed = False
        self.num_batches = 0

    @property
    def num_unfinished(self) -> int:
        """Requests that somebody waits for."""
        return len(self._wanted)

    def submit(self, gateway_id: str, command: Embed) -> None:
        """Take a command, or refuse it at once."""
        item = _Item(gateway_id, command, self._clock() + command.deadline_s)
        size = sum(map(len, command.texts)) + sum(map(len, command.token_ids))
        with self._changed:
            num_places = max(1, item.num_inputs) + size // _SIZE_OF_AN_INPUT
            is_taken = self._waiting.push(command.tenant, item, num_places)
            if is_taken:
                self._wanted.add(item)
                self._changed.notify()
        if not is_taken:
            self._outlet.send(
                gateway_id,
                Failure(
                    request_id=command.request_id,
                    code=ErrorCode.OVERLOADED,
                    message=f"More than {_MAX_TENANT_INPUTS} texts of one tenant, or"
                    f" {_MAX_PENDING_INPUTS} in all, wait to be embedded.",
                    retry_after_s=_RETRY_AFTER_S,
                ),
            )

    def cancel(self, gateway_id: str, request_id: str) -> None:
        """Nobody waits for the answer to this request any more; an unknown one is fine."""
        self._drop(
            lambda item: item.command.request_id == request_id and item.gateway_id == gateway_id
        )

    def forget_gateway(self, gateway_id: str) -> None:
        """What a lost gateway wanted is not worth computing."""
        self._drop(lambda item: item.gateway_id == gateway_id)

    def close(self) -> None:
        """End `run`; what waits is dropped."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def run(self) -> None:
        """Work until `close`."""
        while self.run_once():
            pass

    def run_once(self, *, block: bool = True) -> bool:
        """One batch: what fits of what waits, computed and answered. Never raises.

        Args:
            block: Whether to wait for a command when there is none.

        Returns:
            False once it is to end.
        """
        turns = self._take(block=block)
        try:
            self._answer(turns)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:  # noqa: BLE001 - a panic of a native library is no Exception
            _log.exception("a round of %d embedding requests failed", len(turns))
            for item, _ in turns:
                self._fail_internally(item)
        return not self._is_closed

    def _drop(self, is_unwanted: Callable[[_Item], bool]) -> None:
        with self._changed:
            self._waiting.drop(is_unwanted)
            self._wanted = {item for item in self._wanted if not is_unwanted(item)}

    def _take(self, *, block: bool) -> list[tuple[_Item, int]]:
        """What is worked on now, and how many inputs of each; by priority."""
        turns: list[tuple[_Item, int]] = []
        num_free = _MAX_BATCH_INPUTS
        with self._changed:
            while block and not self._waiting and not self._is_closed:
                self._changed.wait()
            while num_free and not self._is_closed:
                item = self._waiting.take()
                if item is None:
                    break
                num_inputs = min(item.num_left, num_free)
                turns.append((item, num_inputs))
                num_free -= num_inputs
        return sorted(turns, key=lambda turn: turn[0].command.priority)

    def _answer(self, turns: Sequence[tuple[_Item, int]]) -> None:
        parts: list[_Part] = []
        for item, num_inputs in turns:
            with logs.about(item.command.request_id, item.command.trace_id):
                try:
                    parts.append((item, self._rows(item, num_inputs)))
                except PenstockError as error:
                    self._fail(item, error.code, error.message, error.param)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException:  # noqa: BLE001 - as in `run_once`; only this one fails
                    _log.exception("the inputs of a request could not be tokenised")
                    self._fail_internally(item)
        self._compute(parts)
        for item, _ in parts:
            with logs.about(item.command.request_id, item.command.trace_id):
                self._go_on(item)

    def _compute(self, parts: Sequence[_Part]) -> None:
        """Compute all as one batch; what raises is tried again request by request, once."""
        parts = [part for part in parts if part[0] in self._wanted]
        rows = [row for _, part_rows in parts for row in part_rows]
        if not rows:
            return
        try:
            vectors = self._embeddings.embed(rows)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:  # noqa: BLE001 - whatever the compute side raises, others go on
            if len(parts) > 1:
                _log.exception("a batch of %d texts failed: each request by itself", len(rows))
                for part in parts:
                    self._compute([part])
            else:
                item = parts[0][0]
                with logs.about(item.command.request_id, item.command.trace_id):
                    _log.exception("%d texts could not be embedded", len(rows))
                self._fail_internally(item)
            return
        self.num_batches += 1
        first = 0
        for item, part_rows in parts:
            item.vectors.append(vectors[first : first + len(part_rows)])
            item.num_tokens += map(len, part_rows)
            first += len(part_rows)

    def _go_on(self, item: _Item) -> None:
        """Answer a request that is computed; one that isn't waits for its tenant's next turn."""
        if item.num_left == 0:
            self._send(item)
            return
        with self._changed:
            if item in self._wanted:
                self._waiting.put_back(item.command.tenant, item)

    def _rows(self, item: _Item, num_inputs: int) -> list[list[int]]:
        """Token ids of the next inputs of a request.

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
        first = len(item.num_tokens)
        return self._embeddings.rows(
            command.texts[first : first + num_inputs],
            command.token_ids[first : first + num_inputs],
            command.truncate_prompt_tokens,
            first_index=first,
        )

    def _send(self, item: _Item) -> None:
        command = item.command
        vectors = np.concatenate(item.vectors)
        if command.dimensions is not None:
            vectors = shorten(vectors, command.dimensions)
        if not np.isfinite(vectors).all():
            _log.warning("the model computed no number (NaN) for a request")
            self._fail(item, ErrorCode.INTERNAL_ERROR, "The model computed no number (NaN).")
            return
        self._end(
            item,
            Embedded(
                request_id=command.request_id,
                num_dimensions=vectors.shape[1],
                vectors=np.ascontiguousarray(vectors, "<f4").tobytes(),
                num_tokens=tuple(item.num_tokens),
            ),
        )

    def _fail_internally(self, item: _Item) -> None:
        self._fail(item, ErrorCode.INTERNAL_ERROR, "The engine failed at this batch.")

    def _fail(self, item: _Item, code: ErrorCode, message: str, param: str | None = None) -> None:
        self._end(
            item,
            Failure(request_id=item.command.request_id, code=code, message=message, param=param),
        )

    def _end(self, item: _Item, answer: Message) -> None:
        """Send the one answer, if somebody waits for it."""
        with self._changed:
            self._waiting.drop(lambda waiting: waiting is item)
            is_wanted = item in self._wanted
        if is_wanted:
            self._outlet.send(item.gateway_id, answer)
            # Only now: a drain ends when nothing is unfinished, and then sends what was sent.
            with self._changed:
                self._wanted.discard(item)

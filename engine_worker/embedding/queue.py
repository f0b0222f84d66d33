"""The thread of whole texts: takes turns between tenants, tokenises, computes a batch, answers."""

import logging
import threading
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import Any, Final, Protocol

import numpy as np

from engine_worker.core.scheduling.turn_queue import TurnQueue
from engine_worker.embedding.inputs import Row
from engine_worker.embedding.row_programs import Vectors
from engine_worker.embedding.service import MAX_INPUTS
from engine_worker.errors import DeadlineError, InvalidRequestError
from protocol.errors import ErrorCode, PenstockError
from protocol.runtime import logs
from protocol.wire.messages import Classified, Classify, Embed, Failure, Message, Usage

_MAX_PENDING_INPUTS: Final = 8 * MAX_INPUTS
_MAX_TENANT_INPUTS: Final = 4 * MAX_INPUTS
_SIZE_OF_AN_INPUT: Final = 4096
"""Of characters or token ids: a longer request counts as so many more inputs while it waits."""
_MAX_BATCH_INPUTS: Final = 256
"""Further requests join a batch until it has so many; a larger request takes several turns."""
_MAX_BATCH_SIZE: Final = 64 * 1024
"""Of characters and token ids of a batch, beyond its first input. Of the programs of a batch others
wait for one at most."""
_PIECE_SIZE: Final = 8 * 1024
"""So much is tokenised before it is looked whether others wait: a few milliseconds."""
_RETRY_AFTER_S: Final = 1.0
_EXPIRED: Final = "The request's time ran out before it was worked on."
_EXPIRED_AT_WORK: Final = "The request's time ran out before all of it was computed."

TextCommand = Embed | Classify

_log = logging.getLogger("penstock.embedding")


class Outlet(Protocol):
    """Where answers go."""

    def send(self, gateway_id: str, message: Message) -> None:
        """Send in order; dropped silently when the gateway is gone."""


class TextTask(Protocol):
    """What a model does with whole texts: it embeds them, or classifies them."""

    @property
    def max_inputs(self) -> int:
        """Of one request."""

    @property
    def max_whole_tokens(self) -> int:
        """Longer rows are computed in pieces, between which others have their turn."""

    def num_inputs(self, command: Any) -> int:
        """Of a command of its kind."""

    def rows(self, command: Any, first: int, count: int) -> list[Row]:
        """Some inputs of a command in tokens; raises RequestError for what is wrong with one."""

    def compute(
        self,
        rows: Sequence[Row],
        is_wanted: Callable[[Sequence[int]], bool],
        on_done: Callable[[Sequence[int], Vectors], None],
        goes_on: Callable[[int], bool],
    ) -> Vectors:
        """One vector a row, [N, D] float32, told program by program; see `RowPrograms.compute`."""

    def answer(
        self,
        command: Any,
        vectors: Vectors,
        num_tokens: Sequence[int],
        truncated: Sequence[int],
    ) -> Message:
        """The answer to a command whose inputs are all computed."""


@dataclass(slots=True, eq=False)
class _Item:
    """A command of a gateway.

    Attributes:
        deadline: Monotonic seconds.
        num_inputs: Of the command.
        sizes: Characters or token ids of each of them.
        num_tokens: Of the inputs that are tokenised, from the first on.
        truncated: Those of them that were cut.
        rows: Those of them that are not computed, by their place in the request.
        vectors: Of those that are, likewise.
        num_begun_tokens: Of the inputs that a program ran for, also of a turn that isn't over.
    """

    gateway_id: str
    command: TextCommand
    deadline: float
    num_inputs: int
    sizes: Sequence[int]
    num_tokens: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    rows: dict[int, Row] = field(default_factory=dict)
    vectors: dict[int, Vectors] = field(default_factory=dict)
    num_begun_tokens: int = 0

    @property
    def num_left(self) -> int:
        return self.num_inputs - len(self.vectors)

    def has_only_rows_above(self, num_tokens: int) -> bool:
        """Whether it waits with rows that are all longer than that."""
        return bool(self.rows) and all(len(row) > num_tokens for row in self.rows.values())

    def next_inputs(self, max_inputs: int, max_size: int) -> tuple[int, int]:
        """How many inputs are for one turn, one at least, and their size.

        Those that another turn has left come first, all of them and alone.

        Args:
            max_inputs: Of them.
            max_size: Characters and token ids of them, where they are more than one.
        """
        if self.rows:
            return len(self.rows), sum(self.sizes[place] for place in self.rows)
        return self.unread_inputs(max_inputs, max_size)

    def unread_inputs(self, max_inputs: int, max_size: int) -> tuple[int, int]:
        """The same of those that are not tokenised."""
        num_inputs = size = 0
        for input_size in islice(self.sizes, len(self.num_tokens), None):
            if num_inputs == max_inputs or (num_inputs and size + input_size > max_size):
                break
            num_inputs += 1
            size += input_size
        return max(1, num_inputs), size


_Turn = tuple[_Item, int]
"""A request and how many of its inputs are worked on now."""


class TextQueue:
    """Texts for one model; `submit` may be called from any thread, `run` has one of its own.

    Each command has exactly one answer, unless nobody waits for it any more: then what is not
    computed yet never will be.

    Args:
        task: Used by nobody else.
        outlet: Where answers go.
        clock: Monotonic seconds.

    Attributes:
        takes: The kind of command that it answers.
        num_batches: Programs that ran, one for each piece of a long row.
    """

    def __init__(
        self,
        task: TextTask,
        outlet: Outlet,
        clock: Callable[[], float] = time.monotonic,
        *,
        takes: type[TextCommand] = Embed,
    ) -> None:
        self.takes = takes
        self._task = task
        self._outlet = outlet
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting = TurnQueue[_Item](_MAX_PENDING_INPUTS, _MAX_TENANT_INPUTS)
        # What somebody still waits for, begun or not.
        self._wanted: set[_Item] = set()
        self._is_closed = False
        # Whose long row is under way, while others have their turn between two of its pieces.
        self._paused_tenant: str | None = None
        self.num_batches = 0

    @property
    def num_unfinished(self) -> int:
        """Requests that somebody waits for."""
        return len(self._wanted)

    def submit(self, gateway_id: str, command: TextCommand) -> None:
        """Take a command, or refuse it at once."""
        deadline = self._clock() + command.deadline_s
        sizes = _sizes(command)
        item = _Item(gateway_id, command, deadline, self._task.num_inputs(command), sizes)
        size = sum(sizes)
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
                    f" {_MAX_PENDING_INPUTS} in all, wait to be computed.",
                    retry_after_s=_RETRY_AFTER_S,
                ),
            )

    def cancel(self, gateway_id: str, request_id: str) -> None:
        """Nobody waits for the answer to this request any more; an unknown one is fine.

        What was computed of a classification until then is told as a `Classified` without logits.
        """
        for item in self._drop(
            lambda item: item.command.request_id == request_id and item.gateway_id == gateway_id
        ):
            if isinstance(item.command, Classify):
                told = Classified(
                    request_id, num_labels=0, logits=b"", num_tokens=(item.num_begun_tokens,)
                )
                self._outlet.send(gateway_id, told)

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
            _log.exception("a round of %d requests failed", len(turns))
            for item, _ in turns:
                self._fail_internally(item)
        return not self._is_closed

    def _drop(self, is_unwanted: Callable[[_Item], bool]) -> list[_Item]:
        """Forget what nobody waits for; which that was."""
        with self._changed:
            self._waiting.drop(is_unwanted)
            dropped = [item for item in self._wanted if is_unwanted(item)]
            self._wanted = self._wanted.difference(dropped)
            return dropped

    def _take(self, *, block: bool) -> list[_Turn]:
        """What is worked on now, by priority, small requests before large ones."""
        turns: list[tuple[_Turn, int]] = []
        num_free, size_left = _MAX_BATCH_INPUTS, _MAX_BATCH_SIZE
        with self._changed:
            while block and not self._waiting and not self._is_closed:
                self._changed.wait()
            while num_free > 0 and size_left > 0 and not self._is_closed:
                item = self._waiting.take(self._may_begin)
                if item is None:
                    break
                num_inputs, size = item.next_inputs(num_free, size_left)
                turns.append(((item, num_inputs), size))
                num_free -= num_inputs
                size_left -= size
        turns.sort(key=lambda one: (one[0][0].command.priority, one[1]))
        return [turn for turn, _ in turns]

    def _answer(self, turns: Sequence[_Turn]) -> None:
        items: list[_Item] = []
        tenants = {item.command.tenant for item, _ in turns}
        begun = {item for item, _ in turns if item.rows}
        for item, num_inputs in turns:
            with logs.about(item.command.request_id, item.command.trace_id):
                try:
                    self._read(item, num_inputs, tenants)
                except PenstockError as error:
                    self._fail(item, error.code, error.message, error.param)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException:  # noqa: BLE001 - as in `run_once`; only this one fails
                    _log.exception("the inputs of a request could not be tokenised")
                    self._fail_internally(item)
                else:
                    items.append(item)
        self._compute(items, begun)
        for item in items:
            self._put_back(item)

    def _compute(self, items: Sequence[_Item], begun_before: Container[_Item]) -> None:
        """Compute all as one batch; what raises is tried again request by request, once.

        Args:
            items: Each with the rows of its turn.
            begun_before: Those with rows of an earlier turn, of which one program runs at least.
        """
        items = [item for item in items if item in self._wanted]
        places = [(item, place) for item in items for place in item.rows]
        if not places:
            return
        rows = [item.rows[place] for item, place in places]
        tenants = {item.command.tenant for item in items}
        begun: set[int] = set()
        num_done = 0

        def is_wanted(indexes: Sequence[int]) -> bool:
            if not any(places[index][0] in self._wanted for index in indexes):
                return False
            if self._paused_tenant is not None and self._are_long(rows, indexes):
                return False  # one long row at a time
            may_wait = num_done or all(
                item not in begun_before and item.num_left > len(item.rows)
                for item in {places[index][0] for index in indexes}
            )
            if may_wait and self._is_waited_for(tenants):
                return False  # a turn that they are in computes the rest
            self.num_batches += 1
            begun.update(indexes)
            for index in indexes:
                places[index][0].num_begun_tokens += len(rows[index])
            return True

        def on_done(indexes: Sequence[int], vectors: Vectors) -> None:
            nonlocal num_done
            num_done += len(indexes)
            begun.difference_update(indexes)
            for index, vector in zip(indexes, vectors, strict=True):
                item, place = places[index]
                item.vectors[place] = vector
                del item.rows[place]
            # Nobody waits for what others have in the same batch.
            for item in dict.fromkeys(places[index][0] for index in indexes):
                if item.num_left == 0:
                    self._send(item)

        def goes_on(index: int) -> bool:
            item = places[index][0]
            # A long row takes minutes: without its pieces the engine would seem to hang.
            self.num_batches += 1
            self._serve_others(item.command.tenant)
            if item.deadline <= self._clock():
                self._fail(item, ErrorCode.DEADLINE_EXCEEDED, _EXPIRED_AT_WORK)
            return item in self._wanted and not self._is_closed

        try:
            self._task.compute(rows, is_wanted, on_done, goes_on)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:  # noqa: BLE001 - whatever the compute side raises, others go on
            for index in begun:
                places[index][0].num_begun_tokens -= len(rows[index])
            if len(items) > 1:
                _log.exception("a batch of %d texts failed: each request by itself", len(rows))
                for item in items:
                    self._compute([item], items)
            else:
                with logs.about(items[0].command.request_id, items[0].command.trace_id):
                    _log.exception("%d texts could not be computed", len(rows))
                self._fail_internally(items[0])

    def _put_back(self, item: _Item) -> None:
        """A request that isn't computed wholly waits for its tenant's next turn."""
        with self._changed:
            if item in self._wanted and item.num_left:
                self._waiting.put_back(item.command.tenant, item)

    def _serve_others(self, tenant: str) -> None:
        """A round of what waits, while a long row of a tenant is under way.

        That tenant's own requests are served, too; no other long row is: each takes memory.
        """
        self._paused_tenant = tenant
        try:
            self.run_once(block=False)
        finally:
            self._paused_tenant = None

    def _may_begin(self, item: _Item) -> bool:
        """Whether a request is worth a turn now."""
        is_alone = self._paused_tenant is None
        return is_alone or not item.has_only_rows_above(self._task.max_whole_tokens)

    def _are_long(self, rows: Sequence[Row], indexes: Sequence[int]) -> bool:
        return any(len(rows[index]) > self._task.max_whole_tokens for index in indexes)

    def _is_waited_for(self, tenants: Container[str]) -> bool:
        """Whether others wait than the tenants of a batch, one whose long row pauses included."""
        if self._paused_tenant is not None and self._paused_tenant not in tenants:
            return True
        with self._changed:
            return self._waiting.has_others(tenants)

    def _read(self, item: _Item, num_inputs: int, tenants: Container[str]) -> None:
        """Tokenise the next inputs of a request, unless an earlier turn has left some.

        It is stopped by others that come meanwhile.

        Args:
            item: The request.
            num_inputs: One at least.
            tenants: Of its batch.

        Raises:
            RequestError: One of them can't be computed.
        """
        if item.deadline <= self._clock():
            raise DeadlineError(_EXPIRED_AT_WORK if item.num_begun_tokens else _EXPIRED)
        most = self._task.max_inputs
        if item.num_inputs > most:
            raise InvalidRequestError(
                f"There are {item.num_inputs} inputs; at most {most} work.", param="input"
            )
        if item.rows:
            return
        end = len(item.num_tokens) + num_inputs
        while (first := len(item.num_tokens)) < end:
            count, _ = item.unread_inputs(end - first, _PIECE_SIZE)
            for place, row in enumerate(self._task.rows(item.command, first, count), first):
                item.rows[place] = row
                item.num_tokens.append(len(row))
                if row.is_cut:
                    item.truncated.append(place)
            if self._is_waited_for(tenants):
                return

    def _send(self, item: _Item) -> None:
        """Answer a request that is computed; a bug of that is its own."""
        with logs.about(item.command.request_id, item.command.trace_id):
            try:
                self._send_vectors(item)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException:  # noqa: BLE001 - as in `run_once`
                _log.exception("the answer to a request could not be made")
                self._fail_internally(item)

    def _send_vectors(self, item: _Item) -> None:
        vectors = np.stack([item.vectors[place] for place in range(item.num_inputs)])
        if not np.isfinite(vectors).all():
            _log.warning("the model computed no number (NaN) for a request")
            self._fail(item, ErrorCode.INTERNAL_ERROR, "The model computed no number (NaN).")
            return
        answer = self._task.answer(item.command, vectors, item.num_tokens, item.truncated)
        self._end(item, answer)

    def _fail_internally(self, item: _Item) -> None:
        self._fail(item, ErrorCode.INTERNAL_ERROR, "The engine failed at this batch.")

    def _fail(self, item: _Item, code: ErrorCode, message: str, param: str | None = None) -> None:
        usage = None
        if code is ErrorCode.DEADLINE_EXCEEDED and item.num_begun_tokens:
            usage = Usage(prompt_tokens=item.num_begun_tokens)
        request_id = item.command.request_id
        self._end(
            item,
            Failure(request_id=request_id, code=code, message=message, param=param, usage=usage),
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


def _sizes(command: TextCommand) -> list[int]:
    """Characters or token ids of each input; a text that several pairs share is the first one's."""
    firsts = (*map(len, command.texts), *map(len, command.token_ids))
    if not isinstance(command, Classify) or not command.second_texts:
        return list(firsts)
    return [sum(pair) for pair in zip_longest(firsts, map(len, command.second_texts), fillvalue=0)]

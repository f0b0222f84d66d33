"""What has not left for one peer: bounded in bytes, sent in batches, outputs of a request merge."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice
from typing import cast, get_args

from protocol.errors import PeerOverflowError
from protocol.wire import codec
from protocol.wire.messages.base import Message
from protocol.wire.messages.classification import Classify
from protocol.wire.messages.control import Failure
from protocol.wire.messages.embedding import Embed
from protocol.wire.messages.generation import Delta, Detokenize, Finished, Prepare, StepOutput
from protocol.wire.messages.scoring import Score

Merge = Callable[[Message, Message], Message | None]
"""An earlier and a later queued message as one, or None when they must stay two."""

_Question = Prepare | Detokenize | Embed | Score | Classify
_QUESTIONS = frozenset(get_args(_Question))
"""What can be taken back while it is here: its answer is all that it is for."""


class SendQueue:
    """First in, first out; while the peer is slow the last message may grow by merging.

    Args:
        max_bytes: Bound of all messages together while the peer is slow; one alone is always taken.
        max_merged_bytes: A message of this size or more doesn't merge with others.
        merge: Says which neighbours become one; None keeps all apart.

    Attributes:
        num_bytes: Of all messages, encoded; 0 when there is none.
        takes_batches: Whether the peer reads several messages in a frame.
        is_blocked: Whether the peer took nothing when it was last tried; for the owner to set.
    """

    def __init__(self, max_bytes: int, max_merged_bytes: int, merge: Merge | None) -> None:
        self._max_bytes = max_bytes
        self._max_merged_bytes = max_merged_bytes
        self._merge = merge
        # By number of arrival: the frame, and the request whose question it is.
        self._entries: OrderedDict[int, tuple[bytes, str | None]] = OrderedDict()
        self._questions: dict[str, list[int]] = {}
        self._next_number = 0
        self._last: Message | None = None
        self._head: tuple[bytes, int] | None = None
        self.num_bytes = 0
        self.takes_batches = False
        self.is_blocked = False

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, message: Message, frame: bytes) -> None:
        """Append a message, with its encoding.

        Raises:
            PeerOverflowError: The bound is reached; the message was not taken.
        """
        if self.is_blocked and self._entries and self.num_bytes + len(frame) > self._max_bytes:
            raise PeerOverflowError(
                f"A peer reads nothing and its queue holds {self.num_bytes} bytes already."
            )
        # One that is large itself would make another one that no peer takes.
        can_merge = self.is_blocked and len(frame) < self._max_merged_bytes
        if can_merge and self._try_merge(message):
            return
        request_id: str | None = None
        if type(message) in _QUESTIONS:  # several times as fast as to ask for an instance of one
            request_id = cast(_Question, message).request_id
        if request_id is not None:
            self._questions.setdefault(request_id, []).append(self._next_number)
        self._entries[self._next_number] = (frame, request_id)
        self._next_number += 1
        self._last = message
        self.num_bytes += len(frame)

    def head(self, max_batch_bytes: int) -> bytes:
        """The frame to send next, of several messages if the peer takes that; see `pop`.

        The queue must not be empty.
        """
        if self._head is None:
            entries = self._entries.values()
            if len(entries) == 1:
                (alone,) = entries
                self._head = (alone[0], 1)
                return alone[0]
            max_messages = codec.MAX_BATCH_MESSAGES if self.takes_batches else 1
            if len(entries) <= max_messages and self.num_bytes <= max_batch_bytes:
                frames = [frame for frame, _ in entries]
            else:
                frames = _beginning(entries, max_messages, max_batch_bytes)
            self._head = (codec.join(frames), len(frames))
        return self._head[0]

    def pop(self) -> None:
        """Forget what `head` returned: it was sent."""
        assert self._head is not None  # noqa: S101 - what was sent came from there
        if self._head[1] == len(self._entries):
            self._forget_all()
            return
        for _ in range(self._head[1]):
            number, (frame, request_id) = self._entries.popitem(last=False)
            self.num_bytes -= len(frame)
            if request_id is not None:
                self._forget_question(request_id, number)
        self._head = None

    def cancel(self, request_id: str) -> bool:
        """Drop the questions of a request that have not left; whether there were any."""
        numbers = self._questions.pop(request_id, ())
        for number in numbers:
            if number == self._next_number - 1:
                self._last = None
            self.num_bytes -= len(self._entries.pop(number)[0])
            self._head = None
        return bool(numbers)

    def clear(self) -> None:
        """Forget everything, and what was known of the peer."""
        self._forget_all()
        self.takes_batches = self.is_blocked = False

    def _forget_all(self) -> None:
        self._entries.clear()
        self._questions.clear()
        self._last = self._head = None
        self.num_bytes = 0

    def _forget_question(self, request_id: str, number: int) -> None:
        numbers = self._questions[request_id]
        numbers.remove(number)
        if not numbers:
            del self._questions[request_id]

    def _try_merge(self, message: Message) -> bool:
        if self._merge is None or self._last is None:
            return False
        number = next(reversed(self._entries))
        last_frame, _ = self._entries[number]
        if len(last_frame) >= self._max_merged_bytes:
            return False
        merged = self._merge(self._last, message)
        if merged is None:
            return False
        frame = codec.encode(merged)
        self.num_bytes += len(frame) - len(last_frame)
        self._entries[number] = (frame, None)
        self._last = merged
        self._head = None
        return True


def _beginning(
    entries: Iterable[tuple[bytes, str | None]], max_messages: int, max_bytes: int
) -> list[bytes]:
    """The first frames, as many as fit into one; a large one goes alone."""
    frames: list[bytes] = []
    size = 0
    for frame, _ in islice(entries, max_messages):
        size += len(frame)
        if frames and size > max_bytes:
            break
        frames.append(frame)
    return frames


def merge_step_outputs(earlier: Message, later: Message) -> Message | None:
    """Two StepOutputs as one: deltas of the same choice and attempt joined, later load and credits.

    Returns:
        None when either is no StepOutput, or the later one speaks on about a choice that ended in
        the earlier one (in a merged message deltas come before ends).
    """
    if not isinstance(earlier, StepOutput) or not isinstance(later, StepOutput):
        return None
    ended = {(end.request_id, end.choice) for end in earlier.ends}
    if any((delta.request_id, delta.choice) in ended for delta in later.deltas):
        return None
    ended_requests = {end.request_id for end in earlier.ends if end.choice == -1}
    if any(delta.request_id in ended_requests for delta in later.deltas):
        return None
    joined: dict[tuple[str, int, int], Delta] = {}
    for delta in (*earlier.deltas, *later.deltas):
        key = (delta.request_id, delta.choice, delta.attempt)
        before = joined.get(key)
        joined[key] = delta if before is None else _join(before, delta)
    ends: tuple[Finished | Failure, ...] = (*earlier.ends, *later.ends)
    return StepOutput(
        deltas=tuple(joined.values()),
        ends=ends,
        progress_counter=later.progress_counter,
        load=later.load,
        credits=later.credits,
    )


def _join(before: Delta, after: Delta) -> Delta:
    return Delta(
        request_id=after.request_id,
        choice=after.choice,
        attempt=after.attempt,
        text=before.text + after.text,
        token_ids=before.token_ids + after.token_ids,
        token_ends=before.token_ends + after.token_ends,
        logprobs=before.logprobs + after.logprobs,
        prompt_logprobs=before.prompt_logprobs + after.prompt_logprobs,
        unenforced=before.unenforced + after.unenforced,
        cached_tokens=before.cached_tokens or after.cached_tokens,
    )

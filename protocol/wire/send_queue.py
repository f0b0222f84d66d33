"""The queue to one slow peer: bounded in bytes, and outputs of one request merge in it."""

from collections import deque
from collections.abc import Callable

from protocol.errors import PeerOverflowError
from protocol.wire import codec
from protocol.wire.messages.base import Message
from protocol.wire.messages.control import Failure
from protocol.wire.messages.generation import Delta, Finished, StepOutput

Merge = Callable[[Message, Message], Message | None]
"""An earlier and a later queued message as one, or None when they must stay two."""


class SendQueue:
    """First in, first out; the last message may grow by merging.

    Args:
        max_bytes: Bound of all messages together; one message alone is always taken.
        max_merged_bytes: A message of this size or more doesn't grow further.
        merge: Says which neighbours become one; None keeps all apart.
    """

    def __init__(self, max_bytes: int, max_merged_bytes: int, merge: Merge | None) -> None:
        self._max_bytes = max_bytes
        self._max_merged_bytes = max_merged_bytes
        self._merge = merge
        self._frames: deque[bytes] = deque()
        self._last: Message | None = None
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def push(self, message: Message, frame: bytes) -> None:
        """Append a message, with its encoding.

        Raises:
            PeerOverflowError: The bound is reached; the message was not taken.
        """
        if self._frames and self.num_bytes + len(frame) > self._max_bytes:
            raise PeerOverflowError(
                f"A peer takes nothing and its queue holds {self.num_bytes} bytes already."
            )
        if self._try_merge(message):
            return
        self._frames.append(frame)
        self._last = message
        self.num_bytes += len(frame)

    def first(self) -> bytes:
        """The frame to send next; the queue must not be empty."""
        return self._frames[0]

    def pop(self) -> None:
        """Forget the first frame: it was sent."""
        self.num_bytes -= len(self._frames.popleft())
        if not self._frames:
            self._last = None

    def clear(self) -> None:
        """Forget everything."""
        self._frames.clear()
        self._last = None
        self.num_bytes = 0

    def _try_merge(self, message: Message) -> bool:
        if (
            self._merge is None
            or self._last is None
            or len(self._frames[-1]) >= self._max_merged_bytes
        ):
            return False
        merged = self._merge(self._last, message)
        if merged is None:
            return False
        frame = codec.encode(merged)
        self.num_bytes += len(frame) - len(self._frames[-1])
        self._frames[-1] = frame
        self._last = merged
        return True


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
    )

"""The states of a decoder with recurrent layers, as hashes, where the device keeps them (ADR
50)."""

from collections.abc import Sequence
from functools import reduce

Address = tuple[str, int, int]


class RecurrentStates:
    """Whoever computes a token finds the state before it, or an assertion fails.

    Args:
        block_size: Tokens a block.
        num_states: Of each slot's ring.
    """

    def __init__(self, block_size: int, num_states: int) -> None:
        self._block_size = block_size
        self._num_states = num_states
        self._states: dict[Address, int] = {}

    def compute(
        self, slot: int, block_ids: Sequence[int], before: Sequence[int], token_ids: Sequence[int]
    ) -> None:
        """Some tokens of a sequence, from the state after those `before` them on."""
        self.check(slot, block_ids, before)
        state = _after(0, before)
        for num_tokens, token_id in enumerate(token_ids, start=len(before) + 1):
            state = _after(state, (token_id,))
            self._states[self._address(slot, block_ids, num_tokens)] = state

    def check(self, slot: int, block_ids: Sequence[int], token_ids: Sequence[int]) -> None:
        """The state after some tokens is where it belongs."""
        if token_ids:
            found = self._states.get(self._address(slot, block_ids, len(token_ids)))
            assert found == _after(0, token_ids), "this is the state of something else"

    def lose(self) -> None:
        """Nothing is left."""
        self._states.clear()

    def _address(self, slot: int, block_ids: Sequence[int], num_tokens: int) -> Address:
        if num_tokens % self._block_size == 0:
            return "block", block_ids[num_tokens // self._block_size - 1], 0
        return "ring", slot, num_tokens % self._num_states


def _after(state: int, token_ids: Sequence[int]) -> int:
    return reduce(lambda state, token_id: hash((state, token_id)), token_ids, state)

"""How much each gateway may have unfinished at this engine: absolute windows that follow demand."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from protocol.wire.messages import Credits

Held = Mapping[str, tuple[int, int]]
"""By gateway: its unfinished choices and their tokens. Who has none may be missing."""

_NOTHING = (0, 0)


@dataclass(frozen=True, slots=True)
class CreditPolicy:
    """What all gateways together may have unfinished, and how they share it.

    The queue belongs to the gateways; the engine takes about one batch more than it runs, so that
    a finished choice is replaced at once. Half of it is set aside in equal parts, so that a
    gateway whose clients come all at once never finds the engine full of another one's. The other
    half goes to those that have most here; among gateways that are all busy this becomes even, too.
    The windows of what gateways have and may still send never exceed the whole.

    Attributes:
        max_requests: Choices, running and waiting; each `Generate` counts as one.
        max_tokens: Of their prompts and outputs.
        max_model_len: Of one request; no window of tokens is smaller.
    """

    max_requests: int
    max_tokens: int
    max_model_len: int

    @classmethod
    def for_engine(
        cls, *, max_num_seqs: int, num_kv_tokens: int, max_model_len: int
    ) -> "CreditPolicy":
        """Twice what runs at a time, in choices and in tokens of KV cache."""
        return cls(2 * max_num_seqs, 2 * num_kv_tokens, max_model_len)

    @property
    def whole(self) -> Credits:
        """The window of a gateway that is alone."""
        return Credits(max_requests=self.max_requests, max_tokens=self.max_tokens)

    def window(self, gateway_id: str, gateway_ids: Iterable[str], held: Held) -> Credits:
        """What a gateway may have unfinished.

        Args:
            gateway_id: The gateway.
            gateway_ids: All that are connected.
            held: What they have now.
        """
        others = set(gateway_ids) - {gateway_id}
        set_aside = self._set_aside(1 + len(others))
        spare = max(0, self.max_requests - (1 + len(others)) * set_aside)
        own_weight = 1 + held.get(gateway_id, _NOTHING)[0]
        all_weight = own_weight + sum(1 + held.get(other, _NOTHING)[0] for other in others)
        # Rounded to the nearest: down would leave slots to nobody, up would never become even.
        share = set_aside + (2 * spare * own_weight + all_weight) // (2 * all_weight)
        max_requests = max(set_aside, min(share, self._room(others, held, set_aside)))
        return Credits(
            max_requests=max_requests,
            max_tokens=max(
                self.max_model_len,
                min(
                    self.max_tokens * max_requests // self.max_requests,
                    self._token_room(others, held),
                ),
            ),
        )

    def admits(
        self, gateway_id: str, gateway_ids: Iterable[str], held: Held, num_new_tokens: int
    ) -> bool:
        """Whether one more choice of a gateway is taken.

        More is taken than the window says, as long as there is room: windows shrink while choices
        are under way. A gateway with nothing unfinished may always send one.

        Args:
            gateway_id: The gateway.
            gateway_ids: All that are connected.
            held: What they have now.
            num_new_tokens: Prompt and resumed output of the choice.
        """
        num_choices, num_tokens = held.get(gateway_id, _NOTHING)
        if num_choices == 0:
            return True
        others = set(gateway_ids) - {gateway_id}
        set_aside = self._set_aside(1 + len(others))
        if num_choices >= max(set_aside, self._room(others, held, set_aside)):
            return False
        token_room = max(self.max_model_len, self._token_room(others, held))
        return num_tokens + num_new_tokens <= token_room

    def _set_aside(self, num_gateways: int) -> int:
        return max(1, self.max_requests // (2 * num_gateways))

    def _room(self, others: set[str], held: Held, set_aside: int) -> int:
        """What is left beside what the others have or may claim at any time."""
        return self.max_requests - sum(
            max(set_aside, held.get(other, _NOTHING)[0]) for other in others
        )

    def _token_room(self, others: set[str], held: Held) -> int:
        return self.max_tokens - sum(held.get(other, _NOTHING)[1] for other in others)

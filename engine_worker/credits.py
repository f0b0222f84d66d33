"""How much each gateway may have unfinished at this engine: absolute windows, split evenly."""

from dataclasses import dataclass

from protocol.messages import Credits


@dataclass(frozen=True, slots=True)
class CreditPolicy:
    """What all gateways together may have unfinished.

    The queue belongs to the gateways; the engine takes about one batch more than it runs, so that
    a finished request is replaced at once.

    Attributes:
        max_requests: Running and waiting.
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
        """Twice what runs at a time, in requests and in tokens of KV cache."""
        return cls(2 * max_num_seqs, 2 * num_kv_tokens, max_model_len)

    def window(self, num_gateways: int) -> Credits:
        """The window of each of so many gateways."""
        share = max(1, num_gateways)
        return Credits(
            max_requests=max(1, self.max_requests // share),
            max_tokens=max(self.max_model_len, self.max_tokens // share),
        )


def exceeds(window: Credits, num_requests: int, num_tokens: int, num_new_tokens: int) -> bool:
    """Whether one more request is beyond a gateway's window.

    A gateway with nothing unfinished may always send one.

    Args:
        window: The gateway's.
        num_requests: Unfinished requests of the gateway.
        num_tokens: Tokens that these have.
        num_new_tokens: Prompt and resumed output of the new one.
    """
    if num_requests == 0:
        return False
    return num_requests >= window.max_requests or num_tokens + num_new_tokens > window.max_tokens

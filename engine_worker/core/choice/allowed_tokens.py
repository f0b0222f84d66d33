"""Which tokens one output may take next, by what its request allows and forbids."""

from collections.abc import Iterable, Sequence

from engine_worker.core.choice.token_mask import MaskWords, allow_all, allow_only, forbid


class AllowedTokens:
    """The masks of one request; they depend on nothing but its output so far.

    Args:
        vocab_size: Of the model.
        allowed_token_ids: Only these may be drawn; None allows all.
        forbidden_sequences: Token sequences that are never completed within the output.
        ending_token_ids: Ids that may not be drawn before `min_tokens`.
        min_tokens: Output tokens before the output may end.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        allowed_token_ids: Sequence[int] | None = None,
        forbidden_sequences: Iterable[tuple[int, ...]] = (),
        ending_token_ids: frozenset[int] = frozenset(),
        min_tokens: int = 0,
    ) -> None:
        self._vocab_size = vocab_size
        self._min_tokens = min_tokens
        # The last token of a sequence is masked where the output ends with the others.
        self._last_tokens: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        always: set[int] = set()
        for *beginning, last in forbidden_sequences:
            if max(beginning, default=0) >= vocab_size or last >= vocab_size:
                continue  # a tokenizer may know tokens that the model doesn't; they never come
            if beginning:
                entry = (tuple(beginning), last)
                self._last_tokens.setdefault(beginning[-1], []).append(entry)
            else:
                always.add(last)
        self._usual = None
        if allowed_token_ids is not None:
            self._usual = allow_only(allowed_token_ids, vocab_size)
        self._usual = self._without(self._usual, always)
        ending = {token_id for token_id in ending_token_ids if token_id < vocab_size}
        self._early = self._without(self._usual, ending if min_tokens else ())

    @property
    def is_contradictory(self) -> bool:
        """Whether not even a first token is allowed."""
        return self._early is not None and not self._early.any()

    def mask(self, output_token_ids: Sequence[int]) -> MaskWords | None:
        """The mask of the next token, not to be changed; None allows all tokens."""
        mask = self._early if len(output_token_ids) < self._min_tokens else self._usual
        if not self._last_tokens or not output_token_ids:
            return mask
        candidates = self._last_tokens.get(output_token_ids[-1], ())
        completing = {
            last
            for beginning, last in candidates
            if tuple(output_token_ids[-len(beginning) :]) == beginning
        }
        return self._without(mask, completing)

    def _without(self, mask: MaskWords | None, token_ids: Iterable[int]) -> MaskWords | None:
        """A mask without some tokens; the same one when there are none."""
        token_ids = tuple(token_ids)
        if not token_ids:
            return mask
        reduced = allow_all(self._vocab_size) if mask is None else mask.copy()
        forbid(reduced, token_ids)
        return reduced

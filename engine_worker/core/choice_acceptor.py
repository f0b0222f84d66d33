"""From a Generate command to a choice that only has to be scheduled; for any thread."""

import logging
from collections.abc import Callable
from functools import partial

import numpy as np

from engine_worker.core.acceptance import AcceptanceLimits, accept, check_first_token
from engine_worker.core.choice.token_mask import MaskWords, num_mask_words
from engine_worker.core.choice_output import ChoiceOutput, resumed_output
from engine_worker.core.metrics import EngineMetrics
from engine_worker.core.scheduling.block_hashes import block_hashes, salt_of
from engine_worker.grammar.constraint import Constraint
from engine_worker.text.tokenizer import Tokenizer
from protocol.runtime import logs
from protocol.wire.messages import Generate

_log = logging.getLogger("penstock.engine")


class ChoiceAcceptor:
    """Does the part of taking a choice that may be long, or may be refused.

    That is: checking every field, spelling `bad_words` in tokens, reading again what an earlier
    attempt generated, appending what the grammar forces first, and naming the blocks. It shares
    nothing with the steps of the engine, so any thread may call it.

    Args:
        limits: What choices are checked against.
        tokenizer: The model's.
        block_size: Tokens a KV block.
        shares_cache: Whether choices of one tenant share the blocks of equal beginnings; if not,
            only the choices of one request do.
        metrics: Told how long masks take.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        limits: AcceptanceLimits,
        tokenizer: Tokenizer,
        *,
        block_size: int,
        shares_cache: bool,
        metrics: EngineMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._tokenizer = tokenizer
        self._block_size = block_size
        self._shares_cache = shares_cache
        self._metrics = metrics
        self._clock = clock

    def accept(
        self,
        gateway_id: str,
        command: Generate,
        *,
        received_at: float,
        constraint: Constraint | None,
    ) -> ChoiceOutput:
        """The choice with its output as far as it is known without computing anything.

        Args:
            gateway_id: Who wants it.
            command: What is wanted.
            received_at: When it came, on the engine's clock.
            constraint: Of its grammar, used by nobody else.

        Raises:
            RequestError: The first field that is wrong, named in `param`.
        """
        choice = accept(
            gateway_id,
            command,
            self._limits,
            self._tokenizer.word_sequences,
            received_at=received_at,
        )
        # The names of blocks are the border between tenants, so the engine makes them itself.
        own = repr((command.tenant, gateway_id, command.request_id))
        shared = salt_of(command.tenant, command.cache_salt)
        choice.cache_salt = shared if self._shares_cache else own
        output = resumed_output(
            choice, command, constraint, self._tokenizer, self._limits.vocab_size
        )
        if constraint is not None:
            choice.pending_mask = partial(
                self._make_mask, constraint, command.request_id, command.trace_id
            )
            check_first_token(choice, constraint)
        output.append_forced()
        token_ids = choice.token_ids(0, choice.num_tokens)
        choice.block_hashes = list(block_hashes(token_ids, self._block_size, choice.cache_salt))
        return output

    def _make_mask(self, constraint: Constraint, request_id: str, trace_id: str) -> MaskWords:
        """The mask of the next token; called within a step, so a bug must cost only this row.

        It knows neither the choice nor its output, which have it: a circle of them would stay until
        Python collects its garbage, with the matcher and the prompt.
        """
        started = self._clock()
        try:
            mask = constraint.mask()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:  # noqa: BLE001 - a panic of a native library is no Exception
            with logs.about(request_id, trace_id):
                _log.exception("the mask of a grammar could not be made")
            constraint.has_broken_mask = True
            return np.zeros(num_mask_words(self._limits.vocab_size), np.uint32)
        self._metrics.on_mask(self._clock() - started)
        return mask

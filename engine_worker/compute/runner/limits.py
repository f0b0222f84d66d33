"""What a runner is built for, and that a row keeps to it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine_worker.core.choice.batch import MAX_ROW_STOP_TOKEN_IDS, RowWork
from engine_worker.core.choice.cache_group import NO_BLOCK, CacheGroup


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    """What a runner is built for; see the properties of `JaxModelRunner`."""

    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    deterministic: bool
    run_ahead: bool
    compiler_yields: bool = False
    program_folder: Path | None = None


@dataclass(frozen=True, slots=True)
class RowLimits:
    """What one row of a step may be.

    Attributes:
        max_new_tokens: Tokens that a row samples in one step.
        num_slots: Slots.
        max_num_tokens: Tokens of a row in one step.
        max_model_len: Where a row ends at most.
        cache_groups: Of the cache.
        block_size: Tokens a block.
        table_width: Blocks of a row.
    """

    max_new_tokens: int
    num_slots: int
    max_num_tokens: int
    max_model_len: int
    cache_groups: tuple[CacheGroup, ...]
    block_size: int
    table_width: int
    _checked: tuple[dict[int, tuple[Sequence[int], int]], ...] = field(
        default_factory=lambda: ({}, {})
    )
    """For each cache group, by slot: the block ids that it had last, and how many were looked
    at."""
    _plain: dict[int, tuple[Sequence[int], int, int]] = field(default_factory=dict)
    """By slot, if its last row was plain: the block ids, how many, and where a row of them ends at
    most."""

    def check(self, row: RowWork, *, has_next: bool = False) -> None:
        """Raises for a row that no program could compute.

        Args:
            row: Of a step.
            has_next: Whether its next step may be begun, too.

        Raises:
            ValueError: Names the limit.
        """
        max_new_tokens, block_ids = row.max_new_tokens, row.block_ids
        known, num_known, last_end = self._plain.get(row.slot, ((), 0, 0))
        is_known_kind = row.is_plain and known is block_ids
        if (
            is_known_kind
            and not has_next
            and num_known == len(block_ids)
            and 0 < max_new_tokens <= self.max_new_tokens
            and 0 <= row.start <= last_end - max_new_tokens
        ):
            return  # as it mostly is
        end = row.start + len(row.token_ids) - 1 + max_new_tokens + has_next
        if has_next and (not row.sample or max_new_tokens > 1 or row.draft_token_ids):
            raise ValueError("only rows that sample one token have their next step begun")
        if not 1 <= max_new_tokens <= self.max_new_tokens:
            raise ValueError(f"a row samples 1 to {self.max_new_tokens} tokens")
        if not is_known_kind:
            self._check_kind(row)
        if row.start < 0 or end > self.max_model_len:
            raise ValueError(f"a row ends at {end}, beyond {self.max_model_len} tokens")
        self._check_blocks(row, end, block_ids, 0)
        if len(self.cache_groups) > 1:
            self._check_blocks(row, end, row.window_block_ids, 1)
        if row.is_plain:
            # Where blocks are freed, or there are more tables, all is looked at in each step.
            is_whole = len(self.cache_groups) == 1 and self.cache_groups[0].reach is None
            last_end = min(len(block_ids) * self.block_size, self.max_model_len)
            self._plain[row.slot] = block_ids, len(block_ids), last_end if is_whole else 0
        else:
            self._plain.pop(row.slot, None)

    def _check_kind(self, row: RowWork) -> None:
        """Looks at what stays the same from one plain row to the next."""
        num_tokens = len(row.token_ids)
        is_decode = row.sample and num_tokens == 1 and not row.needs_full_sampler
        if row.max_new_tokens > 1 and not is_decode:
            raise ValueError("only decodes without the full sampler sample several tokens")
        if len(row.stop_token_ids) > MAX_ROW_STOP_TOKEN_IDS:
            raise ValueError(f"a row has at most {MAX_ROW_STOP_TOKEN_IDS} stop ids")
        if not 0 <= row.slot < self.num_slots:
            raise ValueError(f"slot {row.slot} is not below {self.num_slots}")
        if not 1 <= num_tokens <= self.max_num_tokens:
            raise ValueError(f"a row has 1 to {self.max_num_tokens} tokens, not {num_tokens}")
        if len(row.scored_token_ids) > num_tokens:
            raise ValueError(f"a row of {num_tokens} tokens scores at most as many")
        if row.is_plain and not is_decode:
            raise ValueError("a plain row is a decode without the full sampler")

    def _check_blocks(self, row: RowWork, end: int, block_ids: Sequence[int], index: int) -> None:
        """Looks at those ids that the same list has got since the slot's last step."""
        group, checked, num_blocks = self.cache_groups[index], self._checked[index], len(block_ids)
        if end > num_blocks * self.block_size or num_blocks > self.table_width:
            raise ValueError(f"{num_blocks} blocks do not fit a row of {end} tokens")
        first = 0
        if group.reach is not None:
            first = max(0, row.start - group.reach + 1) // self.block_size
            if block_ids[first] == NO_BLOCK:
                raise ValueError(f"block {first} of a row was freed, but is still seen")
        known, num_checked = checked.get(row.slot, ((), 0))
        if known is block_ids and num_checked == num_blocks:
            return
        if known is not block_ids or num_checked > num_blocks:
            num_checked = 0
        new = block_ids[max(num_checked, first) :]
        if new and (min(new) < 0 or max(new) >= group.num_blocks):
            raise ValueError(f"block ids are 0 to {group.num_blocks - 1}")
        checked[row.slot] = block_ids, num_blocks

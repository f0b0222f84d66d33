"""The version of the wire: another major is refused on both sides, minors only add."""

from typing import NamedTuple


class ProtocolVersion(NamedTuple):
    """`major.minor` of the wire; it crosses the wire as an array of two integers."""

    major: int
    minor: int

    def speaks_with(self, other: "ProtocolVersion") -> bool:
        """Whether two peers of these versions understand each other."""
        return self.major == other.major

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


PROTOCOL_VERSION = ProtocolVersion(1, 5)

OLDEST_VERSION = ProtocolVersion(1, 0)
"""What a peer speaks that says nothing about it."""

METRICS_VERSION = ProtocolVersion(1, 1)
"""Since when gateways take `Metrics` and `CachedBlocks`."""

ORPHAN_USAGE_VERSION = ProtocolVersion(1, 1)
"""Since when gateways and auth workers take `OrphanUsage`."""

SURFACE_VERSION = ProtocolVersion(1, 1)
"""Since when engines take `Detokenize`, the texts of tokens in `Prepare`, and tokens that are
biased, allowed or forbidden; an older one would ignore them."""

CANCEL_VERSION = ProtocolVersion(1, 2)
"""Since when engines take `Cancel`."""

BATCH_VERSION = ProtocolVersion(1, 2)
"""Since when both sides read a frame that holds an array of messages."""

CLEAR_CACHE_VERSION = ProtocolVersion(1, 4)
"""Since when engines take `ClearCache`."""

PRINCIPALS_VERSION = ProtocolVersion(1, 3)
"""Since when auth workers take scopes, and every command on keys and the audit log but the three
of 1.0; an older one would ignore rules."""

PEOPLE_VERSION = ProtocolVersion(1, 4)
"""Since when auth workers know users, teams, limits, budgets and prices, and a key's part in them;
an older one would ignore them."""

MINUTES_VERSION = ProtocolVersion(1, 5)
"""Since when auth workers tell usage by the minute."""

AUDIT_LISTS_VERSION = ProtocolVersion(1, 5)
"""Since when auth workers take filters of the audit log with several values; an older one would
ignore them."""

KEY_ACTION_VERSION = ProtocolVersion(1, 5)
"""Since when auth workers take `action` of `UpdateKey`; an older one would ignore it."""

SCORE_VERSION = ProtocolVersion(1, 4)
"""Since when engines take `Score`; those that do say `scores` among their capabilities."""

CLASSIFY_VERSION = ProtocolVersion(1, 4)
"""Since when engines take `Classify`; those that do say `classify` among their capabilities. Only
engines that offer `prompt_names` take a `prompt_name` of `Embed`."""

EXTRAS_VERSION = ProtocolVersion(1, 5)
"""Since when engines end reasoning by `Generate.thought`, which parsers tell in `ParseOpened`, and
take `chat_template`, `suffix`, `cache_salt` and `logprob_token_ids`; an older one would ignore
them."""

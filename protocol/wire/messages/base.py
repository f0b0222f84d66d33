"""The base of every message: a frozen, tagged struct that MessagePack carries as a map."""

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
"""Where a negative number of a foreign peer would be charged or handed on."""


class Message(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True, kw_only=True):
    """One message on the wire.

    A message is a MessagePack map whose `type` names it (the tag); fields at their default are
    left out, fields unknown to the reader are skipped, so that a minor version may add some.
    """


class Part(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A piece of a message that never travels alone; a MessagePack map without a tag."""

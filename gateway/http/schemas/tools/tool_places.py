"""Where in a request the tools are that a chat was made of: some are left out, some nested."""

import re
from collections.abc import Sequence
from typing import Final

_TOOL: Final = re.compile(r"\btools\[(\d{1,9})\]")


def with_places(text: str, paths: Sequence[str]) -> str:
    """A text with the places of a chat's tools as they are in the request that it was made of."""

    def path(found: re.Match[str]) -> str:
        index = int(found[1])
        # A message may quote the client, who may write anything.
        return paths[index] if index < len(paths) else found[0]

    return _TOOL.sub(path, text)

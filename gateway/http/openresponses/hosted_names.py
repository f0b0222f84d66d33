"""The names by which a model sees the tools of MCP servers."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Set
from typing import Final

from gateway.http.schemas.base.ranges import MAX_TOOL_NAME_CHARACTERS

JOINT: Final = "__"
"""Between the label of a server and the name of its tool."""
_DIGEST_CHARACTERS: Final = 8


def plain_name(label: str, name: str) -> str:
    """The name of a tool, unless another one has it, too.

    Args:
        label: Of its server.
        name: Of the tool, as the server calls it.
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{label}{JOINT}{name}")[:MAX_TOOL_NAME_CHARACTERS]


def seen_names(tools: Iterable[tuple[str, str]], taken: Set[str]) -> dict[tuple[str, str], str]:
    """A name of its own for each tool, by label and name.

    Where several would have one name, be it for their length or for what no name may contain, a
    digest ends that of each: which one comes first makes no difference.

    Args:
        tools: Label and name of each.
        taken: Names of other tools.
    """
    plain = {tool: plain_name(*tool) for tool in tools}
    wanted = Counter((*plain.values(), *taken))
    used = set(wanted)
    found: dict[tuple[str, str], str] = {}
    for tool, name in plain.items():
        found[tool] = name if wanted[name] == 1 else _marked(tool, name, used)
        used.add(found[tool])
    return found


def _marked(tool: tuple[str, str], name: str, used: Set[str]) -> str:
    begin = name[: MAX_TOOL_NAME_CHARACTERS - _DIGEST_CHARACTERS - 1]
    for number in itertools.count():
        digest = hashlib.sha256("\0".join((*tool, str(number))).encode()).hexdigest()
        marked = f"{begin}_{digest[:_DIGEST_CHARACTERS]}"
        if marked not in used:
            return marked
    raise AssertionError("there are more digests than tools")

"""Which tool a model means that doesn't call it by the name it was given."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.http.openresponses.hosted import HostedTool
from gateway.http.openresponses.hosted_names import JOINT
from gateway.request.delivery.events import GenerationEvent, ToolCallStarted


@dataclass(frozen=True, slots=True)
class CalledNames:
    """The names of a response's tools.

    Models leave out the namespace or the server of a tool. Without it the tool is still meant where
    no other one is called so.

    Attributes:
        offered: As the model sees them.
        bare: From a tool's own name, without its namespace or server, to the one that is offered;
            only what is the own name of one tool, and is offered itself by none.
    """

    offered: frozenset[str] = frozenset()
    bare: dict[str, str] = field(default_factory=dict)

    def meant(self, name: str) -> str:
        """The offered name of the tool that a call means; its own name where it means none."""
        return name if name in self.offered else self.bare.get(name, name)


def called_names(
    offered: Iterable[str],
    spaces: Mapping[str, tuple[str, str]],
    hosted: Mapping[str, HostedTool],
) -> CalledNames:
    """The names of a response's tools.

    Args:
        offered: As the model sees them.
        spaces: By such a name: namespace and own name of a tool.
        hosted: Likewise the tools of MCP servers.
    """
    own = {name: one for name, (_, one) in spaces.items()}
    own |= {name: tool.name for name, tool in hosted.items()}
    names, times = frozenset(offered), Counter(own.values())
    bare = {one: name for name, one in own.items() if times[one] == 1 and one not in names}
    return CalledNames(names, bare)


def meant_event(
    event: GenerationEvent,
    names: CalledNames,
    tools: dict[str, HostedTool],
    labels: Sequence[str],
) -> GenerationEvent:
    """An event of a turn; a call has the offered name of the tool that it means.

    Where it means none, and MCP servers are there, a tool is added that stands for it: its call
    fails, and the model reads why. Without servers all tools are the client's, who knows what to
    answer.

    Args:
        event: Of the model.
        names: Of the turn's tools.
        tools: Of the servers, by the names that the model sees.
        labels: Of the servers.
    """
    if not isinstance(event, ToolCallStarted) or event.name in tools:
        return event
    name = names.meant(event.name)
    if labels and name not in tools and name not in names.offered:
        tools[name] = _unknown_tool(name, labels)
    return ToolCallStarted(event.choice, event.index, event.id, name)


def _unknown_tool(name: str, labels: Sequence[str]) -> HostedTool:
    """One of the server that the name begins with, else of the first server."""
    label, own = labels[0], name
    for one in sorted(labels, key=len):
        if len(rest := name.removeprefix(f"{one}{JOINT}")) in range(1, len(name)):
            label, own = one, rest
    return HostedTool(label, own, needs_approval=False, is_listed=False)

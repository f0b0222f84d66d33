"""The tools of a request as far as reading their calls depends on them."""

from collections.abc import Iterable, Mapping
from typing import Any

from toolparser_worker.machine.declarations import CallBody

Schema = Mapping[str, Any] | None


class ToolSchemas:
    """Names of tools, and what their parameters are.

    Args:
        tools: The `tools` of a chat request, checked already.
    """

    def __init__(self, tools: Iterable[Mapping[str, Any]] = ()) -> None:
        self._parameters: dict[str, Mapping[str, Any]] = {}
        for tool in tools:
            function = tool["function"]
            parameters = function.get("parameters")
            self._parameters[function["name"]] = (
                parameters if isinstance(parameters, Mapping) else {}
            )

    def has(self, name: str) -> bool:
        """Whether a tool is called so; without any tools every name is fine."""
        return not self._parameters or name in self._parameters

    def allows(self, name: str, body: CallBody) -> bool:
        """Whether a call spelt like this may have this name, and is not plain text."""
        return body.unknown_names != "text" or self.has(name)

    def undoubled(self, name: str) -> str:
        """The `x` of a name `x.x`, if that is a tool and the name itself is none."""
        half, _, other = name.partition(".")
        return half if half == other and half in self._parameters else name

    def has_parameters(self, name: str) -> bool:
        """Whether the tool is known and declares parameters."""
        return bool(self._properties(name))

    def parameter(self, name: str, key: str) -> Schema:
        """The JSON schema of a tool's parameter; None when nothing is known about it."""
        schema = self._properties(name).get(key)
        return self._resolved(name, schema)

    def parameters(self, name: str) -> Schema:
        """The JSON schema of all the arguments of a tool; None when it is not known."""
        return self._parameters.get(name)

    def _properties(self, name: str) -> Mapping[str, Any]:
        properties = self._parameters.get(name, {}).get("properties")
        return properties if isinstance(properties, Mapping) else {}

    def _resolved(self, name: str, schema: object) -> Schema:
        """The schema itself, or what its `$ref` to the tool's own definitions points to."""
        if not isinstance(schema, Mapping):
            return None
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        target: object = self._parameters.get(name, {})
        for part in reference[2:].split("/"):
            target = target.get(part) if isinstance(target, Mapping) else None
        return target if isinstance(target, Mapping) else None


def schema_part(schema: Schema, keyword: str) -> Schema:
    """What stands under a keyword of a schema, if it is an object."""
    inner = schema.get(keyword) if schema is not None else None
    return inner if isinstance(inner, Mapping) else None

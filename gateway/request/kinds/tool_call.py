"""A call of one of this server's tools as a kind of work."""

from gateway.errors import GatewayError
from gateway.request.leases.work_bound import Bound
from gateway.request.lifecycle.work import SimpleWork
from gateway.tools.tool_servers import ToolRunner
from gateway.tools.toolbox import ToolResult


class ToolWork(SimpleWork):
    """One call of a tool: after `Request.start` its result is there.

    Args:
        endpoint: The route template.
        toolbox: Runs it.
        name: Of the tool.
        arguments_json: By name, as a JSON object.
        caller: Whose turn it is.

    Attributes:
        result: What the call yielded.
    """

    def __init__(
        self, endpoint: str, toolbox: ToolRunner, name: str, arguments_json: str, caller: bytes
    ) -> None:
        self.endpoint = endpoint
        self.model = ""
        self.result = ToolResult()
        self._toolbox = toolbox
        self._name = name
        self._arguments_json = arguments_json
        self._caller = caller
        self._was_begun = False

    def bound(self) -> Bound:
        """No tokens; it counts as a request."""
        return Bound(uses_tools=True)

    async def run(self) -> None:
        """Run the tool; what goes wrong within it is a result.

        Raises:
            GatewayError: No such tool, wrong arguments, or too many calls wait.
        """
        self._was_begun = True
        try:
            self.result = await self._toolbox.execute(
                self._name, self._arguments_json, self._caller
            )
        except GatewayError:
            self._was_begun = False  # it was refused; what a tool raises is a result
            raise
        self.owner.end("finished")

    @property
    def has_begun(self) -> bool:
        """Whether the tool was begun."""
        return self._was_begun

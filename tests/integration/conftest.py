"""What tests of whole processes share."""

from tests.fakes.postgres_fixture import postgres_server
from tests.fakes.tool_plugin import plugin

__all__ = ["plugin", "postgres_server"]

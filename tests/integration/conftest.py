"""What tests of whole processes share."""

from tests.fakes.postgres_fixture import postgres_server

__all__ = ["postgres_server"]

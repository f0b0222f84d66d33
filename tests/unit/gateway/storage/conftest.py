"""What tests of the store share."""

from tests.fakes.postgres_fixture import postgres_server

__all__ = ["postgres_server"]

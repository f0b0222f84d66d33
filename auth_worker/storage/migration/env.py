"""Run by Alembic: the versions that it is told to, on the connection and in the transaction given.

https://alembic.sqlalchemy.org/en/latest/cookbook.html#sharing-a-connection-across-one-or-more-programmatic-migration-commands
"""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()

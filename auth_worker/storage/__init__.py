"""Where it lasts: the port `Store`, its databases, tables and migrations, and the commit thread.

Nothing here decides who may do what. SQLAlchemy lives only here.
Others use `Store`, `Committer`, the two databases, and what `backup.py` and `migrations.py` do for
the command line.
May import `auth_worker.records`, `auth_worker.principals`, `auth_worker.clock` and
`auth_worker.errors`; never `decisions`.
"""

"""Where it lasts: the port `Store`, its databases, tables and migrations, and the commit thread.

May be touched when a table or a database changes; nothing here decides who may do what. May
import `records`, `principals` and below, never `decisions`. SQLAlchemy lives only here.
"""

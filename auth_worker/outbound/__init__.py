"""What this process asks of others over HTTP: key sets of token issuers, and webhooks.

May be touched when it may reach other addresses than before, or reads answers differently. May
import the room of principals for its networks, errors and the clock; nothing else of this package.
"""

"""The bodies of administration: keys, users, teams, limits, prices, workers, profiles.

`settings.py` has what keys and other resources share.
Others use the models.
May import `gateway.http.schemas.base`.
"""

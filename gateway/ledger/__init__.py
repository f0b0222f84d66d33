"""What must not be lost: settlements until the auth worker has them, and the folder they lie in.

`outbox.py` sends each until it is acknowledged and keeps it on disk meanwhile; `data_slot.py` gives
each gateway of a shared folder its own. Every write here is fsynced before it is relied on.
May import `gateway.errors` and `protocol`.
"""

"""What must not be lost: settlements until the auth worker has them, and the folder they lie in.

`outbox.py` sends each until it is acknowledged (`window.py`) and keeps it on disk meanwhile
(`spool.py`, `journal.py`; `backlog.py` for what earlier processes left). `data_slot.py` gives each
gateway of a shared folder its own. Every write is fsynced before it is relied on.
Others use `Outbox` and `DataSlot`.
May import `gateway.errors`.
"""

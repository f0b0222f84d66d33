"""What crosses process borders: codec, sockets, keys, peers, and the loop that every worker runs.

`messages/` holds the messages; `transport*.py` alone know ZeroMQ and `codec.py` alone MessagePack.
Keys are read in `keys.py`, used in `transport_curve.py` and made in `keygen.py`, in that order.
Others use `Worker`, `RoleServer`, the codec and `messages`.
May import `protocol.errors` and `protocol.version`.
"""

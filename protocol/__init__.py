"""What crosses process borders: messages, codec, sockets, error codes and the worker loop.

`wire` is all that crosses, `runtime` what each process needs to run; `errors.py` has the codes,
`version.py` the version of the wire.
Others may import all of it; a change of the wire raises its minor, and minors only add.
May import nothing of ours.
"""

from protocol.version import PROTOCOL_VERSION, ProtocolVersion

__all__ = ["PROTOCOL_VERSION", "ProtocolVersion"]

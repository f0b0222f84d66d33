"""What crosses process borders: messages, codec, sockets, error codes and the worker loop."""

from protocol.version import PROTOCOL_VERSION, ProtocolVersion

__all__ = ["PROTOCOL_VERSION", "ProtocolVersion"]

"""The two ends of the wire; the `transport*` modules are the only ones that know ZeroMQ."""

from protocol.wire.transport_dealer import Dealer
from protocol.wire.transport_io import TransportLimits, new_context
from protocol.wire.transport_router import Router

__all__ = ["Dealer", "Router", "TransportLimits", "new_context"]

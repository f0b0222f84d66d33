"""The two ends of the wire; the `transport*` modules are the only ones that know ZeroMQ."""

from protocol.transport_dealer import Dealer
from protocol.transport_io import TransportLimits, new_context
from protocol.transport_router import Router

__all__ = ["Dealer", "Router", "TransportLimits", "new_context"]

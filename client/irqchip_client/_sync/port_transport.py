"""A Session over the port."""

from __future__ import annotations

from .packets import PacketTransport


class PortTransport(PacketTransport):
    """A PacketTransport with weak references to it. An object of a compiled class has none; this is not compiled."""

"""A Session over the port."""

from __future__ import annotations

from .packets import PacketTransport


class PortTransport(PacketTransport):
    """A PacketTransport that can have weak references. A compiled class can't; this class is not compiled."""

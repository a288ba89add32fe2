"""A correct client of the port."""

from __future__ import annotations

import socket

from irqchip.port import MESSAGE_BYTES, SUFFIX
from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client._daemon import Daemon
from tests.fuzz.machines import PATIENCE


class PortClient:
    """A Session without subscriptions."""

    def __init__(self, daemon: Daemon, vm: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(daemon.target.removeprefix("unix://") + SUFFIX)
        opened = self.ask(pb.SessionRequest(open=pb.SessionOpen(vm=vm)).SerializeToString())
        assert pb.SessionResponse.FromString(opened).HasField("opened"), opened

    def ask(self, packet: bytes) -> bytes:
        """Send a packet; returns the answer."""
        self._socket.send(packet)
        return self._socket.recv(MESSAGE_BYTES + 1)

    def close(self) -> None:
        """End the Session."""
        self._socket.close()

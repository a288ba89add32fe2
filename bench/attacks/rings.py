"""Row 2 by rings: the same work without a system call; and rings whose clients break the rules."""

from __future__ import annotations

import mmap
import os
import socket

from bench.attacks.common import BROADCAST, NMI, VM, Act, Attack, Foe, records
from irqchip.port import MESSAGE_BYTES
from irqchip.ring import MEMORY_BYTES, WAITS, End
from irqchip.v1 import irqchip_pb2 as pb

VCPUS = 255


class _Ring:
    """A Session with rings. Without rings, none of the methods does anything."""

    def __init__(self, foe: Foe) -> None:
        self._connection = foe.connection()
        self._connection.send(pb.SessionRequest(open=pb.SessionOpen(vm=VM, rings=True)).SerializeToString())
        _, descriptors, _, _ = socket.recv_fds(self._connection, MESSAGE_BYTES, 3)
        self.end: End | None = None
        if descriptors:
            self.end = End(mmap.mmap(descriptors[0], MEMORY_BYTES), is_daemon=False)
            self._bell = descriptors[1]

    def pump(self, data: bytes, *, takes: bool = True) -> None:
        """Send as much as there is room for, and discard the answers."""
        if self.end is not None:
            while self.end.put(data):
                pass
            while takes and self.end.take() is not None:
                pass
            self.end.fence()
            if self.end.other_waits():
                self.ring()

    def ring(self) -> None:
        """Write the bell, whether the daemon waits or not."""
        if self.end is not None:
            os.eventfd_write(self._bell, 1)


def _rings(foe: Foe, count: int) -> list[_Ring]:
    made = [_Ring(foe) for _ in range(count)]
    foe.kept.append(made)
    return made


def _broadcasts(foe: Foe) -> Act:
    foe.make(VM, VCPUS, broadcast=True)
    foe.ports(200, vcpus=range(VCPUS))
    rings, data = _rings(foe, 4), records("signal_msi", 4, address=BROADCAST, value=NMI)

    def act() -> None:
        for ring in rings:
            ring.pump(data)

    return act


def _many(foe: Foe, *, takes: bool) -> Act:
    """All available rings. Their clients always report that they wait, and always ring."""
    foe.make(VM, VCPUS)
    rings, data = _rings(foe, 250), records("pio_read", 4, 1, 0, 0x21)

    def act() -> None:
        for ring in rings:
            if ring.end is not None:
                ring.end.wait(WAITS)
            ring.pump(data, takes=takes)
            ring.ring()

    return act


ATTACKS = (
    Attack(2, "MSI broadcasts to 255 vCPUs by rings, 200 Sessions, 4 clients", _broadcasts),
    Attack(2, "250 rings that are always full, whose clients always wait", lambda foe: _many(foe, takes=True)),
    Attack(2, "250 rings that are full, and no client takes answers", lambda foe: _many(foe, takes=False)),
)

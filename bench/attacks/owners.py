"""Row 13: region owners that answer late or never."""

from __future__ import annotations

import socket
import threading
import time

from bench.attacks.common import PATIENCE, VM, Act, Attack, Foe, batch
from irqchip.port import MESSAGE_BYTES
from irqchip.v1 import irqchip_pb2 as pb

PORT = 0x500
LATE = 1.8  # seconds; the limit is 2
REGISTER = batch(
    pb.Operation(register_region=pb.RegisterRegionRequest(space=pb.ADDRESS_SPACE_PIO, address=PORT, length=1))
)


def _own(foe: Foe, late: float | None) -> None:
    """Own a region; answer each access after `late` seconds, or never. Register a region that was lost again."""
    owner = foe.port()
    owner.settimeout(None)
    owner.send(REGISTER)

    def work(owner: socket.socket) -> None:
        while data := owner.recv(MESSAGE_BYTES + 1):
            event = pb.SessionResponse.FromString(data).event
            if event.HasField("regions_lost"):
                owner.send(REGISTER)
            elif event.HasField("region_access") and late is not None:
                time.sleep(late)
                complete = pb.CompleteAccessRequest(access=event.region_access.access)
                owner.send(batch(pb.Operation(complete_access=complete)))

    threading.Thread(target=work, args=(owner,), daemon=True).start()


def _waiting(foe: Foe, late: float | None, vcpus: int) -> Act:
    """vCPUs that read the region. Returns how long the slowest read waits."""
    foe.make(VM, vcpus)
    _own(foe, late)

    def act() -> float:
        begun = time.monotonic()
        requests = [pb.PioReadRequest(vm=VM, vcpu=vcpu, port=PORT, size=1) for vcpu in range(vcpus)]
        calls = [foe.rpcs.PioRead.future(request, timeout=PATIENCE) for request in requests]
        longest = 0.0
        for call in calls:
            call.result()
            longest = time.monotonic() - begun
        return longest

    return act


def _in_circles(foe: Foe) -> Act:
    """Owners that access each other's regions."""
    foe.make(VM, 2)
    here, there = foe.ports(2)
    for owner, port in ((here, 0x500), (there, 0x600)):
        region = pb.RegisterRegionRequest(space=pb.ADDRESS_SPACE_PIO, address=port, length=1)
        owner.send(batch(pb.Operation(register_region=region)))
        owner.recv(MESSAGE_BYTES + 1)

    def act() -> None:
        for vcpu, (owner, port) in enumerate(((here, 0x600), (there, 0x500))):
            owner.send(batch(pb.Operation(pio_read=pb.PioReadRequest(vcpu=vcpu, port=port, size=1))))
        for owner in (here, there):
            while pb.SessionResponse.FromString(owner.recv(MESSAGE_BYTES + 1)).WhichOneof("message") == "event":
                pass

    return act


ATTACKS = (
    Attack(13, "an owner that answers after 1.8 s; 8 vCPUs wait", lambda foe: _waiting(foe, LATE, 8)),
    Attack(13, "an owner that never answers, and claims again; 8 vCPUs", lambda foe: _waiting(foe, None, 8)),
    Attack(13, "owners that access each other's regions", _in_circles),
)

"""A client dies, or its VM is deleted, in any state of the client's connection to the port."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchipd.vm.clock import Deadlines
from irqchipd.vm.regions import Space
from irqchipd.vm.x86.machine import X86Vm
from tests.builds import COMPILED, WHY, exists
from tests.service.inprocess import Served, served
from tests.service.test_port import HALT, PIO_READ, Peer
from tests.threads import switch_interval
from tests.vm.test_backlog import do_all
from tests.waiting import eventually

PORT = 0x300
READ_PIC = pb.Operation(pio_read=pb.PioReadRequest(port=0x21, size=1))
READ_LAPIC = pb.Operation(get_lapic=pb.GetLapicRequest(vcpu=0))
READ_REGION = pb.Operation(pio_read=pb.PioReadRequest(vcpu=0, port=PORT, size=1))
NMI = pb.Operation(nmi=pb.NmiRequest(vcpu=0))


class Scene:
    """A VM with a client whose Session is in some state."""

    def __init__(self, here: Served, patch: pytest.MonkeyPatch) -> None:
        self.here = here
        self.patch = patch
        self.vm: X86Vm | None = here.vm()
        self.peer: Peer = here.peer(vm="vm", vcpus=[0])
        self.later = Deadlines()

    def has_no_client(self) -> bool:
        """Whether the port has no connection any more, after all pending events have been sent."""
        do_all(self.later)
        return self.here.connections == 0

    def serves(self) -> None:
        """Check that nothing is left of the client, and that another client's Session works."""
        eventually(self.has_no_client)
        assert self.here.quota._used == 0
        self.here.vm("other")
        with closing(self.here.peer(vm="other")) as other:
            other.send_records(1, (PIO_READ, 1, 0, 0x21, 0))
            assert other.receive_results(1)[0] == 1
        eventually(self.has_no_client)
        eventually(lambda: self.here.in_use._held == 0)

    # States.

    def is_idle(self) -> None:
        self.peer.run(NMI)

    def has_work_in_slices(self) -> None:
        self.patch.setattr("irqchipd.edge.batch.SLICE_NS", 0)
        batches = [pb.Batch(serial=serial, operations=[READ_PIC] * 2500) for serial in range(10)]
        packets = [pb.SessionRequest(batch=batch).SerializeToString() for batch in batches]
        for packet in packets:
            self.peer.socket.send(packet)
        eventually(lambda: any(not connection._is_idle for connection in self.here.port._connections))

    def waits_for_an_access(self) -> None:
        assert self.vm is not None
        accesses: list[object] = []
        self.vm.register_region(self.vm.open_source("owner"), Space.PIO, PORT, 1, accesses.append)
        self.peer.submit(1, *[READ_REGION] * 3, NMI)
        eventually(lambda: len(accesses) == 3)

    def waits_for_a_backlog(self) -> None:
        if COMPILED:
            pytest.skip(WHY)
        assert self.vm is not None
        self.vm.agenda.deadlines = self.later
        self.patch.setattr("irqchipd.vm.agenda.TURN_NOTIFICATIONS", 1)
        self.vm.subscribe([0], lambda _: None)
        self.peer.submit(1, NMI, NMI, NMI)
        eventually(lambda: self.later.alarms.earliest() is not None)

    def halts(self) -> None:
        assert self.vm is not None
        self.peer.send_records(1, (HALT, 1, 0, 0, 0))
        cpu = self.vm._cpus[0]
        eventually(lambda: cpu.halt is not None)

    def does_not_read(self) -> None:
        self.peer.socket.settimeout(0.2)
        with suppress(TimeoutError):
            for _ in range(1000):
                self.peer.submit(1, *[READ_LAPIC] * 40)
        eventually(lambda: any(connection._unsent for connection in self.here.port._connections))

    def has_sent_descriptors(self) -> None:
        self.peer.send(descriptors=pb.DescriptorsFollow())
        pipe = os.pipe()
        batch = pb.SessionRequest(batch=pb.Batch(serial=1, operations=[READ_LAPIC] * 100))
        socket.send_fds(self.peer.socket, [batch.SerializeToString()], pipe)
        for end in pipe:
            os.close(end)


every_state = pytest.mark.parametrize(
    "state",
    [
        Scene.is_idle,
        Scene.has_work_in_slices,
        Scene.waits_for_an_access,
        Scene.waits_for_a_backlog,
        Scene.halts,
        Scene.does_not_read,
        Scene.has_sent_descriptors,
    ],
)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    # This thread has to see the port's thread in the middle of its work.
    with switch_interval(1e-4), served(tmp_path, access_ns=200_000_000) as here:
        yield Scene(here, monkeypatch)


@every_state
def test_a_client_dies(scene: Scene, state: Callable[[Scene], None], caplog: pytest.LogCaptureFixture) -> None:
    state(scene)
    scene.peer.close()
    scene.serves()
    assert scene.vm is not None
    assert "" not in [source.client for source in scene.vm.describe().sources]
    assert scene.vm._cpus[0].halt is None
    assert not caplog.get_records("call"), caplog.text


@every_state
def test_its_vm_is_deleted(scene: Scene, state: Callable[[Scene], None], caplog: pytest.LogCaptureFixture) -> None:
    state(scene)
    assert scene.vm is not None
    vm, scene.vm = id(scene.vm), None
    scene.here.registry.delete("vm")
    scene.serves()
    scene.peer.close()
    assert not caplog.get_records("call"), caplog.text
    gc.collect()
    assert not exists(X86Vm, vm)

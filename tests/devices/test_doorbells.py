"""Doorbells and the guest's memory of devices: in a process of their own, by eventfds and by events, and in a VMM's."""

from __future__ import annotations

import gc
import os
import threading
import time
from contextlib import ExitStack

import pytest

from irqchip_client import Claim, InvalidArgument, IrqchipError, NotFound, RegionsLost, Space, Vm
from irqchip_client.devices import Device, LocalHost, RemoteHost
from irqchip_client.devices.ram import NOTES, MappedRam
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.run import shared_memory
from tests.devices.test_hosts import remote
from tests.waiting import PATIENCE, eventually

BASE = 0xD000_0000


class Bells(Device):
    """Two doorbells at one address."""

    def __init__(self) -> None:
        super().__init__("bells")
        self.rung = [0, 0]
        self.mmio(BASE, 16, lambda offset, size: sum(self.rung), lambda offset, value, size: None)  # noqa: ARG005
        for value in (0, 1):
            self.doorbell(BASE + 16, 4, value, lambda value=value: self.ring(value))  # type: ignore[misc]

    def ring(self, value: int) -> None:
        self.rung[value] += 1


@pytest.fixture(params=["port", "gRPC"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    monkeypatch.setenv("IRQCHIP_PORT", "off" if name == "gRPC" else "")
    return name


@pytest.mark.usefixtures("transport")
def test_a_doorbell_notifies_by_its_value(vm: Vm) -> None:
    bells = Bells()
    cpu = vm.vcpu(0)
    with remote(vm, bells):
        assert cpu.mmio_write(BASE + 16, 1, 4)
        eventually(lambda: bells.rung == [0, 1])
        assert cpu.mmio_write(BASE + 16, 0, 4)
        eventually(lambda: bells.rung == [1, 1])
        assert cpu.mmio_read(BASE, 4).data == 2
        assert not cpu.mmio_write(BASE + 16, 2, 4)
        assert not cpu.mmio_write(BASE + 16, 0, 2)
    assert not cpu.mmio_write(BASE + 16, 0, 4), "the doorbells are gone with the device"


def test_no_vcpu_waits_for_a_doorbell(vm: Vm) -> None:
    busy, go_on = threading.Event(), threading.Event()

    class Slow(Bells):
        def ring(self, value: int) -> None:
            super().ring(value)
            busy.set()
            go_on.wait(PATIENCE)

    bells = Slow()
    with remote(vm, bells):
        for _ in range(3):
            assert vm.vcpu(0).mmio_write(BASE + 16, 0, 4) is Claim.DEVICE
            busy.wait(PATIENCE)
        go_on.set()
        eventually(lambda: bells.rung[0] == 2)  # writes while the device is busy ring once
        time.sleep(0.02)
        assert bells.rung == [2, 0]


def test_a_vcpus_accesses_keep_their_order(vm: Vm) -> None:
    """A doorbell's eventfd and an access reach the device in different ways."""
    order: list[str] = []

    class Ordered(Bells):
        def __init__(self) -> None:
            super().__init__()
            self.mmio(BASE + 0x100, 4, lambda offset, size: 0, lambda offset, value, size: order.append("written"))  # noqa: ARG005

        def ring(self, value: int) -> None:  # noqa: ARG002
            order.append("rung")

    with remote(vm, Ordered()), vm.session() as session:
        for _ in range(50):
            session.vcpu(0).mmio_write(BASE + 16, 0, 4)
            session.vcpu(0).mmio_write(BASE + 0x100, 0, 4)
    assert order == ["rung", "written"] * 50


def test_a_vmm_rings_without_a_message(vm: Vm) -> None:
    bells = Bells()
    with vm.session() as session:
        host = LocalHost(session, [bells])
        host.start()
        assert host.mmio_write(BASE + 16, 1, 4)
        assert not host.mmio_write(BASE + 16, 2, 4)
        assert not host.mmio_write(BASE + 16, 1, 8)
        assert not host.pio_write(0x10, 1, 4)
        assert host.mmio_read(BASE + 16, 4) is None
        assert bells.rung == [0, 1]
        host.stop()


@pytest.mark.usefixtures("transport")
def test_lost_doorbells_are_claimed_again_and_ring_once(vm: Vm) -> None:
    bells = Bells()
    with vm.session("bells") as session:
        host = RemoteHost(session, [bells])
        host.start()
        for value in (0, 1):
            session.unregister_region(Space.MMIO, BASE + 16, value)
        session.unregister_region(Space.MMIO, BASE)
        assert not vm.vcpu(0).mmio_write(BASE + 16, 1, 4)
        host.serve_one(RegionsLost(Space.MMIO, BASE))
        assert bells.rung == [1, 1], "writes may have been lost in between"
        assert vm.vcpu(0).mmio_write(BASE + 16, 1, 4)
        host.stop()


def test_an_exception_names_the_doorbell(vm: Vm) -> None:
    class Broken(Bells):
        def ring(self, value: int) -> None:
            raise ZeroDivisionError(value)

    with remote(vm, Broken()) as ends:
        assert vm.vcpu(0).mmio_write(BASE + 16, 0, 4)
        eventually(lambda: ends)
    assert isinstance(ends[0], ZeroDivisionError)
    assert ends[0].__notes__ == ["Broken failed in the doorbell at 0xd0000010"]


def test_a_host_leaves_no_eventfd(vm: Vm) -> None:
    def run_and_count() -> int:
        for _ in range(3):
            with remote(vm, Bells()):
                pass
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = run_and_count()
    eventually(lambda: run_and_count() <= before)  # threads close some in a while


@pytest.mark.parametrize(("start", "length", "value"), [(-1, 4, 0), (0, 3, 0), (0, 4, 1 << 32), (0, 4, -1)])
def test_impossible_doorbells_are_refused(start: int, length: int, value: int) -> None:
    with pytest.raises(InvalidArgument):
        Device("bad").doorbell(start, length, value, print)


# The guest's memory.


class Dma(Device):
    """Writes into the guest's memory when it is started."""

    USES_MEMORY = True

    def started(self) -> None:
        ram = self.host.memory()
        ram.write(0x2000, b"hello")
        ram.view(0x2005, 1)[:] = b"!"
        ram.flush(0x2005, 1)


def test_a_device_of_another_process_reads_and_writes_the_guests_memory(vm: Vm) -> None:
    with GuestMemory.shareable(0x4000, start=0x1000, notes=2) as memory, shared_memory(vm, memory):
        with remote(vm, Dma("dma")):
            assert memory.read(0x2000, 6) == b"hello!"
        with vm.session() as session:
            ram = MappedRam([session.guest_memory()])
        assert ram.read(0x1000, 0x4000) == memory.read(0x1000, 0x4000)
        for address, length in ((0xFFF, 1), (0x4FFF, 2), (0x5000, 1), (0x1000, -1), (1 << 64, 1)):
            with pytest.raises(InvalidArgument):
                ram.read(address, length)
        notes = ram.notes(1)
        assert notes is not None
        notes[:4] = b"note"
        assert (memory.notes(1) or b"")[:4] == b"note"
        assert len(notes) == NOTES
        assert ram.notes(2) is None
        memory.erase_notes()
        assert not any(notes)


def test_memory_of_several_parts_is_one(vm: Vm) -> None:
    with ExitStack() as stack:
        session = stack.enter_context(vm.session())
        for start in (0, 0x1_0000_0000):
            memory = stack.enter_context(GuestMemory.shareable(0x2000, start=start))
            session.share_memory(memory.memfd, start, 0x2000)
            memory.write(start, b"%x" % start)
        low = session.guest_memory()
        ram = MappedRam([low, session.guest_memory(0x2000)])
        assert ram.read(0x1_0000_0000, 9) == b"100000000"
        with pytest.raises(InvalidArgument):
            ram.read(0x1FFF, 2)


def test_a_vmm_gives_its_devices_its_memory(vm: Vm) -> None:
    with GuestMemory(0x4000) as memory, vm.session() as session:
        host = LocalHost(session, [Dma("dma")], memory=memory)
        host.start()
        assert memory.read(0x2000, 6) == b"hello!"
        assert memory.notes(0) is None
        host.stop()


def test_a_device_that_needs_memory_does_not_run_without(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    with vm.session() as session:
        with pytest.raises(NotFound):
            RemoteHost(session, [Dma("dma")]).start()
        with pytest.raises(NotFound):
            LocalHost(session, [Dma("dma")]).start()
    assert not vm.info().sessions
    monkeypatch.setenv("IRQCHIP_PORT", "off")
    with vm.session() as session, pytest.raises(IrqchipError, match="EOPNOTSUPP"):
        RemoteHost(session, [Dma("dma")]).start()

"""Hosts: a device's turns, timers, descriptors and lines, in a process of its own and inside a VMM."""

from __future__ import annotations

import errno
import gc
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

from irqchip_client import Access, Busy, Claim, Client, InvalidArgument, NotReady, Session, SessionClosed, Vm
from irqchip_client.arm64 import spi
from irqchip_client.devices import Device, LocalHost, RemoteHost
from irqchip_client.devices import host as hosts
from irqchip_client.devices.failures import describe_failure
from irqchip_client.devices.process import describe
from irqchip_client.devices.saving import Fields, Number
from irqchip_client.vmm.run import local_devices
from tests.waiting import eventually

IOAPIC, LAPIC, EOI = 0xFEC0_0000, 0xFEE0_0000, 0xFEE0_00B0
VECTOR = 0x48


class Toy(Device):
    """A register whose writes drive the line. Reading port 1 raises an exception."""

    STATE: ClassVar[Fields] = {"value": Number(0, (1 << 64) - 1)}

    def __init__(self, gsi: int = 8, *, retries: bool = False) -> None:
        super().__init__("toy")
        self.value = 0
        self.interrupt = self.line(gsi, retries=retries)
        self.expiries: list[float] = []
        self.alarm = self.timer(lambda: self.expiries.append(self.host.now()))
        self.pio(0x300, 2, self.read, self.write)
        self.mmio(0xD000_0000, 16, self.read, self.write)

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002
        if offset == 1:
            raise ZeroDivisionError
        return self.value

    def reset(self) -> None:
        self.value = 0
        self.interrupt.set(False)

    def write(self, offset: int, value: int, size: int) -> None:  # noqa: ARG002
        self.value = value
        self.interrupt.set(value & 1 == 1)


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    """A VM whose GSI 8 is pin 8 of the IOAPIC, edge-triggered to vCPU 0."""
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    cpu = vm.create_vcpu(0)
    cpu.mmio_write(LAPIC + 0xF0, 0x1FF)
    for port in (0x21, 0xA1):
        cpu.pio_write(port, 0xFF)
    for register, value in ((0x10 + 2 * 8 + 1, 0), (0x10 + 2 * 8, VECTOR)):
        cpu.mmio_write(IOAPIC, register)
        cpu.mmio_write(IOAPIC + 0x10, value)
    return vm


@contextmanager
def remote(vm: Vm, device: Device) -> Iterator[list[BaseException]]:
    """Run a device; gives the exceptions that ended it."""
    ends: list[BaseException] = []
    with vm.session(device.name) as session:
        host = RemoteHost(session, [device])
        host.start()

        def serve() -> None:
            try:
                host.serve()
            except Exception as error:
                ends.append(error)
                session.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield ends
        finally:
            session.close()
            thread.join()
            host.stop()


@contextmanager
def local(vm: Vm, device: Device) -> Iterator[LocalHost]:
    with vm.session(device.name) as session:
        host = LocalHost(session, [device])
        host.start()
        try:
            yield host
        finally:
            host.stop()


def test_accesses_reach_the_model_and_its_lines_reach_the_vm(vm: Vm) -> None:
    with remote(vm, Toy()):
        cpu = vm.vcpu(0)
        assert cpu.pio_write(0x300, 0x41)
        assert cpu.acknowledge() is not None, "the line rose before the access was done"
        assert cpu.pio_read(0x300) == Access(True, 0x41)
        assert cpu.mmio_write(0xD000_0008, 1 << 40, 8)
        assert cpu.mmio_read(0xD000_0000, 8) == Access(True, 1 << 40)


@pytest.mark.parametrize("port", ["on", "off"])
def test_an_exception_ends_the_device_and_its_access_is_unanswered(
    vm: Vm, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IRQCHIP_PORT", port) if port == "off" else monkeypatch.delenv("IRQCHIP_PORT", raising=False)
    with remote(vm, Toy()) as ends:
        assert vm.vcpu(0).pio_read(0x301) == Access(True, 0xFF, unanswered=True)
        eventually(lambda: ends)
        assert isinstance(ends[0], ZeroDivisionError)
        assert ends[0].__notes__ == ["Toy failed in a read of 1 byte at port 0x301"]
        eventually(lambda: not vm.info().sessions)


@pytest.mark.parametrize("answer", [None, "1", 1.5])
def test_a_read_without_a_number_is_unanswered(vm: Vm, answer: Any) -> None:
    class Mute(Toy):
        def read(self, offset: int, size: int) -> int:  # noqa: ARG002
            return answer  # type: ignore[no-any-return]

    with remote(vm, Mute()) as ends:
        assert vm.vcpu(0).mmio_read(0xD000_0008, 8) == Access(True, (1 << 64) - 1, unanswered=True)
        eventually(lambda: ends)
    assert str(ends[0]) == f"read(offset=0x8, size=8) returned {answer!r}, not a number for the guest to read"
    with local(vm, Mute()) as host, pytest.raises(TypeError, match=r"read\(offset=0x8") as raised:
        host.mmio_read(0xD000_0008, 4)
    assert raised.value.__notes__ == ["Mute failed in a read of 4 bytes at address 0xd0000008"]


def test_a_write_that_raises_is_unanswered_too(vm: Vm) -> None:
    class Deaf(Toy):
        def write(self, offset: int, value: int, size: int) -> None:
            raise OSError(offset, f"no {value} of {size}")

    with remote(vm, Deaf()) as ends:
        assert vm.vcpu(0).pio_write(0x300, 5) is Claim.UNANSWERED
        eventually(lambda: ends)
    assert isinstance(ends[0], OSError)
    failure = describe_failure(ends[0])
    assert failure is not None
    first, *frames, last = failure.splitlines()
    assert first == "Deaf failed in a write of 0x5 to 1 byte at port 0x300:"
    assert last == "OSError: [Errno 0] no 5 of 1"
    assert ["test_hosts.py" in line for line in frames if "File" in line] == [True], "its own frames alone"


def test_an_exception_of_the_host_is_not_attributed_to_the_device() -> None:
    assert describe_failure(ValueError("no")) is None


def test_a_device_is_reset_with_its_vm(vm: Vm) -> None:
    toy = Toy(gsi=9)
    with remote(vm, toy):
        cpu = vm.vcpu(0)
        cpu.pio_write(0x300, 0x41)
        assert [session.asserted_gsis for session in vm.info().sessions] == [(9,)]
        vm.reset()
        assert cpu.pio_read(0x300) == Access(True, 0), "before the guest that has begun anew accesses it"
        assert [session.asserted_gsis for session in vm.info().sessions] == [()]


def test_devices_of_this_process_are_reset_with_their_vm(vm: Vm) -> None:
    toy = Toy(gsi=9)
    with local_devices(vm, [toy]) as host:
        host.pio_write(0x300, 0x41, 1)
        vm.reset()
        eventually(lambda: host.pio_read(0x300, 1) == 0)
        assert all(session.asserted_gsis == () for session in vm.info().sessions)
        host.pio_write(0x300, 0x41, 1)
        host.reset()  # a VMM may reset the host directly
        assert host.pio_read(0x300, 1) == 0


def test_an_exception_in_reset_reaches_the_hosts_owner(vm: Vm) -> None:
    class Failing(Toy):
        def reset(self) -> None:
            raise ZeroDivisionError

    failures: list[int] = []
    with local_devices(vm, [Failing()]) as host:
        host.on_failure = lambda: failures.append(1)
        with remote(vm, Failing()) as ends:
            vm.reset()
            eventually(lambda: ends and failures)
    for error in (ends[0], host.failure):
        assert isinstance(error, ZeroDivisionError)
        assert error.__notes__ == ["Failing failed in reset()"]


def test_devices_go_on_in_a_vm_that_has_moved(irqchip_client: Client, vm: Vm) -> None:
    """The line is high, and some of the timer has passed; the guest does not notice the move."""
    saved: Any = None
    for seconds in (0.3, 3.0, 30.0):  # a busy machine may take longer than the timer
        toy = Toy(gsi=9)
        with remote(vm, toy):
            vm.vcpu(0).pio_write(0x300, 0x41)
            with toy.host.turn():  # type: ignore[attr-defined]
                toy.alarm.start(seconds)
            snapshot = vm.snapshot()
            saved = json.loads(json.dumps(toy.host.save()))  # type: ignore[attr-defined]
        if not toy.expiries:
            break
    moved = irqchip_client.restore_vm(snapshot)
    again = Toy(gsi=9)
    with moved.session("toy", resume=True) as session:
        host = RemoteHost(session, [again])
        host.restore(saved)
        host.start()
        assert again.value == 0x41
        assert again.alarm.due is not None
        assert [each.asserted_gsis for each in moved.info().sessions] == [(9,)]
        eventually(lambda: again.expiries)
        host.stop()


def test_states_of_other_devices_are_refused_and_none_is_restored(vm: Vm) -> None:
    class Other(Toy):
        pass

    one, other = Toy(), Other()
    with vm.session() as session:
        host = LocalHost(session, [one, other])
        host.start()
        saved = host.save()
        saved[0]["state"]["value"] = 5
        hostile: Any
        for hostile in (saved[:1], [*saved, saved[0]], [saved[0], saved[0]], {}, None):
            with pytest.raises(InvalidArgument):
                host.restore(hostile)
        assert one.value == 0
        host.restore(saved)
        assert one.value == 5
        host.stop()


def test_an_exception_in_a_timer_ends_the_device_too(vm: Vm) -> None:
    class Failing(Toy):
        def started(self) -> None:
            self.timer(self.fail).start(0.01)

        def fail(self) -> None:
            raise ZeroDivisionError

    with remote(vm, Failing()) as ends:
        eventually(lambda: ends)
    assert isinstance(ends[0], ZeroDivisionError)


def test_timers_expire_once_in_order_and_can_be_stopped_and_restarted(vm: Vm) -> None:
    toy = Toy()
    order: list[int] = []
    timers = [toy.timer(lambda number=number: order.append(number)) for number in range(4)]  # type: ignore[misc]
    with remote(vm, toy):
        with toy.host.turn():  # type: ignore[attr-defined]
            began = toy.host.now()
            toy.alarm.start(0.03)
            for number in (2, 0, 3, 1):
                timers[number].start(0.01 * (number + 1))
            timers[3].stop()
            due = [timer.due or 0 for timer in timers[:3]]  # a busy machine may take its time between the starts
        eventually(lambda: toy.expiries and len(order) == 3)
        assert order == sorted(range(3), key=due.__getitem__)
        assert toy.expiries[0] - began >= 0.03
        toy.alarm.start(10)
        toy.alarm.start(0.001)
        eventually(lambda: len(toy.expiries) == 2)


def test_a_descriptor_is_watched_until_watching_stops(vm: Vm) -> None:
    read, write = os.pipe()
    seen: list[bytes] = []

    class Reading(Toy):
        def started(self) -> None:
            self.host.watch(read, self.ready)

        def ready(self) -> None:
            seen.append(os.read(read, 1))
            if seen[-1] == b"!":
                self.host.watch(read, None)

    with remote(vm, Reading()):
        os.write(write, b"a!b")
        eventually(lambda: len(seen) == 2)
        time.sleep(0.02)
    assert seen == [b"a", b"!"]
    os.close(read)
    os.close(write)


def test_devices_of_this_process_need_no_region(vm: Vm) -> None:
    with local(vm, Toy()) as host:
        assert host.pio_write(0x300, 0x41, 1)
        assert vm.vcpu(0).acknowledge() is not None
        assert host.pio_read(0x300, 1) == 0x41
        assert host.mmio_read(0xD000_0000, 4) == 0x41
        assert host.pio_read(0x2FF, 1) is None
        assert host.pio_read(0x301, 2) is None, "the access exceeds its region"
        assert not host.mmio_write(0xD000_0010, 1, 4)
        assert not any(session.regions for session in vm.info().sessions)


def test_a_line_that_retries_repeats_a_coalesced_edge(vm: Vm) -> None:
    """GSI 8's edges are dropped until the last one is ended. KVM: ioapic.c rtc_irq_check_coalesced."""
    cpu = vm.vcpu(0)
    for run in (remote, local):
        toy = Toy(retries=True)
        with run(vm, toy):
            with toy.host.turn():  # type: ignore[attr-defined]
                toy.interrupt.pulse()
            eventually(cpu.acknowledge)
            with toy.host.turn():  # type: ignore[attr-defined]
                toy.interrupt.set(True)  # the guest has not ended the first interrupt
            time.sleep(0.01)
            assert cpu.acknowledge() is None
            cpu.mmio_write(EOI, 0)
            eventually(cpu.acknowledge)
            cpu.mmio_write(EOI, 0)
            time.sleep(0.01)
            assert cpu.acknowledge() is None, "once is enough"


def test_a_host_leaves_no_descriptor(vm: Vm) -> None:
    def run_and_count() -> int:
        for _ in range(3):
            with vm.session("toy") as session:
                host = LocalHost(session, [Toy()])
                host.start()
                host.stop()
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = run_and_count()
    eventually(lambda: run_and_count() <= before)  # threads close some in a while


def test_a_device_with_lines_needs_an_irqchip(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm()
    with vm.session() as session, pytest.raises(NotReady):
        RemoteHost(session, [Toy()]).start()


def test_the_end_of_the_vm_ends_the_device(vm: Vm) -> None:
    with remote(vm, Toy()) as ends:
        vm.delete()
        eventually(lambda: ends)
    assert isinstance(ends[0], SessionClosed)


def test_a_devices_ports_and_lines_are_described() -> None:
    assert describe(Toy()) == "PIO 0x300-0x301, MMIO 0xd0000000-0xd000000f, GSI 8"
    assert describe(Toy(spi(2))).endswith(", spi:2")


def test_a_host_claims_lost_regions_again(vm: Vm) -> None:
    """The daemon's limit takes too long, so the test sends RegionsLost itself."""
    from irqchip_client import RegionsLost, Space

    toy = Toy()
    session: Session
    with vm.session("toy") as session:
        host = RemoteHost(session, [toy])
        host.start()
        session.unregister_region(Space.PIO, 0x300)
        session.unregister_region(Space.MMIO, 0xD000_0000)
        host.serve_one(RegionsLost(Space.PIO, 0x300))
        assert len(vm.info().sessions[0].regions) == 2
        host.stop()


def test_regions_that_cannot_be_claimed_yet_are_claimed_later(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    from irqchip_client import RegionsLost, Space

    monkeypatch.setattr(hosts, "RECLAIM", 0.02)
    with vm.session("toy") as session:
        host = RemoteHost(session, [Toy()])
        host.start()
        for space, address in ((Space.PIO, 0x300), (Space.MMIO, 0xD000_0000)):
            session.unregister_region(space, address)
        register = session.register_region
        refusals: list[int] = []

        def refuse_twice(space: Space, address: int, length: int) -> None:
            if space is Space.PIO and len(refusals) < 2:
                refusals.append(address)
                raise Busy(errno.EBUSY, "not now")
            register(space, address, length)

        monkeypatch.setattr(session, "register_region", refuse_twice)
        host.serve_one(RegionsLost(Space.PIO, 0x300))
        assert [region.space for region in vm.info().sessions[0].regions] == [Space.MMIO]
        eventually(lambda: len(vm.info().sessions[0].regions) == 2)
        assert refusals == [0x300, 0x300]
        host.stop()


def test_a_line_without_a_route_causes_a_warning(vm: Vm, caplog: pytest.LogCaptureFixture) -> None:
    """KVM_IRQ_LINE_STATUS is -1 for a line without a route and for a masked pin; GSI 8 has a route."""
    for gsi in (8, 5000):
        with local(vm, Toy(gsi)):
            pass
    (warning,) = caplog.messages
    assert "toy: no route for GSI 5000, so its interrupts are lost: choose a GSI that `irqchipctl routes`" in warning

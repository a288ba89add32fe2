"""The SDK over rings: it uses them by itself, and a caller can't tell."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from irqchip.ring import SLOTS, WAITS_FOR_ROOM, End
from irqchip_client import (
    Client,
    Doorbell,
    Interrupt,
    InterruptPending,
    InterruptSource,
    RegionAccess,
    Session,
    SessionClosed,
    Space,
    TimedOut,
    Vm,
    ops,
)
from irqchip_client._daemon import start_daemon
from irqchip_client._sync.packets import PacketTransport
from irqchip_client._sync.ring import RingChannel
from tests.service.test_port import needs_rings
from tests.waiting import PATIENCE, eventually

pytestmark = needs_rings

LAPIC = 0xFEE0_0000
VECTOR = Interrupt(0x51, InterruptSource.LAPIC)


@pytest.fixture(autouse=True)
def polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRQCHIP_PORT", "")
    monkeypatch.setenv("IRQCHIP_RINGS", "")


@pytest.fixture
def vm(irqchip_client: Client) -> Vm:
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0).mmio_write(LAPIC + 0xF0, 0x1FF)
    return vm


@pytest.fixture
def session(vm: Vm) -> Iterator[Session]:
    with vm.session() as session:
        assert has_rings(session)
        yield session


def end_of(session: Session) -> End | None:
    """The client's end of the rings."""
    transport = session._transport
    if isinstance(transport, PacketTransport) and isinstance(transport._channel, RingChannel):
        return transport._channel._end
    return None


def has_rings(session: Session) -> bool:
    return end_of(session) is not None


@pytest.mark.parametrize(("variable", "value"), [("IRQCHIP_RINGS", "off"), ("IRQCHIP_PORT", "0")])
def test_a_session_that_may_not_poll_has_none(
    vm: Vm, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with vm.session() as session:
        assert (session.transport, has_rings(session)) == ("port", False)
        assert session.vcpu(0).pio_read(0x21).claimed


def test_a_processor_that_may_reorder_stores_has_none(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irqchip_client._target.OFFERED", False)
    with vm.session() as session:
        assert not has_rings(session)
        assert session.vcpu(0).pio_read(0x21).claimed


@pytest.mark.parametrize("flag", ["--max-rings", "--poll"])
def test_a_daemon_that_makes_none_is_used_over_its_socket(flag: str) -> None:
    with start_daemon(arguments=[flag, "0"]) as daemon, daemon.connect() as client:
        vm = client.create_vm()
        vm.create_irqchip()
        with vm.session() as session:
            assert (session.transport, has_rings(session)) == ("port", False)
            assert session.line(20).raise_() == -1


def test_batches_of_all_kinds_keep_their_order(session: Session) -> None:
    cpu = session.vcpu(0)
    futures = []
    for value in range(200):
        futures.append(session.submit([ops.pio_write(0, 0x21, value), ops.pio_read(0, 0x21)]))
        if value % 3 == 0:
            futures.append(session.submit([ops.irq_lines([(20, True)]), ops.pio_read(0, 0x21)]))  # a message
        if value % 7 == 0:
            futures.append(session.submit([ops.pio_read(0, 0x21)] * 100))  # longer than a slot
    read = [future.result(PATIENCE)[-1].data for future in futures]
    assert read == sorted(read)
    assert set(read) == set(range(200))
    assert cpu.pio_read(0x21).data == 199


def test_events_and_answers_come_together(vm: Vm) -> None:
    with vm.session(vcpus=[0]) as session:
        for _ in range(50):
            session.signal_msi(LAPIC, 0x51)
            assert session.vcpu(0).acknowledge() == VECTOR
            session.vcpu(0).mmio_write(LAPIC + 0xB0, 0)
            assert session.next_event(timeout=PATIENCE) == InterruptPending(0)


def test_a_halt_in_one_thread_is_ended_by_another(session: Session) -> None:
    cpu = session.vcpu(0)
    woken: list[object] = []
    for _ in range(20):
        halting = threading.Thread(target=lambda: woken.append(cpu.halt(timeout=PATIENCE)))
        halting.start()
        session.signal_msi(LAPIC, 0x51)
        halting.join(PATIENCE)
        cpu.mmio_write(LAPIC + 0xB0, 0)
    assert woken == [VECTOR] * 20


def test_threads_share_a_session(session: Session) -> None:
    counts = [0] * 4

    def read(number: int) -> None:
        for _ in range(500):
            assert session.vcpu(0).pio_read(0x21).claimed
            counts[number] += 1

    threads = [threading.Thread(target=read, args=(number,)) for number in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert counts == [500] * 4


def test_a_device_answers_a_vcpu(vm: Vm) -> None:
    with vm.session("device") as device, vm.session("vcpu") as cpu:
        device.register_region(Space.PIO, 0x300, 4)

        def serve() -> None:
            for number in range(50):
                access = device.next_event(timeout=PATIENCE)
                assert isinstance(access, RegionAccess)
                device.complete_access(access.access, number)

        serving = threading.Thread(target=serve)
        serving.start()
        assert [cpu.vcpu(0).pio_read(0x300).data for _ in range(50)] == list(range(50))
        serving.join()


def test_more_than_the_ring_holds_goes_out_without_answers_being_read(vm: Vm) -> None:
    with vm.session(max_in_flight=1000) as session:
        for value in range(500):
            session.post([ops.pio_write(0, 0x21, value % 256)])
        assert session.vcpu(0).pio_read(0x21).data == 499 % 256


def test_a_daemon_that_waits_for_room_hears_of_room_from_a_client_that_waits_for_room(vm: Vm) -> None:
    with vm.session(max_in_flight=1000) as session:
        end = end_of(session)
        assert end is not None
        posted = 0
        while end.has_room():
            session.post([ops.pio_write(0, 0x21, posted % 256)])
            posted += 1
            if not end.has_room():  # The daemon reads on, or the other ring is full too, and it waits.
                eventually(lambda: end.has_room() or end.other_waits() == WAITS_FOR_ROOM)
        begun = time.monotonic()
        session.post([ops.pio_write(0, 0x21, 0x5A)])
        assert session.vcpu(0).pio_read(0x21).data == 0x5A
        assert time.monotonic() - begun < 30  # the Client's timeout is 60 s


def test_a_daemon_that_waits_for_room_hears_of_room_from_a_client_that_only_looks(vm: Vm) -> None:
    with vm.session() as session, vm.session("other") as other:
        end = end_of(session)
        assert end is not None
        session.register_region(Space.PIO, 0x300, 1, doorbell=True)
        for value in range(SLOTS + 10):
            other.vcpu(0).pio_write(0x300, value)
        eventually(lambda: end.other_waits() == WAITS_FOR_ROOM)
        found: list[object] = []

        def look() -> bool:
            found.extend(session.take_events())
            return len(found) == SLOTS + 10

        eventually(look)
        assert [event.data for event in found if isinstance(event, Doorbell)] == list(range(SLOTS + 10))


def test_a_wait_has_its_time(session: Session) -> None:
    begun = time.monotonic()
    with pytest.raises(TimedOut):
        session.next_event(timeout=0.2)
    assert 0.2 <= time.monotonic() - begun < PATIENCE


def test_a_session_that_was_idle_goes_on(session: Session) -> None:
    for _ in range(3):
        time.sleep(0.1)  # both sides block
        assert session.vcpu(0).pio_read(0x21).claimed


def test_it_finds_that_the_vm_was_deleted(vm: Vm, session: Session) -> None:
    vm.delete()
    with pytest.raises(SessionClosed, match="deleted"):
        session.next_event(timeout=PATIENCE)


def test_it_finds_that_the_daemon_was_killed() -> None:
    with start_daemon() as daemon, daemon.connect() as client, client.create_vm().session() as session:
        assert has_rings(session)
        os.kill(daemon.pid, signal.SIGKILL)
        with pytest.raises(SessionClosed):
            session.next_event(timeout=PATIENCE)


def test_a_closed_session_gives_its_descriptors_back(vm: Vm) -> None:
    with vm.session():
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with vm.session() as session:
                assert has_rings(session)
        assert len(os.listdir("/proc/self/fd")) == before

"""The I/O bus between processes: devices that own ports and addresses, over both edges."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

import irqchip_client as irqchip
from irqchip_client import (
    Access,
    AlreadyExists,
    Busy,
    Claim,
    Doorbell,
    InvalidArgument,
    IrqchipError,
    NotFound,
    RegionAccess,
    RegionInfo,
    RegionsLost,
    Session,
    SessionClosed,
    Space,
    Vm,
    ops,
)
from irqchip_client._daemon import Daemon, start_daemon
from tests.waiting import PATIENCE, eventually

PIO, MMIO = Space.PIO, Space.MMIO
BASE = 0x3F8
PICS = [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1)]


@pytest.fixture
def vm(irqchip_client: irqchip.Client) -> Vm:
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    vm.create_vcpu(0)
    return vm


@pytest.fixture(params=["port", "grpc"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "grpc":
        monkeypatch.setenv("IRQCHIP_PORT", "off")
    return str(request.param)


@pytest.fixture
def vcpu(vm: Vm, transport: str) -> Iterator[Session]:
    with vm.session("vcpu") as session:
        assert session.transport == transport
        yield session


Answer = Callable[[Session, RegionAccess], None]


@contextmanager
def device(vm: Vm, answer: Answer, *regions: tuple[Space, int, int]) -> Iterator[Session]:
    """A device in a thread of its own, which answers accesses until its Session is closed."""
    with vm.session("device") as session:
        for region in regions or [(PIO, BASE, 8)]:
            session.register_region(*region)

        def work() -> None:
            try:
                while True:
                    event = session.next_event()
                    assert isinstance(event, RegionAccess)
                    answer(session, event)
            except SessionClosed:
                pass

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield session
        finally:
            session.close()
            thread.join()


def echo(session: Session, access: RegionAccess) -> None:
    """Answer a read with the address's low byte in every byte."""
    value = int.from_bytes(bytes([access.address & 0xFF]) * access.size, "little")
    assert session.complete_access(access.access, 0 if access.write else value)


def test_an_access_is_answered_by_its_regions_owner(vm: Vm, vcpu: Session) -> None:
    with device(vm, echo, (PIO, BASE, 8), (MMIO, 0xD000_0000, 0x1000)):
        for machine in (vcpu, vm):
            cpu = machine.vcpu(0)
            assert cpu.pio_read(BASE + 5) == Access(True, 0xFD)
            assert cpu.pio_read(BASE, 4) == Access(True, 0xF8F8F8F8)
            assert cpu.mmio_read(0xD000_0012, 8) == Access(True, 0x1212_1212_1212_1212)
            assert cpu.pio_write(BASE, 0x41) is Claim.DEVICE
            assert cpu.mmio_write(0xD000_0FF8, 1, 8) is Claim.DEVICE
            assert cpu.pio_read(BASE + 8) == Access(False, 0)


def test_a_write_has_its_data_and_address(vm: Vm, vcpu: Session) -> None:
    seen: list[RegionAccess] = []

    def keep(session: Session, access: RegionAccess) -> None:
        seen.append(access)
        session.complete_access(access.access)

    with device(vm, keep, (MMIO, 0xD000_0000, 16)):
        vcpu.vcpu(0).mmio_write(0xD000_0008, 0x1122_3344_5566_7788, 8)
    assert seen == [RegionAccess(seen[0].access, 0, MMIO, 0xD000_0008, 8, True, 0x1122_3344_5566_7788)]


def test_accesses_of_a_vcpu_stay_in_order_with_chips_devices_and_doorbells(vm: Vm, vcpu: Session) -> None:
    seen: list[object] = []
    with vm.session("device") as session:
        session.register_region(PIO, BASE, 8)
        session.register_region(PIO, 0xC000, 2, doorbell=True)
        batches = [
            [
                ops.pio_write(0, 0xC000, number, 2),
                ops.pio_write(0, BASE, number),
                ops.pio_read(0, BASE),
                ops.pio_write(0, 0x21, number),
                ops.pio_read(0, 0x21),
            ]
            for number in range(1, 40)
        ]
        answers = [vcpu.submit(batch) for batch in batches]
        while len(seen) < 3 * len(batches):
            event = session.next_event(PATIENCE)
            if isinstance(event, RegionAccess):
                time.sleep(0.0005)
                session.complete_access(event.access, 0 if event.write else len(seen) & 0xFF)
                seen.append(("write", event.data) if event.write else "read")
            elif isinstance(event, Doorbell):
                seen.append(("bell", event.data))
        for number, answer in enumerate(answers, 1):
            assert answer.result(PATIENCE)[1:] == [
                Claim.DEVICE,
                Access(True, (3 * number - 1) & 0xFF),
                Claim.DEVICE,
                Access(True, number),
            ]
    assert seen == [what for n in range(1, 40) for what in (("bell", n), ("write", n), "read")]


def test_others_are_served_while_an_access_waits(vm: Vm, vcpu: Session) -> None:
    with vm.session("device") as session:
        session.register_region(PIO, BASE, 8)
        waiting = vcpu.submit([ops.pio_read(0, BASE), ops.pio_read(0, 0x21)])
        event = session.next_event(PATIENCE)
        assert isinstance(event, RegionAccess)
        assert session.line(4).raise_() == 1
        with vm.session("another") as other:
            assert other.vcpu(0).pio_write(0x21, 0x5A)
        assert vm.vcpu(0).pio_read(0x21).data == 0x5A
        assert not waiting.done()
        session.complete_access(event.access, 7)
        assert waiting.result(PATIENCE) == [Access(True, 7), Access(True, 0x5A)]


def test_a_line_raised_before_the_answer_is_high_when_the_access_completes(vm: Vm, vcpu: Session) -> None:
    for port, value in PICS:
        vcpu.vcpu(0).pio_write(port, value)

    def answer(session: Session, access: RegionAccess) -> None:
        session.run([ops.irq_line(4, access.write), ops.complete_access(access.access)])

    with device(vm, answer):
        for _ in range(50):
            written, taken = vcpu.run([ops.pio_write(0, BASE, 1), ops.ack_interrupt(0)])
            assert written is Claim.DEVICE
            assert taken.vector == 0x24
            vcpu.run([ops.pio_read(0, BASE), ops.pio_write(0, 0x20, 0x20)])


def test_an_access_whose_owner_ends_reads_all_ones(vm: Vm, vcpu: Session) -> None:
    with vm.session("device") as session:
        session.register_region(PIO, BASE, 8)
        waiting = vcpu.submit([ops.pio_read(0, BASE, 2), ops.pio_read(0, BASE), ops.pio_write(0, BASE, 1)])
        session.next_event(PATIENCE)
    assert waiting.result(PATIENCE) == [Access(True, 0xFFFF, unanswered=True), Access(False, 0), Claim.NOBODY]


DEVICE = """
import sys
from irqchip_client import connect, Space
with connect(sys.argv[1]) as client, client.vm(sys.argv[2]).session("device") as session:
    session.register_region(Space.PIO, 0x3F8, 8)
    print("ready", flush=True)
    session.next_event()
    print("asked", flush=True)
    while True:
        session.next_event()
"""


def test_an_access_ends_when_its_device_is_killed(irqchip_server: Daemon, vm: Vm, vcpu: Session) -> None:
    arguments = [sys.executable, "-c", DEVICE, irqchip_server.target, vm.name]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        waiting = vcpu.submit([ops.pio_write(0, BASE, 1)])
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGKILL)
        assert waiting.result(PATIENCE) == [Claim.UNANSWERED]
    with device(vm, echo):  # the device is started again
        assert vcpu.vcpu(0).pio_read(BASE) == Access(True, 0xF8)


@pytest.fixture
def impatient() -> Iterator[Vm]:
    """A VM of a daemon that allows 50 ms for an answer."""
    with start_daemon(arguments=("--access-timeout", "50")) as daemon, daemon.connect() as client:
        vm = client.create_vm()
        vm.create_irqchip()
        vm.create_vcpu(0)
        yield vm


def test_an_owner_that_is_too_slow_is_notified_and_may_claim_again(impatient: Vm, transport: str) -> None:
    vm = impatient
    with vm.session("device") as session, vm.session("vcpu") as vcpu:
        assert vcpu.transport == transport
        session.register_region(PIO, BASE, 8)
        session.register_region(MMIO, 0xD000_0000, 8)
        assert vcpu.vcpu(0).pio_read(BASE) == Access(True, 0xFF, unanswered=True)
        assert vm.vcpu(0).pio_read(BASE) == Access(False, 0), "the regions are gone"
        event = session.next_event(PATIENCE)
        assert isinstance(event, RegionAccess)
        assert session.next_event(PATIENCE) == RegionsLost(PIO, BASE)
        assert not session.complete_access(event.access, 1), "too late"
        assert vm.info().sessions[0].regions == ()

        def is_in_time() -> bool:
            """Whether the owner answers in time, which it does not always on a busy machine."""
            try:
                session.register_region(PIO, BASE, 8)
            except Busy:  # for a while, after it was too slow again
                return False
            waiting = vcpu.submit([ops.pio_read(0, BASE)])
            while not isinstance(event := session.next_event(PATIENCE), RegionAccess):
                assert isinstance(event, RegionsLost)
            in_time = session.complete_access(event.access, 1)
            assert waiting.result(PATIENCE) == [Access(True, 1) if in_time else Access(True, 0xFF, unanswered=True)]
            return in_time

        eventually(is_in_time)


def test_each_vcpu_waits_no_longer_than_the_limit_however_many_wait(transport: str) -> None:
    # Not only the limit delays a busy machine's answers, but not in each of some attempts.
    assert any(seconds_for_eight_vcpus(transport, 0.2) < 8 * 0.9 * 0.2 for _ in range(5))


def seconds_for_eight_vcpus(transport: str, limit: float) -> float:
    """The owner answers each access after 90 % of the limit, which is too late for all accesses but the first."""
    with (
        start_daemon(arguments=("--access-timeout", str(int(1000 * limit)))) as daemon,
        daemon.connect() as client,
        ExitStack() as stack,
    ):
        vm = client.create_vm()
        vm.create_irqchip()
        owner = stack.enter_context(vm.session("device"))
        owner.register_region(PIO, BASE, 1)
        vcpus = []
        for number in range(8):
            vm.create_vcpu(number)
            vcpus.append(stack.enter_context(vm.session(f"vcpu {number}")))
        assert vcpus[0].transport == transport
        before = time.monotonic()
        waiting = [vcpu.submit([ops.pio_read(number, BASE)]) for number, vcpu in enumerate(vcpus)]
        event = owner.next_event(PATIENCE)
        assert isinstance(event, RegionAccess)
        time.sleep(0.9 * limit)
        owner.complete_access(event.access, 1)
        answers = [answer for reading in waiting for answer in reading.result(PATIENCE)]
        took = time.monotonic() - before
        assert answers.count(Access(True, 0xFF, unanswered=True)) >= 7
        return took


@pytest.mark.usefixtures("transport")
def test_an_owner_that_was_too_slow_twice_is_refused_for_a_while(impatient: Vm) -> None:
    vm = impatient
    with vm.session("device") as session, vm.session("another") as another:
        for _ in range(2):
            session.register_region(PIO, BASE, 8)
            assert vm.vcpu(0).pio_read(BASE) == Access(True, 0xFF, unanswered=True)
        for who in (session, another):
            with pytest.raises(Busy, match="did not answer in time"):
                who.register_region(PIO, BASE, 8)
        assert vm.vcpu(0).pio_read(BASE) == Access(False, 0)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                session.register_region(PIO, BASE, 8)
                break
            except Busy:
                assert time.monotonic() < deadline
                time.sleep(0.05)


@pytest.mark.usefixtures("transport")
def test_a_vcpu_that_dies_while_its_access_waits_leaves_nothing(vm: Vm) -> None:
    with vm.session("device") as session:
        session.register_region(PIO, BASE, 8)
        dying = vm.session("vcpu")
        dying.submit([ops.pio_write(0, BASE, 1), ops.pio_write(0, 0x21, 0x77)])
        event = session.next_event(PATIENCE)
        assert isinstance(event, RegionAccess)
        ending = threading.Thread(target=dying.close)
        ending.start()
        time.sleep(0.05)
        assert session.complete_access(event.access), "the answer is accepted, although its reader is gone"
        ending.join()
        eventually(lambda: len(vm.info().sessions) <= 1)
        with device(vm, echo, (PIO, 0x2F8, 8)):
            assert vm.vcpu(0).pio_read(0x2F8) == Access(True, 0xF8)


def test_a_halt_behind_an_access_begins_when_the_access_completes(vm: Vm, vcpu: Session) -> None:
    for port, value in PICS:
        vcpu.vcpu(0).pio_write(port, value)
    with vm.session("device") as session:
        session.register_region(PIO, BASE, 8)
        halted = vcpu.submit([ops.pio_write(0, BASE, 1), ops.halt(0, timeout=PATIENCE)])
        event = session.next_event(PATIENCE)
        assert isinstance(event, RegionAccess)
        session.run([ops.complete_access(event.access), ops.irq_line(4, True)])
        written, woken = halted.result(PATIENCE)
        assert (written, woken.vector) == (Claim.DEVICE, 0x24)


def test_a_doorbell_is_reported_and_equal_writes_are_counted(vm: Vm, vcpu: Session) -> None:
    with vm.session("device") as session:
        session.register_region(MMIO, 0xD000_0000, 8, doorbell=True)
        rings = [ops.mmio_write(0, 0xD000_0000, 1, 4)] * 10 + [ops.mmio_write(0, 0xD000_0004, 2, 4)]
        assert vcpu.run(rings) == [Claim.DEVICE] * 11
        assert vcpu.vcpu(0).mmio_read(0xD000_0000) == Access(False, 0)
        told: list[Doorbell] = []
        while sum(bell.count for bell in told) < 11:
            event = session.next_event(PATIENCE)
            assert isinstance(event, Doorbell)
            told.append(event)
        assert told[-1] == Doorbell(MMIO, 0xD000_0004, 4, 2)
        assert {(bell.address, bell.data) for bell in told[:-1]} == {(0xD000_0000, 1)}


def test_doorbells_share_an_address_by_their_values(vm: Vm, vcpu: Session) -> None:
    with vm.session("queue 0") as first, vm.session("queue 1") as second:
        first.register_region(PIO, 0xC010, 2, doorbell=True, datamatch=0)
        second.register_region(PIO, 0xC010, 2, doorbell=True, datamatch=1)
        assert vcpu.vcpu(0).pio_write(0xC010, 1, 2) is Claim.DEVICE
        assert second.next_event(PATIENCE) == Doorbell(PIO, 0xC010, 2, 1)
        assert vcpu.vcpu(0).pio_write(0xC010, 2, 2) is Claim.NOBODY
        with pytest.raises(AlreadyExists):
            second.register_region(PIO, 0xC010, 2, doorbell=True, datamatch=0)
        second.unregister_region(PIO, 0xC010, 1)
        with pytest.raises(NotFound, match="no doorbell of value 0x1"):
            second.unregister_region(PIO, 0xC010, 1)


def test_an_ioeventfd_is_written(vm: Vm) -> None:
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        with vm.session("device") as session:
            session.assign_ioeventfd(eventfd, PIO, 0xC010, 2, 5)
            assert vm.vcpu(0).pio_write(0xC010, 5, 2) is Claim.DEVICE
            assert vm.vcpu(0).pio_write(0xC010, 5, 2) is Claim.DEVICE
            assert vm.vcpu(0).pio_write(0xC010, 6, 2) is Claim.NOBODY
            assert os.eventfd_read(eventfd) == 2
            read, write = os.pipe()
            with pytest.raises(InvalidArgument, match="not an eventfd"):
                session.assign_ioeventfd(read, PIO, 0xC020, 2)
            os.close(read)
            os.close(write)
            session.unregister_region(PIO, 0xC010, 5)
            assert vm.vcpu(0).pio_write(0xC010, 5, 2) is Claim.NOBODY
        assert not select.select([eventfd], [], [], 0)[0]
    finally:
        os.close(eventfd)


def test_grpc_carries_no_ioeventfd(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRQCHIP_PORT", "off")
    with vm.session("device") as session, pytest.raises(IrqchipError) as caught:
        session.assign_ioeventfd(1, PIO, 0xC010, 2)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_a_session_cannot_access_its_own_region(vcpu: Session) -> None:
    vcpu.register_region(PIO, BASE, 8)
    with pytest.raises(IrqchipError, match="access it from another") as caught:
        vcpu.vcpu(0).pio_read(BASE)
    assert caught.value.errno == errno.EDEADLK


def test_deleting_the_vm_ends_waiting_accesses(vm: Vm, vcpu: Session) -> None:
    with vm.session("device") as session:
        session.register_region(PIO, BASE, 8)
        waiting = vcpu.submit([ops.pio_read(0, BASE)])
        session.next_event(PATIENCE)
        vm.delete()
        with pytest.raises(IrqchipError):
            waiting.result(PATIENCE)


def test_a_regions_events_have_the_form_of_its_registration(vm: Vm) -> None:
    """A doorbell with a value has no record, so it and its events are messages; other regions' are records."""
    with vm.session("device") as session, vm.session("vcpu") as vcpu:
        assert session.transport == "port"
        assert ops.register_region(PIO, 0xC000, 1, doorbell=True).record is not None
        assert ops.register_region(PIO, 0xC001, 1, doorbell=True, datamatch=3).record is None
        session.register_region(PIO, 0xC000, 1, doorbell=True)
        session.register_region(PIO, 0xC001, 1, doorbell=True, datamatch=3)
        vcpu.run([ops.pio_write(0, 0xC000, 3), ops.pio_write(0, 0xC001, 3)])
        assert session.next_event(PATIENCE) == Doorbell(PIO, 0xC000, 1, 3)
        assert session.next_event(PATIENCE) == Doorbell(PIO, 0xC001, 1, 3)


def test_a_sessions_regions_are_listed(vm: Vm) -> None:
    with vm.session("device") as session:
        session.register_region(MMIO, 0xD000_0000, 0x1000)
        session.register_region(PIO, BASE, 8)
        session.register_region(PIO, 0xC010, 2, doorbell=True, datamatch=1)
        assert vm.info().sessions[0].regions == (
            RegionInfo(PIO, BASE, 8),
            RegionInfo(PIO, 0xC010, 2, doorbell=True, datamatch=1),
            RegionInfo(MMIO, 0xD000_0000, 0x1000),
        )


@pytest.mark.usefixtures("transport")
def test_many_vcpus_and_devices_at_once(vm: Vm) -> None:
    """Every vCPU reads every device, and gets the device's answer to its own access."""
    for number in range(1, 3):
        vm.create_vcpu(number)

    def answer(session: Session, access: RegionAccess) -> None:
        session.complete_access(access.access, access.address & 0xFFFF_0000 | access.vcpu << 8 | access.address & 0xFF)

    failures: list[object] = []

    def run(number: int) -> None:
        with vm.session(f"vcpu {number}") as vcpu:
            for _ in range(100):
                for base in (0xD000_0000, 0xD100_0000):
                    got = vcpu.vcpu(number).mmio_read(base + number, 4)
                    if got != Access(True, base | number << 8 | number):
                        failures.append((number, base, got))

    with device(vm, answer, (MMIO, 0xD000_0000, 16)), device(vm, answer, (MMIO, 0xD100_0000, 16)):
        threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_string_of_accesses_is_forwarded_at_once_and_in_order(vm: Vm, vcpu: Session) -> None:
    """Accesses to one address do not wait for each other; a later operation waits for them all."""
    with vm.session("device", event_buffer=4096) as session:
        session.register_region(PIO, BASE, 8)
        string = vcpu.submit([*[ops.pio_write(0, BASE, n) for n in range(200)], ops.pio_read(0, BASE)])
        accesses = []
        for n in range(200):
            event = session.next_event(PATIENCE)
            assert isinstance(event, RegionAccess)
            assert (event.write, event.data) == (True, n)
            accesses.append(event.access)
        with pytest.raises(irqchip.TimedOut):
            session.next_event(0.05)
        session.run([ops.complete_access(access) for access in accesses])
        event = session.next_event(PATIENCE)
        assert isinstance(event, RegionAccess)
        assert not event.write
        session.complete_access(event.access, 9)
        assert string.result(PATIENCE) == [Claim.DEVICE] * 200 + [Access(True, 9)]


def test_a_long_string_of_accesses_is_read_whole(vm: Vm, vcpu: Session) -> None:
    numbers = iter(range(10_000))

    def count(session: Session, access: RegionAccess) -> None:
        session.complete_access(access.access, next(numbers))

    with device(vm, count):
        results = vcpu.run([ops.pio_read(0, BASE, 4)] * 1000)
        assert results == [Access(True, n) for n in range(1000)]


def test_strings_of_many_vcpus_find_room(vm: Vm, transport: str) -> None:
    with vm.session("device") as owner, ExitStack() as stack:
        owner.register_region(PIO, BASE, 8)
        vcpus = [stack.enter_context(vm.session(f"vcpu {n}")) for n in range(6)]
        assert vcpus[0].transport == transport
        strings = [vcpu.submit([ops.pio_write(0, BASE, 0x41)] * 300, return_errors=True) for vcpu in vcpus]
        time.sleep(0.2)  # as many as possible are forwarded by now
        for _ in range(6 * 300):
            event = owner.next_event(PATIENCE)
            assert isinstance(event, RegionAccess)
            assert owner.complete_access(event.access)
        for string in strings:
            assert string.result(PATIENCE) == [Claim.DEVICE] * 300


def test_an_owner_without_an_answer_says_so_and_keeps_its_regions(vm: Vm, vcpu: Session) -> None:
    def refuse(session: Session, access: RegionAccess) -> None:
        assert session.complete_access(access.access, unanswered=True)

    with device(vm, refuse, (PIO, BASE, 8), (MMIO, 0xD000_0000, 0x1000)):
        for machine in (vcpu, vm):
            cpu = machine.vcpu(0)
            for _ in range(3):  # refusing is no loss, so the region may be claimed again
                assert cpu.pio_read(BASE, 2) == Access(True, 0xFFFF, unanswered=True)
            assert cpu.pio_write(BASE, 1) is Claim.UNANSWERED
            assert cpu.mmio_read(0xD000_0000, 8) == Access(True, (1 << 64) - 1, unanswered=True)
        assert [len(session.regions) for session in vm.info().sessions if session.client == "device"] == [2]


def test_an_unanswered_access_has_no_value(vm: Vm, vcpu: Session) -> None:
    refusals: list[InvalidArgument] = []

    def answer(session: Session, access: RegionAccess) -> None:
        try:
            session.complete_access(access.access, 1, unanswered=True)
        except InvalidArgument as error:
            refusals.append(error)
        assert session.complete_access(access.access, 2), "the access still waits"

    with device(vm, answer):
        assert vcpu.vcpu(0).pio_read(BASE) == Access(True, 2)
    assert "0x1 of an access that is unanswered" in refusals[0].message

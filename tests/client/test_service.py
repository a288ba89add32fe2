"""The blocking SDK against a real daemon."""

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

import irqchip_client as irqchip
from irqchip_client import Access, Chip, Claim, Client, Interrupt, InterruptPending, InterruptSource, Vm, ops
from irqchip_client._daemon import Daemon
from tests.waiting import PATIENCE

from .guest import EOI, IRQ_BASE, init_pics

PIC = InterruptSource.PIC


@pytest.fixture(params=["50", "off"], ids=["port", "grpc"], autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions go over the port, and over gRPC."""
    monkeypatch.setenv("IRQCHIP_PORT", request.param)


def test_a_vm_from_creation_to_deletion(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm("life")
    assert vm.info() == irqchip.VmInfo("life", irqchip=False, vcpus=(), sessions=())
    vm.create_irqchip()
    vm.create_vcpu(1)
    vm.create_vcpu(0)
    assert irqchip_client.vm("life").info() == irqchip.VmInfo(
        "life",
        irqchip=True,
        vcpus=(1, 0),
        sessions=(),
        irqchip_mode=irqchip.IrqchipMode.FULL,
        asynchronous_interrupts=True,
        halt_in_kernel=True,
    )
    assert vm.info() in irqchip_client.vms()
    vm.delete()
    assert "life" not in [info.name for info in irqchip_client.vms()]
    with pytest.raises(irqchip.NotFound, match="life"):
        vm.info()


def test_errors_have_their_class_and_errno(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm()
    with pytest.raises(irqchip.AlreadyExists):
        irqchip_client.create_vm(vm.name)
    with pytest.raises(irqchip.InvalidArgument):
        irqchip_client.create_vm("no spaces")
    with pytest.raises(irqchip.NotReady) as caught:
        vm.line(4).raise_()
    assert caught.value.reason == "ENXIO"
    with pytest.raises(irqchip.NotFound):
        vm.vcpu(7).pio_read(0x20)
    with pytest.raises(irqchip.InvalidArgument):
        vm.line(-1).raise_()


def test_an_interrupt_arrives_at_the_vcpu(vm: Vm) -> None:
    init_pics(vm)
    cpu = vm.vcpu(0)
    with vm.session("uart", vcpus=[0]) as session:
        assert session.line(4).raise_() == 1
        assert session.next_event(timeout=PATIENCE) == InterruptPending(0)
        assert cpu.acknowledge() == Interrupt(IRQ_BASE + 4, PIC)
        assert cpu.acknowledge() is None


def test_line_changes_return_the_outcome(vm: Vm) -> None:
    init_pics(vm)
    vm.set_routing([irqchip.PinRoute(4, Chip.PIC_PRIMARY, 4)])
    line = vm.line(4)
    assert line.pulse() == 1
    assert line.pulse() == 0  # Coalesced: the first is still pending.
    with line:
        assert vm.vcpu(0).acknowledge() == Interrupt(IRQ_BASE + 4, PIC)
    assert vm.line(5).raise_() == -1  # No route.


def test_a_sessions_levels_drop_when_it_ends(vm: Vm) -> None:
    with vm.session("level") as session:
        session.line(10).raise_()
        session.line(4).raise_()
        [info] = vm.info().sessions
        assert info == irqchip.SessionInfo("level", session.source, asserted_gsis=(4, 10), dropped_events=0)
        with session.line(5):
            assert 5 in vm.info().sessions[0].asserted_gsis
        assert 5 not in vm.info().sessions[0].asserted_gsis
    assert vm.info().sessions == ()  # close() has waited for that.
    assert vm.get_irqchip(Chip.PIC_PRIMARY).last_irr == 0


def test_guest_accesses_report_the_claim(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    assert cpu.pio_write(0x21, 0xFB) == Claim.DEVICE
    assert cpu.pio_read(0x21) == Access(True, 0xFB)
    assert cpu.pio_write(0x3F8, 1) == Claim.NOBODY
    assert cpu.pio_read(0x3F8) == Access(False, 0)
    assert cpu.mmio_write(0xFEC00000, 1) == Claim.DEVICE  # IOREGSEL: the version register.
    version = cpu.mmio_read(0xFEC00010)
    assert version.claimed
    assert version.data >> 16 == 23
    assert cpu.mmio_read(0x1000) == Access(False, 0)


def test_states_go_out_and_come_back(vm: Vm) -> None:
    pic = replace(vm.get_irqchip(Chip.PIC_SECONDARY), imr=0xA5, irq_base=0x70)
    vm.set_irqchip(Chip.PIC_SECONDARY, pic)
    assert vm.get_irqchip(Chip.PIC_SECONDARY) == pic

    entry = irqchip.RedirectionEntry(vector=0x41, active_low=True, level_triggered=True, destination=1)
    ioapic = vm.get_irqchip(Chip.IOAPIC)
    ioapic = replace(ioapic, entries=(*ioapic.entries[:4], entry, *ioapic.entries[5:]))
    vm.set_irqchip(Chip.IOAPIC, ioapic.kvm_struct)
    assert vm.get_irqchip(Chip.IOAPIC).entries[4] == entry

    cpu = vm.vcpu(0)
    lapic = replace(cpu.lapic(), tpr=0x20, svr=0x1FF, irr=(0x31, 0x80))
    cpu.set_lapic(lapic)
    assert (cpu.lapic().tpr, cpu.lapic().svr, cpu.lapic().irr) == (0x20, 0x1FF, (0x31, 0x80))

    with pytest.raises(irqchip.InvalidArgument):
        vm.set_irqchip(Chip.PIC_PRIMARY, ioapic)


@pytest.mark.only_daemon
def test_the_sdk_decodes_the_bytes_as_the_daemon_does(vm: Vm, irqchip_client: Client) -> None:
    from irqchip.v1 import irqchip_pb2 as pb

    rpcs = irqchip_client._connection.rpcs
    cpu = vm.vcpu(0)
    vm.vcpu(0).set_lapic(replace(cpu.lapic(), svr=0x1FF, irr=(0x31,), isr=(0x20, 0xF0), tpr=0x10))
    for chip in (Chip.PIC_PRIMARY, Chip.IOAPIC):
        answer = rpcs.GetIrqchip(pb.GetIrqchipRequest(vm=vm.name, chip_id=chip))
        assert vm.get_irqchip(chip).kvm_struct == answer.kvm_struct
    ioapic = vm.get_irqchip(Chip.IOAPIC)
    assert [entry.raw for entry in ioapic.entries] == list(answer.ioapic.redirection_entries)
    lapic = cpu.lapic()
    decoded = rpcs.GetLapic(pb.GetLapicRequest(vm=vm.name, vcpu=0)).lapic
    for field in decoded.DESCRIPTOR.fields:
        value = getattr(decoded, field.name)
        assert getattr(lapic, field.name) == (tuple(value) if field.is_repeated else value), field.name


def test_routing_and_msis(vm: Vm) -> None:
    assert irqchip.PinRoute(4, Chip.IOAPIC, 4) in vm.routing()
    msi = irqchip.MsiRoute(24, 0xFEE00000, 0x51)
    vm.set_routing([msi])
    assert vm.routing() == [msi]
    cpu = vm.vcpu(0)
    cpu.set_lapic(replace(cpu.lapic(), svr=0x1FF))
    assert vm.line(24).raise_() == 1
    assert vm.signal_msi(0xFEE00000, 0x61) == 1
    assert cpu.acknowledge() == Interrupt(0x61, InterruptSource.LAPIC)
    assert vm.signal_msi(0xFEE55000, 0x61) < 1
    with pytest.raises(irqchip.InvalidArgument):
        vm.set_routing([irqchip.MsiRoute(4096, 0, 0)])
    assert vm.routing() == [msi]


def test_extensions(irqchip_client: Client) -> None:
    assert irqchip_client.check_extension(0) == 1  # KVM_CAP_IRQCHIP
    assert irqchip_client.check_extension(9999) == 0


def test_a_batch_is_executed_in_order_with_an_error_in_its_place(vm: Vm) -> None:
    with vm.session() as session:
        calls = [ops.pio_write(0, 0x21, 0x5A), ops.pio_read(9, 0x21), ops.pio_read(0, 0x21)]
        wrote, error, read = session.run(calls, return_errors=True)
        assert (wrote, read) == (True, Access(True, 0x5A))
        assert isinstance(error, irqchip.NotFound)
        with pytest.raises(irqchip.NotFound):
            session.run(calls)
        assert session.run([]) == []
        with pytest.raises(irqchip.LimitReached, match="at most"):
            session.run([EOI] * (session.max_operations + 1))


def test_a_session_has_a_vms_operations(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm()
    vm.create_irqchip()
    with vm.session(vcpus=[0]) as session:
        cpu = session.create_vcpu(0)
        init_pics(session)
        assert session.line(3).pulse() >= 1
        assert cpu.acknowledge() == Interrupt(IRQ_BASE + 3, PIC)
        assert session.get_irqchip(Chip.PIC_PRIMARY).isr == 1 << 3
        session.set_routing([])
        assert session.routing() == []
        assert session.vcpu(0).lapic() == vm.vcpu(0).lapic()


def test_many_batches_are_in_flight_and_come_back_in_order(vm: Vm) -> None:
    with vm.session(max_in_flight=8) as session:
        futures = [session.submit([ops.pio_write(0, 0x21, i % 256), ops.pio_read(0, 0x21)]) for i in range(500)]
        assert [future.result(PATIENCE)[1].data for future in futures] == [i % 256 for i in range(500)]


def test_threads_share_a_session(vm: Vm) -> None:
    failures = []

    def work(session: irqchip.Session, gsi: int) -> None:
        for level in [True, False] * 50:
            [status] = session.run([ops.irq_line(gsi, level)])
            if status < -1:
                failures.append(status)

    with vm.session(max_in_flight=2) as session:
        threads = [threading.Thread(target=work, args=(session, gsi)) for gsi in range(3, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads)
        assert vm.info().sessions[0].asserted_gsis == ()
    assert failures == []


def test_a_callback_submits_the_next_batch(vm: Vm) -> None:
    done = threading.Event()
    with vm.session() as session:
        first = session.submit([EOI])
        first.add_done_callback(lambda _: session.submit([EOI]).add_done_callback(lambda _: done.set()))
        assert done.wait(PATIENCE)


def test_events_stop_after_the_timeout_and_go_on_later(vm: Vm) -> None:
    init_pics(vm)
    with vm.session(vcpus=[0]) as session:
        assert list(session.events(timeout=0.05)) == []
        with pytest.raises(irqchip.TimedOut, match=r"an event did not come within 0\.05 s"):
            session.next_event(timeout=0.05)
        vm.line(4).pulse()
        assert list(session.events(timeout=0.2)) == [InterruptPending(0)]


@pytest.mark.only_daemon
def test_events_that_are_not_read_in_time_are_dropped_and_counted(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRQCHIP_PORT", "off")  # over the port a Session reads nothing until a caller waits
    vm.vcpu(0).mmio_write(0xFEE000F0, 0x1FF)  # an APIC takes no messages before it is enabled
    with vm.session(vcpus=[0], event_buffer=3) as session:
        session.run([ops.signal_msi(0xFEE00000, 0x600 | vector) for vector in range(20)])
        deadline = time.monotonic() + PATIENCE
        while session.dropped_events < 17 and time.monotonic() < deadline:
            time.sleep(0.01)
        first = [irqchip.VcpuSignal(0, irqchip.SignalKind.SIPI, vector, ignored=True) for vector in range(3)]
        assert list(session.events(timeout=0.1)) == [*first, irqchip.EventsDropped(17)]


def test_a_session_on_a_missing_vm_is_not_opened(irqchip_client: Client) -> None:
    with pytest.raises(irqchip.NotFound, match="nowhere"):
        irqchip_client.vm("nowhere").session()
    with pytest.raises(irqchip.InvalidArgument):
        irqchip_client.vm("nowhere").session(vcpus=[-1])


def test_deleting_the_vm_ends_its_session_and_says_so(vm: Vm) -> None:
    with vm.session(vcpus=[0]) as session:
        vm.delete()
        with pytest.raises(irqchip.SessionClosed, match="deleted") as caught:
            session.next_event(timeout=PATIENCE)
        assert isinstance(caught.value.__cause__, irqchip.NotFound)
        assert session.closed
        with pytest.raises(irqchip.SessionClosed):
            session.line(4).raise_()


def test_close_wakes_waiting_callers_and_may_be_repeated(vm: Vm) -> None:
    session = vm.session()
    closer = threading.Timer(0.1, session.close)
    closer.start()
    with pytest.raises(irqchip.SessionClosed, match="this client closed it"):
        session.next_event(timeout=PATIENCE)
    closer.join()
    session.close()
    with pytest.raises(irqchip.SessionClosed):
        session.run([EOI])


def test_closing_the_client_ends_its_sessions(irqchip_server: Daemon, vm: Vm) -> None:
    client = irqchip_server.connect()
    session = client.vm(vm.name).session()
    watch = client.vm(vm.name).watch()
    client.close()
    with pytest.raises(irqchip.SessionClosed, match="Client is closed"):
        session.next_event(timeout=PATIENCE)
    with pytest.raises(irqchip.Unavailable, match="Client is closed"):
        next(watch)
    for use in (client.vms, client.vm(vm.name).session, client.vm(vm.name).watch):
        with pytest.raises(irqchip.Unavailable, match="Client is closed"):
            use()


def test_a_watch_sees_what_happens_after_it_began(vm: Vm) -> None:
    with vm.watch(["kvm_pic_set_irq"]) as watch:
        vm.line(4).raise_()
        event = next(watch)
    assert isinstance(event, irqchip.TraceEvent)
    assert event.tracepoint == "kvm_pic_set_irq"
    assert list(event.fields)[:2] == ["chip", "pin"]
    assert event.fields["pin"] == 4
    assert abs(time.monotonic_ns() - event.time_ns) < 60e9
    assert list(watch) == []


def test_a_watch_ends_with_its_vm_or_when_closed_elsewhere(vm: Vm) -> None:
    watch = vm.watch()
    closer = threading.Timer(0.1, watch.close)
    closer.start()
    assert list(watch) == []
    with vm.watch() as watch:
        vm.delete()
        with pytest.raises(irqchip.NotFound, match="deleted"):
            list(watch)


def test_an_unknown_tracepoint_is_refused(vm: Vm) -> None:
    with pytest.raises(irqchip.InvalidArgument, match="kvm_nonsense"), vm.watch(["kvm_nonsense"]) as watch:
        next(watch)


def test_an_argument_that_is_not_an_operation_is_refused(vm: Vm) -> None:
    wrong: Any = ["x"]
    with vm.session() as session:
        with pytest.raises(irqchip.InvalidArgument, match="'x' is no operation"):
            session.run(wrong)
        assert session.line(4).pulse() == 1

"""A VM that is saved, and restored in another daemon, continues as if it had not moved."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchip.v1.irqchip_pb2_grpc import IrqchipServiceStub
from irqchip_client import (
    AlreadyExists,
    Client,
    GsiResampled,
    Interrupt,
    InterruptSource,
    InvalidArgument,
    MpState,
    MsiRoute,
    NotFound,
    VmSnapshot,
    ops,
)
from irqchip_client import Vm as Machine
from irqchip_client._daemon import Daemon, start_daemon
from irqchipd.vm.machine import MAX_VCPUS
from tests.service.test_sessions import high, write_entry
from tests.waiting import PATIENCE, eventually

LAPIC = 0xFEE0_0000
LVT_TIMER, INITIAL_COUNT, DIVIDE, EOI = LAPIC + 0x320, LAPIC + 0x380, LAPIC + 0x3E0, LAPIC + 0xB0
MILLISECOND = 1_000_000
GSI, VECTOR = 20, 0x60
TIMER = Interrupt(0x31, InterruptSource.LAPIC)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Client]:
    """A client of another daemon."""
    with start_daemon() as daemon, daemon.connect() as client:
        yield client


@pytest.fixture(params=[True, False], ids=["virtual", "real"])
def vm(irqchip_client: Client, request: pytest.FixtureRequest) -> Machine:
    """A VM with a PIT and two running vCPUs; pin 20 is level-triggered to vector 60h of vCPU 0."""
    vm = irqchip_client.create_vm(virtual_clock=request.param, tsc_khz=2_500_000)
    vm.create_irqchip()
    vm.create_pit()
    for number in range(2):
        cpu = vm.create_vcpu(number)
        cpu.set_mp_state(MpState.RUNNABLE)
        cpu.mmio_write(LAPIC + 0xF0, 0x1FF)
    write_entry(vm, GSI, VECTOR | 1 << 15)
    return vm


def move(vm: Machine, elsewhere: Client) -> Machine:
    """The VM, restored in another daemon; the original is deleted."""
    snapshot = VmSnapshot.from_bytes(vm.snapshot().to_bytes())
    vm.delete()
    return elsewhere.restore_vm(snapshot)


def start_timer(vm: Machine, count: int, *, periodic: bool = False) -> None:
    """Start vCPU 0's timer with vector 31h; a count is a nanosecond."""
    cpu = vm.vcpu(0)
    cpu.mmio_write(DIVIDE, 0xB)
    cpu.mmio_write(LVT_TIMER, 0x31 | periodic << 17)
    cpu.mmio_write(INITIAL_COUNT, count)


def test_the_saved_state_is_restored(vm: Machine, elsewhere: Client) -> None:
    vm.line(GSI).raise_()
    vm.vcpu(1).nmi()
    vm.vcpu(1).set_mp_state(MpState.HALTED)
    vm.set_routing([*vm.routing(), MsiRoute(100, LAPIC, 0x41)])
    before, registers = vm.info(), [vm.vcpu(number).lapic() for number in range(2)]
    moved = move(vm, elsewhere)
    after = moved.info()
    assert after.now_ns >= before.now_ns
    assert (after.vcpus, after.asserted_gsis, after.virtual, after.tsc_khz, after.pit) == (
        (0, 1),
        (GSI,),
        before.virtual,
        2_500_000,
        True,
    )
    assert [moved.vcpu(number).lapic() for number in range(2)] == registers
    assert moved.routing()[-1] == MsiRoute(100, LAPIC, 0x41)
    assert moved.vcpu(1).mp_state() is MpState.HALTED
    assert moved.vcpu(1).take_signal() is not None
    assert moved.vcpu(0).halt(timeout=PATIENCE) == Interrupt(VECTOR, InterruptSource.LAPIC)
    moved.line(GSI).lower()
    assert not high(moved, GSI)


def test_a_moved_timer_goes_on(vm: Machine, elsewhere: Client) -> None:
    start_timer(vm, 300 * MILLISECOND)
    if vm.info().virtual:
        vm.advance(100 * MILLISECOND)
        moved = move(vm, elsewhere)
        assert moved.advance(200 * MILLISECOND - 1).next_timer_ns == 300 * MILLISECOND
        assert moved.vcpu(0).acknowledge() is None
        moved.advance(1)
        assert moved.vcpu(0).acknowledge() == TIMER
    else:
        moved = move(vm, elsewhere)
        assert moved.vcpu(0).halt(timeout=PATIENCE) == TIMER


def test_a_moved_vm_behaves_like_one_that_stayed(irqchip_client: Client, elsewhere: Client) -> None:
    stays, leaves = (irqchip_client.create_vm(name, virtual_clock=True) for name in ("stays", "leaves"))
    for vm in (stays, leaves):
        vm.create_irqchip()
        vm.create_pit()
        vm.create_vcpu(0).mmio_write(LAPIC + 0xF0, 0x1FF)
        start_timer(vm, 3 * MILLISECOND, periodic=True)
        for port, value in ((0x21, 0xFF), (0x43, 0x34), (0x40, 0x9C), (0x40, 0x2E)):
            vm.vcpu(0).pio_write(port, value)
    assert stays.snapshot() == leaves.snapshot()
    for step in range(1, 6):
        taken = []
        for vm in (stays, leaves):
            vm.advance(step * 7 * MILLISECOND + 123)
            taken.append(vm.vcpu(0).acknowledge())
            vm.vcpu(0).mmio_write(EOI, 0)
        assert taken == [TIMER, TIMER]
        leaves = move(leaves, elsewhere)
        assert leaves.snapshot() == stays.snapshot()


def test_a_halt_is_not_saved_but_the_interrupt_it_gave_back_is(
    vm: Machine, irqchip_client: Client, elsewhere: Client
) -> None:
    with vm.session() as session:
        waiting = session.submit([ops.halt(0)])
        eventually(lambda: vm.vcpu(0).mp_state() is MpState.HALTED)
        copy = irqchip_client.restore_vm(vm.snapshot(), "copy")
        vm.signal_msi(LAPIC, 0x31)
        assert waiting.result(PATIENCE) == [TIMER]
    assert copy.vcpu(0).mp_state() is MpState.HALTED
    copy.signal_msi(LAPIC, 0x31)
    assert move(copy, elsewhere).vcpu(0).halt(timeout=PATIENCE) == TIMER


def test_a_sessions_line_is_held_until_its_client_resumes_it(vm: Machine, elsewhere: Client) -> None:
    with vm.session("device", resampled_gsis=[21]) as session:
        session.line(GSI).raise_()
        moved = move(vm, elsewhere)
    (waits,) = moved.info().sessions
    assert (waits.client, waits.asserted_gsis, waits.detached) == ("device", (GSI,), True)
    assert high(moved, GSI)
    with pytest.raises(NotFound):
        moved.session("another", resume=True)
    with moved.session("another") as another:
        assert another.source != waits.source

    with moved.session("device", resume=True) as session:
        assert session.source == waits.source
        (resumed,) = moved.info().sessions
        assert (resumed.client, resumed.asserted_gsis, resumed.detached) == ("device", (GSI,), False)
        with pytest.raises(NotFound):
            moved.session("device", resume=True)
        session.line(GSI).lower()
        assert not high(moved, GSI)
        session.line(GSI).raise_()
    assert not high(moved, GSI)
    assert moved.info().sessions == ()


def test_a_resumed_resampler_is_notified_of_missed_acknowledgements(vm: Machine, elsewhere: Client) -> None:
    cpu = vm.vcpu(0)
    with vm.session("device", resampled_gsis=[GSI]) as session:
        session.line(GSI).raise_()
        assert cpu.acknowledge() == Interrupt(VECTOR, InterruptSource.LAPIC)
        moved = move(vm, elsewhere)
    assert high(moved, GSI)
    moved.vcpu(0).mmio_write(EOI, 0)
    assert not high(moved, GSI)
    with moved.session("device", resampled_gsis=[GSI], resume=True) as session:
        assert session.next_event(PATIENCE) == GsiResampled(GSI, 1)
        session.line(GSI).raise_()
        assert moved.vcpu(0).acknowledge() == Interrupt(VECTOR, InterruptSource.LAPIC)


def test_a_name_that_is_taken_is_refused(vm: Machine, irqchip_client: Client) -> None:
    snapshot = vm.snapshot()
    with pytest.raises(AlreadyExists):
        irqchip_client.restore_vm(snapshot, vm.name)
    irqchip_client.restore_vm(snapshot, "twin")
    assert {vm.name, "twin"} <= {info.name for info in irqchip_client.vms()}


def test_the_largest_vm_is_saved_and_restored(irqchip_client: Client, elsewhere: Client) -> None:
    vm = irqchip_client.create_vm(virtual_clock=True)
    vm.create_irqchip()
    with vm.session() as session:
        session.run([ops.create_vcpu(number) for number in range(MAX_VCPUS)])
    vm.set_routing([MsiRoute(gsi, (1 << 64) - 1, 0xFFFF_FFFF, 1) for gsi in range(4096)])
    snapshot = vm.snapshot()
    assert move(vm, elsewhere).snapshot() == snapshot


@pytest.mark.parametrize("path", ["chips.primary", "chips.ioapic", "pit.state", "vcpus.lapic", "vcpus.handled"])
def test_a_state_that_no_vm_can_have_is_refused_and_leaves_no_vm(
    irqchip_server: Daemon, vm: Machine, irqchip_client: Client, path: str
) -> None:
    snapshot = vm.snapshot().to_proto()
    part, name = path.split(".")
    owner = getattr(snapshot, part)
    setattr(owner[0] if part == "vcpus" else owner, name, b"too short")
    names = [info.name for info in irqchip_client.vms()]
    with pytest.raises(InvalidArgument):
        irqchip_client.restore_vm(VmSnapshot.from_proto(snapshot))
    with grpc.insecure_channel(irqchip_server.target) as channel, pytest.raises(grpc.RpcError) as caught:
        IrqchipServiceStub(channel).RestoreVm(pb.RestoreVmRequest(snapshot=snapshot))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [info.name for info in irqchip_client.vms()] == names

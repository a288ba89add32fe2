from collections.abc import Callable
from typing import Any, cast

import pytest

from irqchip.v1 import irqchip_pb2 as pb
from irqchip_client import (
    Access,
    AdapterRoute,
    Advance,
    Architecture,
    Chip,
    Claim,
    DeviceType,
    GicHost,
    Interrupt,
    InterruptMasks,
    InterruptSource,
    InvalidArgument,
    IrqchipError,
    MpState,
    MsiRoute,
    MsrAccess,
    PicState,
    PinRoute,
    PitState,
    ResetReason,
    Route,
    S390Irq,
    S390IrqType,
    Signal,
    SignalKind,
    Space,
    TimedOut,
    VcpuEvents,
    VcpuReset,
    VmSnapshot,
    arm64,
    ops,
)
from irqchip_client._call import time_allowed
from irqchip_client._calls import (
    check_extension,
    create_device,
    create_irqchip,
    create_pit,
    create_vm,
    delete_vm,
    enable_cap,
    get_interrupts,
    get_memory,
    get_vm,
    irqfd,
    list_vms,
    reset_vm,
    restore_vm,
    save_vm,
    set_boot_cpu_id,
    set_device_addr,
    share_lapic,
)
from irqchip_client.ops import Call

LAPIC = bytes(1024)
SNAPSHOT = VmSnapshot.from_proto(pb.VmSnapshot(version=2, now_ns=5))

# One call of every operation.
OPERATIONS: list[Call[Any]] = [
    ops.irq_line(4, True),
    ops.irq_lines([(4, True), (4, False)]),
    ops.signal_msi(0xFEE00000, 0x31),
    irqfd(4),
    ops.set_gsi_routing([PinRoute(4, Chip.IOAPIC, 4)]),
    ops.get_gsi_routing(),
    ops.pio_read(0, 0x20),
    ops.pio_write(0, 0x21, 0xFB),
    ops.mmio_read(0, 0xFEC00000),
    ops.mmio_write(0, 0xFEC00000, 1),
    ops.msr_read(0, 0x1B),
    ops.msr_write(0, 0x1B, 1),
    ops.cr8_read(0),
    ops.cr8_write(0, 5),
    ops.register_region(Space.PIO, 0x3F8, 8),
    ops.unregister_region(Space.PIO, 0x3F8),
    ops.complete_access(1, 0x60),
    ops.ack_interrupt(0),
    ops.take_signal(0),
    ops.halt(0),
    ops.interrupt(0, 0x31),
    ops.nmi(0),
    ops.get_mp_state(0),
    ops.set_mp_state(0, MpState.RUNNABLE),
    ops.get_vcpu_events(0),
    ops.set_vcpu_events(0, VcpuEvents(nmi_masked=True)),
    ops.create_vcpu(1),
    ops.set_cpuid(0, x2apic=False),
    ops.get_irqchip(Chip.IOAPIC),
    ops.set_irqchip(Chip.PIC_PRIMARY, PicState()),
    ops.get_lapic(0),
    ops.set_lapic(0, LAPIC),
    ops.get_pit(),
    ops.set_pit(PitState()),
    ops.set_pit_reinject(False),
    ops.advance_clock(1),
    share_lapic(0),
    ops.set_device_attr(4, 0, 0, device=0),
    ops.get_device_attr(0, 2, bytes(4), vcpu=1),
    ops.has_device_attr(0, 2, device=0),
    ops.vcpu_init(0, 4),
    ops.sysreg_read(0, arm64.SYSREGS["ICC_IAR1_EL1"]),
    ops.sysreg_write(0, arm64.SYSREGS["ICC_PMR_EL1"], 0xF0),
    get_memory(0x1000),
    ops.s390_interrupt(S390IrqType.SERVICE, 0x1000, 5),
    ops.s390_irq(0, S390Irq.make(S390IrqType.EMERGENCY, code=1)),
    ops.get_irq_state(0),
    ops.set_irq_state(0, [S390Irq.make(S390IrqType.RESTART)]),
    ops.set_interrupt_masks(0, InterruptMasks.all()),
    ops.get_interrupt_masks(0),
    ops.take_irq(0),
    ops.reset_vcpu(0, VcpuReset.INITIAL),
]
# The same operations with other arguments.
VARIANTS: list[Call[Any]] = [
    ops.host_msr_read(0, 0x1B),
    ops.host_msr_write(0, 0x1B, 1),
    ops.irq_line(8, True, without_status=True),
    ops.s390_interrupt(S390IrqType.EMERGENCY, 1, vcpu=0),
    ops.s390_irq(0, bytes(72)),
    ops.set_gsi_routing([AdapterRoute(4, 0x1000, 0x2000, 5, 1, 3)]),
]
# The operations without an RPC: they concern a Session's events, or need its descriptors.
ONLY_OF_SESSIONS = {"Irqfd", "ShareLapic", "GetMemory", "RegisterRegion", "UnregisterRegion", "CompleteAccess"}
OTHERS: list[Call[Any]] = [
    *[create_vm("a"), delete_vm(), list_vms(), get_vm(), reset_vm(ResetReason.GUEST), save_vm(), restore_vm(SNAPSHOT)],
    *[check_extension(0), enable_cap(121, [24]), create_irqchip(), create_pit(True), set_boot_cpu_id(1)],
    *[create_device(DeviceType.ARM_VGIC_V3), set_device_addr(0, 0x0800_0000), get_interrupts()],
]


def test_the_contracts_calls_are_all_here() -> None:
    operations = [field.name for field in pb.Operation.DESCRIPTOR.fields]
    assert [call.operation for call in OPERATIONS] == operations
    public = set(ops.__all__) - {"Call", "host_msr_read", "host_msr_write"} | {"irqfd", "share_lapic", "get_memory"}
    assert {call.operation for call in OPERATIONS} == public
    unary = [method.name for method in pb.DESCRIPTOR.services_by_name["IrqchipService"].methods][:-2]
    assert sorted({call.method for call in OTHERS + OPERATIONS} - ONLY_OF_SESSIONS) == sorted(unary)


@pytest.mark.parametrize("call", [*OPERATIONS, *VARIANTS], ids=lambda call: call.operation)
def test_a_call_is_the_same_alone_and_in_a_batch(call: Call[Any]) -> None:
    operation = call.as_operation()
    assert operation.WhichOneof("operation") == call.operation
    assert getattr(operation, call.operation) == call.request
    if call.method in ONLY_OF_SESSIONS:
        return
    alone: Any = call.request_for("demo")
    assert alone.vm == "demo"
    alone.vm = ""
    assert alone == call.request


@pytest.mark.parametrize("call", OTHERS, ids=lambda call: call.operation)
def test_a_call_that_no_session_takes_is_refused(call: Call[Any]) -> None:
    with pytest.raises(InvalidArgument, match=f"{call.operation} is no operation"):
        call.as_operation()


def test_requests_hold_the_arguments() -> None:
    assert ops.irq_line(4, True).request == pb.IrqLineRequest(gsi=4, level=True)
    assert ops.pio_write(1, 0x20, 0x11, 2).request == pb.PioWriteRequest(vcpu=1, port=0x20, size=2, data=0x11)
    assert ops.mmio_read(1, 0xFEC00010).request == pb.MmioReadRequest(vcpu=1, address=0xFEC00010, size=4)
    assert ops.ack_interrupt(1, InterruptSource.LAPIC).request == pb.AckInterruptRequest(
        vcpu=1, source=pb.INTERRUPT_SOURCE_LAPIC
    )
    assert ops.set_irqchip(Chip.IOAPIC, b"x").request == pb.SetIrqchipRequest(chip_id=2, kvm_struct=b"x")
    assert ops.set_irqchip(Chip.PIC_PRIMARY, PicState(imr=1)).request == pb.SetIrqchipRequest(
        kvm_struct=PicState(imr=1).kvm_struct
    )
    assert create_vm("a").request == pb.CreateVmRequest(
        vm="a", clock=pb.CLOCK_KIND_REAL, architecture=pb.ARCHITECTURE_X86
    )
    assert create_vm("a", virtual_clock=True, tsc_khz=2_000_000).request == pb.CreateVmRequest(
        vm="a", clock=pb.CLOCK_KIND_VIRTUAL, tsc_khz=2_000_000, architecture=pb.ARCHITECTURE_X86
    )
    assert create_vm("a", architecture=Architecture.ARM64, gic=GicHost(3, 16)).request == pb.CreateVmRequest(
        vm="a",
        clock=pb.CLOCK_KIND_REAL,
        architecture=pb.ARCHITECTURE_ARM64,
        gic=pb.GicProperties(version=3, list_registers=16),
    )
    of_a_vcpu = pb.GetDeviceAttrRequest(target=pb.AttrTarget(vcpu=0), group=1, attr=2, data=b"abc")
    assert ops.get_device_attr(1, 2, b"abc", vcpu=0).request == of_a_vcpu
    of_a_device = pb.SetDeviceAttrRequest(target=pb.AttrTarget(device=3), group=1, attr=2, data=bytes([5, *bytes(7)]))
    assert ops.set_device_attr(1, 2, 5, device=3).request == of_a_device
    assert ops.vcpu_init(1, 4).request == pb.VcpuInitRequest(vcpu=1, features=4)
    assert enable_cap(121, [24, 1]).request == pb.EnableCapRequest(capability=121, args=[24, 1])
    assert restore_vm(SNAPSHOT, "b").request == pb.RestoreVmRequest(vm="b", snapshot=pb.VmSnapshot(version=2, now_ns=5))
    assert ops.set_pit(PitState(flags=2)).request == pb.SetPitRequest(kvm_struct=PitState(flags=2).kvm_struct)
    assert ops.set_pit(bytes(112)).request == pb.SetPitRequest(kvm_struct=bytes(112))
    assert ops.msr_write(1, 0x80F, 1 << 63).request == pb.MsrWriteRequest(vcpu=1, msr=0x80F, data=1 << 63)
    assert ops.set_mp_state(1, MpState.HALTED).request == pb.SetMpStateRequest(vcpu=1, state=pb.MP_STATE_HALTED)


def test_responses_become_results() -> None:
    assert ops.irq_line(4, True).parse(pb.IrqLineResponse(status=-1)) == -1
    assert ops.pio_read(0, 0x20).parse(pb.PioReadResponse(claimed=True, data=7)) == Access(True, 7)
    assert ops.mmio_write(0, 0, 0).parse(pb.MmioWriteResponse(claimed=True)) == Claim.DEVICE
    assert ops.ack_interrupt(0).parse(pb.AckInterruptResponse()) is None
    taken = pb.AckInterruptResponse(interrupt=pb.Interrupt(source=pb.INTERRUPT_SOURCE_PIC))
    assert ops.ack_interrupt(0).parse(taken) == Interrupt(0, InterruptSource.PIC)
    assert ops.create_vcpu(0).parse(pb.CreateVcpuResponse()) is None
    assert restore_vm(SNAPSHOT).parse(pb.RestoreVmResponse(vm="b")) == "b"
    assert save_vm().parse(pb.SaveVmResponse(snapshot=pb.VmSnapshot(version=2, now_ns=5))) == SNAPSHOT
    assert ops.advance_clock(9).parse(pb.AdvanceClockResponse(now_ns=5, remaining_ns=4)) == Advance(5, 4, None)
    assert ops.advance_clock(9).parse(pb.AdvanceClockResponse(now_ns=9, next_timer_ns=0)) == Advance(9, 0, 0)
    assert ops.get_pit().parse(pb.GetPitResponse(kvm_struct=PitState(flags=1).kvm_struct)) == PitState(flags=1)
    assert ops.msr_read(0, 0x1B).parse(pb.MsrReadResponse(claimed=True, data=7)) == MsrAccess(True, False, 7)
    assert ops.msr_read(0, 0x1B).parse(pb.MsrReadResponse()) == MsrAccess(False, False)
    assert ops.msr_write(0, 0x1B, 1).parse(pb.MsrWriteResponse(claimed=True, fault=True)) == MsrAccess(True, True)
    assert ops.take_signal(0).parse(pb.TakeSignalResponse()) is None
    sipi = pb.TakeSignalResponse(signal=pb.Signal(kind=pb.SIGNAL_KIND_SIPI, vector=0x10))
    assert ops.take_signal(0).parse(sipi) == Signal(SignalKind.SIPI, 0x10)


@pytest.mark.parametrize("state", MpState)
def test_run_states_have_kvms_numbers_and_the_contracts_are_one_more(state: MpState) -> None:
    on_the_wire = pb.MpState.Value(f"MP_STATE_{state.name}")
    assert on_the_wire == state + 1
    assert ops.get_mp_state(0).parse(pb.GetMpStateResponse(state=on_the_wire)) is state


def test_a_halt_ends_with_what_was_taken() -> None:
    halt = ops.halt(3)
    interrupt = pb.Interrupt(vector=0, source=pb.INTERRUPT_SOURCE_PIC)
    assert halt.parse(pb.HaltResponse(interrupt=interrupt)) == Interrupt(0, InterruptSource.PIC)
    signal = pb.Signal(kind=pb.SIGNAL_KIND_INIT)
    assert halt.parse(pb.HaltResponse(signal=signal)) == Signal(SignalKind.INIT)
    with pytest.raises(TimedOut, match=r"nothing for vCPU 3 to take came within 1\.5 s"):
        ops.halt(3, timeout=1.5).parse(pb.HaltResponse(timeout=pb.HaltTimeout()))
    with pytest.raises(TimedOut, match="nothing for vCPU 3 to take came in time"):  # A halt that was given up.
        halt.parse(pb.HaltResponse(timeout=pb.HaltTimeout()))
    with pytest.raises(IrqchipError, match="no reason for a Halt to end"):
        halt.parse(pb.HaltResponse())


def test_the_daemon_keeps_a_halts_timeout() -> None:
    assert ops.halt(0, timeout=None).request == pb.HaltRequest(vcpu=0)
    assert ops.halt(0, interrupts_masked=True, timeout=1.5).request == pb.HaltRequest(
        vcpu=0, interrupts_masked=True, timeout_ns=1_500_000_000
    )
    assert ops.halt(0, timeout=0).request == pb.HaltRequest(timeout_ns=1)  # 0 would be for ever.
    for timeout in (-1, float("nan"), float("inf"), 1e12):
        with pytest.raises(InvalidArgument, match="use a number of seconds from 0 to"):
            ops.halt(0, timeout=timeout)
    with pytest.raises(InvalidArgument, match="timeout is '1'"):
        ops.halt(0, timeout=cast(float, "1"))


def test_an_answer_may_take_as_long_as_its_calls_wait_and_the_timeout() -> None:
    assert time_allowed([], 10) == 10
    assert time_allowed([ops.nmi(0), ops.pio_read(0, 0x20)], 10) == 10
    assert time_allowed([ops.nmi(0), ops.halt(0, timeout=2.5)], 10) == 12.5
    assert time_allowed([ops.nmi(0), ops.halt(0)], 10) is None


@pytest.mark.parametrize("wrong", ["x", 5, None])
def test_an_argument_that_is_not_a_call_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"{wrong!r} is no operation; irqchip_client.ops makes operations"):
        time_allowed([ops.nmi(0), wrong], 10)


def test_bytes_are_refused_where_a_snapshot_is_expected() -> None:
    with pytest.raises(InvalidArgument, match=r"use VmSnapshot\.from_bytes\(\) for bytes"):
        restore_vm(cast(VmSnapshot, SNAPSHOT.to_bytes()))


def test_a_snapshot_shows_its_size() -> None:
    assert repr(SNAPSHOT) == f"<VmSnapshot of {len(SNAPSHOT.to_bytes())} bytes>"


def test_routes_survive() -> None:
    routes: list[Route] = [
        PinRoute(4, Chip.PIC_PRIMARY, 4),
        PinRoute(4, Chip.IOAPIC, 4),
        MsiRoute(24, 0xFEE00000, 0x31, flags=1),
        AdapterRoute(25, 0x1000, 0x2000, 5, 1, 63),
    ]
    table = pb.GetGsiRoutingResponse(entries=[route.to_proto() for route in routes])
    assert ops.get_gsi_routing().parse(table) == routes


@pytest.mark.parametrize(
    "make",
    [
        lambda: ops.irq_line(-1, True),
        lambda: ops.irq_line(1 << 32, True),
        lambda: ops.pio_write(0, 0x20, -1),
        lambda: ops.signal_msi(1 << 64, 0),
        lambda: ops.set_gsi_routing([MsiRoute(0, -1, 0)]),
        lambda: create_vm("\ud800"),
        lambda: create_vm("a", tsc_khz=-1),
        lambda: enable_cap(121, [-1]),
        lambda: ops.advance_clock(-1),
        lambda: ops.msr_write(0, 0x1B, 1 << 64),
        lambda: ops.set_mp_state(0, cast(MpState, 11)),
    ],
)
def test_a_number_beyond_its_field_is_an_irqchip_error(make: Any) -> None:
    with pytest.raises(InvalidArgument):
        make()


NONE: Any = None


@pytest.mark.parametrize(
    "make", [lambda: ops.irq_line(NONE, True), lambda: ops.create_vcpu(vcpu=NONE), lambda: ops.halt(vcpu=NONE)]
)
def test_none_does_not_mean_zero(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidArgument, match=r": (gsi|vcpu) is None, and no number; use a .* from 0 to"):
        make()


def test_an_error_names_the_argument() -> None:
    with pytest.raises(InvalidArgument, match=r"irq_line: gsi is -1, out of range: use a GSI from 0 to 0xffffffff"):
        ops.irq_line(-1, True)

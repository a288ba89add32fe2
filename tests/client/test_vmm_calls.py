"""A VMM's calls on a VM and its vCPUs: boot CPU, CPUID, events, CR8, MSR writes, lines without status."""

import asyncio

import pytest

from irqchip_client import (
    Busy,
    Chip,
    Client,
    InvalidArgument,
    MpState,
    MsrAccess,
    NotReady,
    PinRoute,
    Signal,
    SignalKind,
    VcpuEvents,
    Vm,
    aio,
    ops,
)
from irqchip_client._daemon import Daemon
from tests.waiting import PATIENCE

LAPIC, APIC_BASE, TSC_ADJUST = 0xFEE0_0000, 0x1B, 0x3B
X2APIC = LAPIC | 0xC00
CAP_DISABLE_QUIRKS2, CAP_X2APIC_API, CAP_BUS = 213, 129, 237
TAKEN, FAULT = MsrAccess(True, False), MsrAccess(True, True)


@pytest.fixture(params=["50", "off"], ids=["port", "grpc"], autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions go over the port, and over gRPC."""
    monkeypatch.setenv("IRQCHIP_PORT", request.param)


def test_the_boot_cpu_and_other_settings_before_the_first_vcpu(irqchip_client: Client) -> None:
    vm = irqchip_client.create_vm(virtual_clock=True)
    vm.create_irqchip()
    vm.set_boot_cpu_id(1)
    vm.enable_cap(CAP_DISABLE_QUIRKS2, 1)
    vm.enable_cap(CAP_X2APIC_API, 1)
    vm.enable_cap(CAP_BUS, 10)
    cpus = [vm.create_vcpu(number) for number in (0, 1, 300)]
    assert [cpu.mp_state() for cpu in cpus[:2]] == [MpState.UNINITIALIZED, MpState.RUNNABLE]
    assert cpus[1].lapic().lvt_lint0 == 1 << 16
    with pytest.raises(Busy, match="before"):
        vm.set_boot_cpu_id(0)
    cpus[2].host_msr_write(APIC_BASE, X2APIC)
    assert cpus[2].lapic().id == 300
    moved = irqchip_client.restore_vm(vm.snapshot())
    assert moved.vcpu(300).lapic().id == 300


@pytest.mark.parametrize("of_a_session", [False, True])
def test_a_line_without_a_status_is_not_coalesced_by_the_rtc(vm: Vm, of_a_session: bool) -> None:
    vm.vcpu(0).mmio_write(LAPIC + 0xF0, 0x1FF)
    for register, value in ((0x20, 0x31), (0x21, 0)):
        vm.vcpu(0).mmio_write(0xFEC0_0000, register)
        vm.vcpu(0).mmio_write(0xFEC0_0010, value)
    vm.set_routing([PinRoute(8, Chip.IOAPIC, 8)])
    with vm.session("rtc") as session:
        machine = session if of_a_session else vm
        rtc, other = machine.line(8), machine.line(8, without_status=True)
        assert rtc.pulse() == 1
        assert rtc.pulse() == 0  # The first has not been ended.
        assert other.pulse() == 1


def test_what_the_guests_cpuid_has(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    cpu.set_cpuid(x2apic=False, tsc_deadline=False, physical_address_bits=36)
    assert cpu.msr_write(APIC_BASE, X2APIC) == FAULT
    assert cpu.msr_write(APIC_BASE, LAPIC | 1 << 36 | 0x900) == FAULT
    assert cpu.msr_write(APIC_BASE, LAPIC | 1 << 33 | 0x900) == TAKEN
    assert cpu.mmio_read((LAPIC | 1 << 33) + 0x30).data == 0x5_0014
    cpu.set_cpuid()
    assert cpu.msr_write(APIC_BASE, X2APIC) == TAKEN
    with pytest.raises(InvalidArgument, match="32 to 52"):
        cpu.set_cpuid(physical_address_bits=53)


def test_msrs_that_a_vmm_writes(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    assert cpu.host_msr_write(APIC_BASE, X2APIC) == TAKEN
    assert cpu.msr_write(APIC_BASE, LAPIC | 0x900) == FAULT
    assert cpu.host_msr_write(APIC_BASE, LAPIC | 0x900) == TAKEN
    assert cpu.host_msr_read(APIC_BASE) == MsrAccess(True, False, LAPIC | 0x900)
    assert cpu.host_msr_write(TSC_ADJUST, 5) == TAKEN
    assert cpu.msr_read(TSC_ADJUST).data == 5


def test_cr8(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    cpu.msr_write(APIC_BASE, LAPIC)
    cpu.cr8_write(7)
    assert cpu.cr8_read() == 7
    assert cpu.lapic().tpr == 0x70
    with pytest.raises(InvalidArgument, match="4 bits"):
        cpu.cr8_write(16)


def test_pending_vcpu_events(vm: Vm) -> None:
    cpu = vm.vcpu(0)
    assert cpu.events() == VcpuEvents(False, 0, False, False, False)
    cpu.set_events(VcpuEvents(nmi_masked=True))
    cpu.nmi()
    cpu.nmi()
    assert cpu.events() == VcpuEvents(False, 1, True, False, False)
    assert cpu.take_signal() is None
    cpu.set_events(VcpuEvents(nmi_masked=False, interrupt_injected=True, interrupt_vector=0x41))
    assert cpu.take_signal() == Signal(SignalKind.NMI)
    assert cpu.events() == VcpuEvents(False, 0, False, False, True, 0x41)
    with vm.session() as session:
        assert session.run([ops.get_vcpu_events(0)]) == [cpu.events()]
    with pytest.raises(InvalidArgument, match="nmi_pending is 256"):
        cpu.set_events(VcpuEvents(nmi_pending=256))
    with pytest.raises(InvalidArgument):
        ops.set_vcpu_events(0, 5)  # type: ignore[arg-type]


def test_a_remote_read_wakes_a_halted_vcpu(vm: Vm) -> None:
    vm.vcpu(0).mmio_write(LAPIC + 0xF0, 0x1FF)
    with vm.session() as session:
        halt = session.submit([ops.halt(0, interrupts_masked=True)])
        vm.signal_msi(LAPIC, 0x300)
        assert halt.result(PATIENCE) == [Signal(SignalKind.UNHALT)]
    vm.signal_msi(LAPIC, 0x300)
    assert vm.vcpu(0).halt(timeout=PATIENCE) == Signal(SignalKind.UNHALT)


def test_a_run_state_whose_number_differs_from_kvms(vm: Vm) -> None:
    vm.vcpu(0).set_mp_state(MpState.AP_RESET_HOLD)
    assert vm.vcpu(0).mp_state() is MpState.AP_RESET_HOLD


def test_a_vcpu_without_a_local_apic_refuses_these_calls(irqchip_client: Client) -> None:
    cpu = irqchip_client.create_vm().create_vcpu(0)
    for call in (cpu.events, cpu.cr8_read, cpu.set_cpuid, lambda: cpu.host_msr_read(APIC_BASE)):
        with pytest.raises(NotReady):
            call()


def test_the_asyncio_half_does_the_same(irqchip_server: Daemon) -> None:
    async def main() -> None:
        async with aio.connect(irqchip_server.target) as client:
            vm = await client.create_vm()
            await vm.create_irqchip()
            await vm.set_boot_cpu_id(0)
            cpu = await vm.create_vcpu(0)
            await cpu.set_cpuid(x2apic=False)
            assert await cpu.msr_write(APIC_BASE, X2APIC) == FAULT
            assert await cpu.host_msr_write(TSC_ADJUST, 9) == TAKEN
            assert (await cpu.host_msr_read(TSC_ADJUST)).data == 9
            await cpu.cr8_write(3)
            assert await cpu.cr8_read() == 3
            await cpu.set_events(VcpuEvents(nmi_pending=2))
            assert (await cpu.events()).nmi_pending == 2
            assert await vm.line(8, without_status=True).raise_() >= -1
            assert await cpu.halt(timeout=PATIENCE) == Signal(SignalKind.NMI)
            await vm.delete()

    asyncio.run(main())

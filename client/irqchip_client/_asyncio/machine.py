"""The calls that a Vm and a Session have in common: on lines, vCPUs and chips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from irqchip_client import ops
from irqchip_client._call import Call
from irqchip_client._errors import InvalidArgument, NotReady, SessionClosed
from irqchip_client._model import (
    Access,
    Advance,
    Claim,
    Interrupt,
    InterruptSource,
    MpState,
    MsrAccess,
    Route,
    Signal,
    SysregAccess,
    VcpuEvents,
    Wake,
)
from irqchip_client.arm64 import PSCI_0_2, gsi_or_line

if TYPE_CHECKING:
    from irqchip_client._state import Chip, IoapicState, LapicState, PicState, PitState
    from irqchip_client.s390 import InterruptMasks, S390Irq, VcpuReset

T = TypeVar("T")


class Machine:
    """The calls that a Vm and a Session have in common. A Vm makes an RPC per call; a Session sends batches."""

    def vcpu(self, vcpu: int) -> Vcpu:
        """A handle on a vCPU. No I/O: if there is no such vCPU, the handle's first call raises NotFound."""
        return Vcpu(self, vcpu)

    async def create_vcpu(self, vcpu: int) -> Vcpu:
        """KVM_CREATE_VCPU. AlreadyExists if the id is taken, InvalidArgument if it is out of range."""
        await self._call(ops.create_vcpu(vcpu))
        return Vcpu(self, vcpu)

    def line(self, gsi: int, *, without_status: bool = False) -> Line:
        """A handle on a GSI, or on a line of an arm64 VM: arm64.spi(4), arm64.ppi(1, 20). No I/O.

        without_status  drive the line with KVM_IRQ_LINE instead of KVM_IRQ_LINE_STATUS. The two differ for the RTC's
                        GSI 8: an edge is then delivered even if the guest has not ended the last tick, and is not
                        counted as a tick
        """
        return Line(self, gsi, without_status=without_status)

    def device(self, device: int) -> Attributes:
        """A handle on a device that Vm.create_device() made, by its number. No I/O."""
        return Attributes(self, device, None)

    async def signal_msi(self, address: int, data: int, flags: int = 0) -> int:
        """KVM_SIGNAL_MSI. Returns how many local APICs accepted the MSI, or -1 if it addresses none.

        NotReady (ENODEV) on arm64, and ENOTTY on s390: nothing takes MSIs there.
        """
        return await self._call(ops.signal_msi(address, data, flags))

    async def s390_interrupt(self, type: int, parm: int = 0, parm64: int = 0) -> None:  # noqa: A002
        """KVM_S390_INTERRUPT: a floating interrupt, which any vCPU of an s390 VM may take.

        Busy if the list of its kind is full.
        """
        await self._call(ops.s390_interrupt(type, parm, parm64))

    async def routing(self) -> list[Route]:
        """Returns the GSI routing table, in the order in which it was set. NotReady without an irqchip."""
        return await self._call(ops.get_gsi_routing())

    async def set_routing(self, routes: Iterable[Route]) -> None:
        """KVM_SET_GSI_ROUTING: replaces the table. If KVM refuses it: InvalidArgument, and the old table stays."""
        await self._call(ops.set_gsi_routing(routes))

    @overload
    async def get_irqchip(self, chip: Literal[Chip.IOAPIC]) -> IoapicState: ...
    @overload
    async def get_irqchip(self, chip: Literal[Chip.PIC_PRIMARY, Chip.PIC_SECONDARY]) -> PicState: ...
    @overload
    async def get_irqchip(self, chip: Chip) -> PicState | IoapicState: ...
    async def get_irqchip(self, chip: Chip) -> PicState | IoapicState:
        """KVM_GET_IRQCHIP. NotReady without an irqchip."""
        return await self._call(ops.get_irqchip(chip))

    async def set_irqchip(self, chip: Chip, state: PicState | IoapicState | bytes) -> None:
        """KVM_SET_IRQCHIP, from a state or the kernel's struct. NotReady without an irqchip."""
        await self._call(ops.set_irqchip(chip, state))

    async def pit(self) -> PitState:
        """KVM_GET_PIT2. NotReady without a PIT."""
        return await self._call(ops.get_pit())

    async def set_pit(self, state: PitState | bytes) -> None:
        """KVM_SET_PIT2, from a state or the kernel's struct. It reloads the count of every channel.

        With the 72 bytes of struct kvm_pit_state it is KVM_SET_PIT: the flags stay. NotReady without a PIT.
        """
        await self._call(ops.set_pit(state))

    async def set_pit_reinject(self, reinject: bool) -> None:
        """KVM_REINJECT_CONTROL: whether a tick that cannot be delivered waits (the default) or is lost.

        NotReady without a PIT.
        """
        await self._call(ops.set_pit_reinject(reinject))

    async def advance(self, nanoseconds: int) -> Advance:
        """Moves a virtual clock, at most to 2^62 ns. Timers expire in order. InvalidArgument for a real clock.

        The daemon may execute other clients' operations during the advance.
        """
        while True:
            advance = await self._call(ops.advance_clock(nanoseconds))
            if not advance.remaining_ns:
                return advance
            nanoseconds = advance.remaining_ns

    async def _call(self, call: Call[T]) -> T:
        result: T = (await self._run([call]))[0]
        return result

    async def _run(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Makes the calls in order, and raises the first error."""
        raise NotImplementedError


class Vcpu:
    """A vCPU: its accesses, and the interrupts that it takes. Calls raise NotFound if there is no such vCPU."""

    def __init__(self, machine: Machine, vcpu: int) -> None:
        self.id = vcpu
        self._machine = machine

    def __repr__(self) -> str:
        return f"<Vcpu {self.id} of {self._machine!r}>"

    async def pio_read(self, port: int, size: int = 1) -> Access:
        """IN of 1, 2 or 4 bytes."""
        return await self._machine._call(ops.pio_read(self.id, port, size))

    async def pio_write(self, port: int, data: int, size: int = 1) -> Claim:
        """OUT of 1, 2 or 4 bytes. False if no device claims the port."""
        return await self._machine._call(ops.pio_write(self.id, port, data, size))

    async def mmio_read(self, address: int, size: int = 4) -> Access:
        """Load of 1, 2, 4 or 8 bytes from a guest physical address."""
        return await self._machine._call(ops.mmio_read(self.id, address, size))

    async def mmio_write(self, address: int, data: int, size: int = 4) -> Claim:
        """Store of 1, 2, 4 or 8 bytes to a guest physical address. False if no device claims it."""
        return await self._machine._call(ops.mmio_write(self.id, address, data, size))

    async def acknowledge(self, source: InterruptSource = InterruptSource.ANY) -> Interrupt | None:
        """INTA: accepts the interrupt that the vCPU would take now, or returns None."""
        return await self._machine._call(ops.ack_interrupt(self.id, source))

    async def lapic(self) -> LapicState:
        """KVM_GET_LAPIC. InvalidArgument if the vCPU has no local APIC."""
        return await self._machine._call(ops.get_lapic(self.id))

    async def set_lapic(self, state: LapicState | bytes) -> None:
        """KVM_SET_LAPIC, from a state or the kernel's struct. InvalidArgument if the vCPU has no local APIC."""
        await self._machine._call(ops.set_lapic(self.id, state))

    async def msr_read(self, msr: int) -> MsrAccess:
        """RDMSR of IA32_TSC, IA32_TSC_ADJUST, IA32_APIC_BASE, IA32_TSC_DEADLINE, or 800h to 8ffh (x2APIC).

        NotReady without a local APIC.
        """
        return await self._machine._call(ops.msr_read(self.id, msr))

    async def msr_write(self, msr: int, data: int) -> MsrAccess:
        """WRMSR of the MSRs of msr_read(). NotReady if the vCPU has no local APIC."""
        return await self._machine._call(ops.msr_write(self.id, msr, data))

    async def host_msr_read(self, msr: int) -> MsrAccess:
        """KVM_GET_MSRS of one MSR: the host reads, not the guest. NotReady if the vCPU has no local APIC."""
        return await self._machine._call(ops.host_msr_read(self.id, msr))

    async def host_msr_write(self, msr: int, data: int) -> MsrAccess:
        """KVM_SET_MSRS of one MSR: the host writes, not the guest. NotReady without a local APIC.

        IA32_APIC_BASE may change from any mode to any other. Writing IA32_TSC does not change IA32_TSC_ADJUST.
        """
        return await self._machine._call(ops.host_msr_write(self.id, msr, data))

    async def init(self, features: int = PSCI_0_2, target: int | None = None) -> None:
        """KVM_ARM_VCPU_INIT of an arm64 vCPU, which it needs before it runs. None is the preferred target."""
        await self._machine._call(ops.vcpu_init(self.id, features, target=target))

    async def sysreg_read(self, sysreg: int) -> SysregAccess:
        """MRS of an arm64 vCPU: an ICC_ register, ISR_EL1, or one of the generic timer (arm64.SYSREGS)."""
        return await self._machine._call(ops.sysreg_read(self.id, sysreg))

    async def sysreg_write(self, sysreg: int, data: int) -> SysregAccess:
        """MSR of the system registers of sysreg_read()."""
        return await self._machine._call(ops.sysreg_write(self.id, sysreg, data))

    def attributes(self) -> Attributes:
        """The vCPU's attributes: KVM_SET_DEVICE_ATTR and its like on a vCPU. No I/O."""
        return Attributes(self._machine, None, self.id)

    async def set_cpuid(
        self,
        *,
        x2apic: bool = True,
        tsc_deadline: bool = True,
        tsc_adjust: bool = True,
        physical_address_bits: int = 52,
    ) -> None:
        """KVM_SET_CPUID2: the features of the guest's CPUID that the local APIC depends on. A new vCPU has all.

        InvalidArgument for less than 32 or more than 52 bits; NotReady if the vCPU has no local APIC.
        """
        call = ops.set_cpuid(
            self.id,
            x2apic=x2apic,
            tsc_deadline=tsc_deadline,
            tsc_adjust=tsc_adjust,
            physical_address_bits=physical_address_bits,
        )
        await self._machine._call(call)

    async def cr8_read(self) -> int:
        """MOV from CR8: the upper half of TPR, even if the local APIC is disabled. NotReady without a local APIC."""
        return await self._machine._call(ops.cr8_read(self.id))

    async def cr8_write(self, value: int) -> None:
        """MOV to CR8. InvalidArgument above 15; NotReady without a local APIC."""
        await self._machine._call(ops.cr8_write(self.id, value))

    async def events(self) -> VcpuEvents:
        """KVM_GET_VCPU_EVENTS: the events that wait for the vCPU outside of any chip. NotReady without a local APIC."""
        return await self._machine._call(ops.get_vcpu_events(self.id))

    async def set_events(self, events: VcpuEvents) -> None:
        """KVM_SET_VCPU_EVENTS. A field that is None keeps its value.

        InvalidArgument for a number above 255; NotReady without a local APIC.
        """
        await self._machine._call(ops.set_vcpu_events(self.id, events))

    async def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: with a split irqchip, the VMM's PIC sends the vCPU an external interrupt.

        AlreadyExists until the vCPU has taken the last one; NotReady if irqchipd holds the PIC, or the vCPU has no
        local APIC.
        """
        await self._machine._call(ops.interrupt(self.id, vector))

    async def nmi(self) -> None:
        """KVM_NMI. NotReady if the vCPU has no local APIC."""
        await self._machine._call(ops.nmi(self.id))

    async def mp_state(self) -> MpState:
        """KVM_GET_MP_STATE: the vCPU's run state."""
        return await self._machine._call(ops.get_mp_state(self.id))

    async def set_mp_state(self, state: MpState) -> None:
        """KVM_SET_MP_STATE. InvalidArgument for any state but RUNNABLE if the vCPU has no local APIC."""
        await self._machine._call(ops.set_mp_state(self.id, state))

    async def s390_irq(self, irq: S390Irq | bytes) -> None:
        """KVM_S390_IRQ: an interrupt of an s390 vCPU alone. Busy if it can be pending once, and is pending already."""
        await self._machine._call(ops.s390_irq(self.id, irq))

    async def irq_state(self) -> list[S390Irq]:
        """KVM_S390_GET_IRQ_STATE: the s390 vCPU's own interrupts that are pending."""
        return await self._machine._call(ops.get_irq_state(self.id))

    async def set_irq_state(self, irqs: Iterable[S390Irq]) -> None:
        """KVM_S390_SET_IRQ_STATE: adds interrupts to an s390 vCPU that has none. Busy if it has some."""
        await self._machine._call(ops.set_irq_state(self.id, irqs))

    async def interrupt_masks(self) -> InterruptMasks:
        """The masks that are set."""
        return await self._machine._call(ops.get_interrupt_masks(self.id))

    async def set_interrupt_masks(self, masks: InterruptMasks) -> None:
        """Reports the masks that an s390 guest has written to its PSW and control registers."""
        await self._machine._call(ops.set_interrupt_masks(self.id, masks))

    async def take_irq(self) -> S390Irq | None:
        """Takes the interrupt that the s390 vCPU's masks allow and that has the highest priority, or returns None.

        The vCPU's process then exchanges the PSW, and reports the new masks.
        """
        return await self._machine._call(ops.take_irq(self.id))

    async def reset(self, reset: VcpuReset) -> None:
        """KVM_S390_NORMAL_RESET, KVM_S390_INITIAL_RESET or KVM_S390_CLEAR_RESET."""
        await self._machine._call(ops.reset_vcpu(self.id, reset))

    async def take_signal(self) -> Signal | None:
        """Takes one signal that waits for the vCPU. None if no signal waits.

        The order is INIT, SIPI, an injected NMI, SMI, NMI. While the vCPU waits for INIT or SIPI, it takes no SMI and
        no NMI. An INIT discards them. NotReady without a local APIC.
        """
        return await self._machine._call(ops.take_signal(self.id))

    async def halt(self, *, interrupts_masked: bool = False, timeout: float | None = None) -> Wake:
        """HLT: waits until the vCPU has an interrupt or a signal to take, and takes it.

        WFI on arm64: waits until an interrupt would wake the vCPU, whatever PSTATE masks. Nothing is taken, and the
        Interrupt reports whether IRQ or FIQ is asserted.

        A vCPU that has not started also waits for INIT or SIPI with halt().

        interrupts_masked  the guest's RFLAGS.IF is 0, so that no interrupt ends the halt
        timeout            seconds after which halt() raises TimedOut, and has taken nothing; None: no limit

        Busy while the vCPU halts already; NotReady if it has no local APIC. Ctrl-C, or cancelling the task, gives the
        halt up. A Session's halt has then taken nothing. A Vm's halt loses an interrupt that is on its way.
        """
        call = ops.halt(self.id, interrupts_masked=interrupts_masked, timeout=timeout)
        return await self._machine._call(call)


class Attributes:
    """The attributes of a device (Vm.create_device) or a vCPU. The errors are KVM's."""

    def __init__(self, machine: Machine, device: int | None, vcpu: int | None) -> None:
        # Either a device's number or a vCPU's id is set.
        self.device = device
        self.vcpu = vcpu
        self._machine = machine

    def __repr__(self) -> str:
        whose = f"vCPU {self.vcpu}" if self.device is None else f"device {self.device}"
        return f"<Attributes of {whose} of {self._machine!r}>"

    async def set(self, group: int, attr: int, value: int | bytes = 0) -> None:
        """KVM_SET_DEVICE_ATTR. A number is 8 bytes, least first."""
        await self._machine._call(ops.set_device_attr(group, attr, value, device=self.device, vcpu=self.vcpu))

    async def get(self, group: int, attr: int, before: int = 0) -> int:
        """KVM_GET_DEVICE_ATTR of a number of up to 8 bytes; `before` is the buffer's value before the call."""
        return int.from_bytes(await self.get_bytes(group, attr, before), "little")

    async def get_bytes(self, group: int, attr: int, before: int | bytes) -> bytes:
        """KVM_GET_DEVICE_ATTR with a buffer of any length. Returns the buffer's value after the call."""
        return await self._machine._call(ops.get_device_attr(group, attr, before, device=self.device, vcpu=self.vcpu))

    async def has(self, group: int, attr: int) -> bool:
        """KVM_HAS_DEVICE_ATTR."""
        try:
            await self._machine._call(ops.has_device_attr(group, attr, device=self.device, vcpu=self.vcpu))
        except NotReady:
            return False
        return True


class Line:
    """A GSI, driven by a Session's line source, or through a Vm by source 0. `async with line:` holds it high.

    On arm64 it is an SPI or a PPI, by KVM's number (arm64.spi, arm64.ppi), and the status is always 0.

    Each method returns the status of KVM_IRQ_LINE_STATUS, summed over the chips that the GSI leads to: -1 masked or
    ignored; 0 coalesced with an interrupt that is still pending; 1 or more the number of deliveries. Lowering a line
    adds 1 per chip.

    A GSI that the Session resamples stays high until its interrupt is acknowledged, and then goes low. lower() and
    pulse() raise InvalidArgument, and the end of `with line:` does not lower such a line.
    """

    def __init__(self, machine: Machine, gsi: int, *, without_status: bool = False) -> None:
        self.gsi = gsi
        self._machine = machine
        self._raise = partial(ops.irq_line, gsi, True, without_status=without_status)
        self._lower = partial(ops.irq_line, gsi, False, without_status=without_status)

    def __repr__(self) -> str:
        return f"<Line of {gsi_or_line(self.gsi)} of {self._machine!r}>"

    async def raise_(self) -> int:
        """Drives the line high."""
        return await self._machine._call(self._raise())

    async def lower(self) -> int:
        """Stops driving the line high. The line stays high while another line source drives it."""
        return await self._machine._call(self._lower())

    async def pulse(self) -> int:
        """Raises and lowers the line: an edge. Returns the status of raising it."""
        raised, _ = await self._machine._run([self._raise(), self._lower()])
        return int(raised)

    async def __aenter__(self) -> Self:
        await self.raise_()
        return self

    async def __aexit__(self, *_: object) -> None:
        # Not needed: the Session's end dropped the level, and a resampled line goes low by itself.
        with suppress(SessionClosed, InvalidArgument):
            await self.lower()

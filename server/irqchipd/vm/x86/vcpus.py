"""The operations of an x86 vCPU besides accesses and halts: its registers, its interrupts and its run state."""

from __future__ import annotations

import errno
from typing import Final

from irqchipd.chips.fault import FAULT
from irqchipd.chips.lapic import ADDRESS_BITS, LEAST_ADDRESS_BITS, Features, Msr
from irqchipd.chips.lapic_registers import Reg
from irqchipd.chips.message import DeliveryMode
from irqchipd.vm.errors import VmError, invalid
from irqchipd.vm.vcpu_state import MpState, Signal, Taken
from irqchipd.vm.x86.capabilities import Capabilities
from irqchipd.vm.x86.lapic_copy import LapicCopy
from irqchipd.vm.x86.vcpu_state import MP_STATES, VcpuEvents

_X2APIC_EOI: Final = Msr.X2APIC + (Reg.EOI >> 4)


class X86Vcpus(Capabilities):
    """The operations of a VM's vCPUs."""

    def set_cpuid(self, vcpu: int, features: Features) -> None:
        """KVM_SET_CPUID2, for the features of the local APIC: EINVAL for addresses of too few or too many bits."""
        with self._turn:
            lapic = self._lapic(vcpu, errno.ENXIO)
            if not LEAST_ADDRESS_BITS <= features.address_bits <= ADDRESS_BITS:
                bits = f"{LEAST_ADDRESS_BITS} to {ADDRESS_BITS}"
                raise invalid(f"physical addresses of {features.address_bits} bits are invalid; use {bits}")
            lapic.set_features(features, ioapic=self._pc.ioapic is not None)
            self._cpu(vcpu).publish()

    # host: the VMM accesses the register, with KVM_GET_MSRS or KVM_SET_MSRS, which does not enter the guest.

    def msr_read(self, vcpu: int, msr: int, *, host: bool = False) -> int | None:
        """A vCPU's RDMSR: the value, FAULT, or None for a register that is not the local APIC's."""
        with self._turn:
            _check_msr(msr)
            if not host:
                self._enter(vcpu)
            result = self._lapic(vcpu, errno.ENXIO).read_msr(msr)
            if not host and result is not None and self._pc.observer is not None:
                fault = result == FAULT
                self._pc.observer.kvm_msr(False, msr, 0 if fault else result, fault, vcpu)
            return result

    def msr_write(self, vcpu: int, msr: int, value: int, *, host: bool = False) -> int | None:
        """A vCPU's WRMSR: 0, FAULT, or None for a register that is not the local APIC's."""
        with self._turn:
            _check_msr(msr)
            if value >> 64:
                raise invalid(f"value {value:#x} does not fit into a model-specific register, which has 64 bits")
            if not host:
                self._enter(vcpu)
            result = self._lapic(vcpu, errno.ENXIO).write_msr(msr, value, host=host)
            if not host and result is not None and self._pc.observer is not None:
                self._pc.observer.kvm_msr(True, msr, value, result == FAULT, vcpu)
            if msr != _X2APIC_EOI:
                self._cpu(vcpu).publish()
            return result

    def cr8_read(self, vcpu: int) -> int:
        """A vCPU's MOV from CR8."""
        with self._turn:
            self._enter(vcpu)
            value = self._lapic(vcpu, errno.ENXIO).cr8
            if self._pc.observer is not None:
                self._pc.observer.kvm_cr(False, 8, value, vcpu)
            return value

    def cr8_write(self, vcpu: int, value: int) -> None:
        """A vCPU's MOV to CR8: EINVAL for more than four bits, which would be a fault."""
        with self._turn:
            if not 0 <= value <= 0xF:
                raise invalid(f"CR8 is {value:#x}; it has 4 bits: use 0 to 15")
            cpu = self._enter(vcpu)
            lapic = self._lapic(vcpu, errno.ENXIO)
            if self._pc.observer is not None:
                self._pc.observer.kvm_cr(True, 8, value, vcpu)
            lapic.write_cr8(value)
            cpu.publish()

    # A copy of the local APIC's registers.

    def share_lapic(self, vcpu: int, copy: LapicCopy) -> None:
        """Keep a copy until unshare_lapic or the VM's end: EBUSY with another copy, ENXIO without a local APIC."""
        with self._turn:
            self._lapic(vcpu, errno.ENXIO)
            cpu = self._cpu(vcpu)
            if cpu.copy is not None:
                raise VmError(errno.EBUSY, f"the local APIC of vCPU {vcpu} of VM {self.name!r} is shared already")
            cpu.keep_copy(copy)
            cpu.publish()

    def unshare_lapic(self, vcpu: int, copy: LapicCopy) -> None:
        """Undo share_lapic, of a deleted VM, too."""
        with self.agenda.lock:
            cpu = self._pc.cpu_of[vcpu]
            if cpu.copy is copy:
                cpu.forget_copy()

    # The CPU side.

    def ack_interrupt(self, vcpu: int, pic: bool = True, lapic: bool = True) -> Taken | None:
        """INTA: accept what the vCPU would take now, and return the vector and whether the PIC gave it, or None."""
        with self._turn:
            cpu = self._enter(vcpu)
            self._lapic(vcpu, errno.ENXIO)
            return cpu.take_interrupt(pic, lapic)

    def take_signal(self, vcpu: int) -> Signal | None:
        """Take a pending INIT, start-up, SMI or NMI, in this order, or None."""
        with self._turn:
            self._lapic(vcpu, errno.ENXIO)
            return self._cpu(vcpu).take_signal()

    def interrupt(self, vcpu: int, vector: int) -> None:
        """KVM_INTERRUPT: the PIC of a VMM with a split irqchip interrupts. KVM: x86.c kvm_vcpu_ioctl_interrupt."""
        with self._turn:
            cpu = self._cpu(vcpu)
            if not 0 <= vector <= 0xFF:
                raise invalid(f"vector {vector} is out of range: use 0 to 255")
            self._lapic(vcpu, errno.ENXIO)
            if self._pc.pic is not None:
                raise VmError(errno.ENXIO, f"VM {self.name!r} has its PICs in irqchipd; drive their lines instead")
            if cpu.external_vector is not None:
                raise VmError(errno.EEXIST, f"vCPU {vcpu} has not taken vector {cpu.external_vector} yet")
            cpu.external_vector = vector
            cpu.priorities_changed()

    def nmi(self, vcpu: int) -> None:
        """KVM_NMI."""
        with self._turn:
            self._lapic(vcpu, errno.ENXIO)
            self._cpu(vcpu).signal(DeliveryMode.NMI, 0)

    def get_events(self, vcpu: int) -> VcpuEvents:
        """KVM_GET_VCPU_EVENTS."""
        with self._turn:
            self._lapic(vcpu, errno.ENXIO)
            return self._cpu(vcpu).events()

    def set_events(self, vcpu: int, events: VcpuEvents) -> None:
        """KVM_SET_VCPU_EVENTS: EINVAL for a number that has more than 8 bits."""
        with self._turn:
            self._lapic(vcpu, errno.ENXIO)
            for name in ("nmi_pending", "interrupt_vector", "sipi_vector"):
                value = getattr(events, name)
                if value is not None and not 0 <= value <= 0xFF:
                    raise invalid(f"{name} is {value}; 0 to 255 are allowed")
            self._cpu(vcpu).set_events(events)

    def get_mp_state(self, vcpu: int) -> MpState:
        """KVM: x86.c kvm_arch_vcpu_ioctl_get_mpstate."""
        with self._turn:
            cpu = self._cpu(vcpu)
            return MpState.RUNNABLE if cpu.is_halted and cpu.unhalted else cpu.mp_state

    def set_mp_state(self, vcpu: int, state: int) -> None:
        """EINVAL for an invalid state, and for any but RUNNABLE without a local APIC."""
        with self._turn:
            cpu = self._cpu(vcpu)
            if state not in MP_STATES:
                states = ", ".join(f"{known} {known.name}" for known in MP_STATES)
                raise invalid(f"run state {state} is invalid; there are {states}")
            if cpu.lapic is None and state != MpState.RUNNABLE:
                raise invalid(f"vCPU {vcpu} has no local APIC: its run state can only be RUNNABLE")
            match state:
                case MpState.RUNNABLE:
                    cpu.run()
                case MpState.SIPI_RECEIVED:  # KVM: x86.c kvm_arch_vcpu_ioctl_set_mpstate
                    cpu.mp_state = MpState.INIT_RECEIVED
                    cpu.signal(DeliveryMode.STARTUP, cpu.last_sipi)
                case _:
                    cpu.mp_state = MpState(state)
            cpu.priorities_changed()

    def _check_halt(self, vcpu: int) -> None:
        self._lapic(vcpu, errno.ENXIO)


def _check_msr(msr: int) -> None:
    if msr >> 32:
        raise invalid(f"model-specific register {msr:#x} does not fit into 32 bits")

"""One vocabulary for the kernel and irqchipd: the operations of the golden traces and some more, and their answers.

An operation is a list of its name and arguments. An answer is any JSON value; an errno is written like "-EINVAL".
In addition to the golden traces' operations there are

    create_irqchip                  0 or an errno
    enable_cap      number, *args   0 or an errno
    create_vcpu     vcpu            0 or an errno; the vCPU is runnable
    set_lapic       vcpu, hex       0 or an errno; struct kvm_lapic_state
    get_lapic_page  vcpu            struct kvm_lapic_state, hex, without what depends on time (see comparable_page)
    set_pit         hex             0 or an errno; struct kvm_pit_state2
    pit_reinject    0 or 1          0 or an errno
    get_mp_state    vcpu            the number
    set_mp_state    vcpu, number    0 or an errno
    pio_touch       vcpu, port, size    null; a pio_read whose answer depends on time
    interrupt       vcpu, vector    0 or an errno
    nmi             vcpu            0 or an errno
    set_boot_cpu_id vcpu            0 or an errno
    create_bare_vcpu  vcpu          0 or an errno; no guest runs on it, and the kernel has no CPUID for it
    set_cpuid       vcpu, [name], n 0 or an errno; a CPUID without the named features, with n-bit addresses
    host_msr_read   vcpu, number    as msr_read, by KVM_GET_MSRS
    host_msr_write  vcpu, number, n as msr_write, by KVM_SET_MSRS
    cr8_read        vcpu            the value
    cr8_write       vcpu, number    null
    irq_line_without_status  gsi, n null; KVM_IRQ_LINE
    get_events      vcpu            interrupt injected, its number; NMI injected, pending, masked
    set_events      vcpu, [2], n, n or null, n, n or null  the same, the NMIs pending optional; and a SIPI's vector
    get_old_pit     KVM_GET_PIT, as get_pit
    set_old_pit     hex             0 or an errno; struct kvm_pit_state

    take            vcpu            the vector delivered when the vCPU opens its interrupt window once, or null;
                                    the guest then ends it at its local APIC
    take_if_enabled vcpu            the same, or null where its local APIC is disabled by IA32_APIC_BASE: some KVMs end
                                    interrupts in service there, too
    take_nmis       vcpu            how many NMIs were pending; none is delivered
    await_tick                      whether the PIT's tick, which is due at once, has reached the primary PIC's IRR
    visit           vcpu            null; afterwards an expiry of its timer is in its IRR
    ended           vcpu            the vectors of EOIs reported to a VMM's IOAPIC since the last call
    start_page      vcpu            the page from the SIPI

    resampler       gsi             the number of a new resampler of the GSI, from 0
    assert_gsi      number          null; the resampler asserts its GSI
    resampled       number          how many acknowledgements it was notified of since the last call
    drop            number          null; the resampler is removed

An unclaimed access answers "unclaimed". Of the golden traces' operations, take_extint is missing: not
every kernel's KVM can do it alone (see kernel_machine.py).
"""

from __future__ import annotations

from typing import Any, Protocol

from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import BASE_ADDRESS, Reg

Op = list[Any]
Answer = Any

UNCLAIMED = "unclaimed"
EOI_MSR = Msr.X2APIC + (Reg.EOI >> 4)  # the EOI register of an x2APIC; an xAPIC has no MSRs


class Machine(Protocol):
    """A VM that performs operations."""

    @property
    def tsc_khz(self) -> int:
        """The frequency of the vCPUs' TSCs."""

    def perform(self, op: Op) -> Answer:
        """Execute an operation; returns its answer."""

    def close(self) -> None:
        """Release the machine."""


def eoi_address(base: int | None) -> int:
    """An xAPIC's EOI register, by its IA32_APIC_BASE."""
    assert base is not None
    return (base & BASE_ADDRESS) + Reg.EOI


def comparable_page(page: bytes) -> bytes:
    """A local APIC's registers without those that depend on the time of reading.

    PPR has the value of the kernel's last update, at entries into the guest and some other times (lapic.c
    apic_update_ppr); a guest always reads the current PPR. A running timer's current count depends on time.
    """
    words = bytearray(page)
    words[Reg.PPR : Reg.PPR + 4] = bytes(4)
    if any(words[Reg.TIMER_INITIAL_COUNT : Reg.TIMER_INITIAL_COUNT + 4]):
        words[Reg.TIMER_CURRENT_COUNT : Reg.TIMER_CURRENT_COUNT + 4] = bytes(4)
    return bytes(words)

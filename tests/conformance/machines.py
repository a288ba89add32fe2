"""The kernel and irqchipd behind one vocabulary: the operations of the golden traces, and their answers.

An operation is a list of its name and arguments, an answer whatever JSON can hold; an errno is "-EINVAL" and its like.
Beyond the golden traces there are

    create_irqchip                  0 or an errno
    enable_cap      number, *args   0 or an errno
    create_vcpu     vcpu            0 or an errno; it is runnable
    set_lapic       vcpu, hex       0 or an errno; struct kvm_lapic_state
    get_lapic_page  vcpu            struct kvm_lapic_state, hex, without what depends on time (see comparable_page)
    set_pit         hex             0 or an errno; struct kvm_pit_state2
    pit_reinject    0 or 1          0 or an errno
    get_mp_state    vcpu            the number
    set_mp_state    vcpu, number    0 or an errno
    pio_touch       vcpu, port, size    null; a pio_read whose answer depends on the time
    interrupt       vcpu, vector    0 or an errno
    nmi             vcpu            0 or an errno
    set_boot_cpu_id vcpu            0 or an errno
    create_bare_vcpu  vcpu          0 or an errno; no guest runs on it, and its CPUID has nothing in the kernel
    set_cpuid       vcpu, [name], n 0 or an errno; it lacks what is named, and addresses have n bits
    host_msr_read   vcpu, number    as msr_read, by KVM_GET_MSRS
    host_msr_write  vcpu, number, n as msr_write, by KVM_SET_MSRS
    cr8_read        vcpu            the value
    cr8_write       vcpu, number    null
    irq_line_without_status  gsi, n null; KVM_IRQ_LINE
    get_events      vcpu            interrupt injected, its number; NMI injected, pending, masked
    set_events      vcpu, [2], n, n or null, n, n or null  the same, the NMIs pending optional; and a SIPI's vector
    get_old_pit     KVM_GET_PIT, as get_pit
    set_old_pit     hex             0 or an errno; struct kvm_pit_state

    take            vcpu            the vector that it gets when it opens its interrupt window once, or null; its
                                    local APIC is told EOI
    take_if_enabled vcpu            the same, or null where its local APIC is disabled by IA32_APIC_BASE: some KVMs end
                                    what is in service there, too
    take_nmis       vcpu            how many NMIs waited for it; it got none of them
    await_tick                      whether the PIT's tick, which is due at once, has reached the primary PIC's IRR
    visit           vcpu            null; what its timer has done is in its IRR
    ended           vcpu            the vectors whose EOI left for a VMM's IOAPIC since the last time
    start_page      vcpu            what SIPI gave it

    resampler       gsi             the number of a new resampler of the GSI, from 0
    assert_gsi      number          null; it asserts its GSI
    resampled       number          how often it was told of an acknowledgement since the last time
    drop            number          null; it is no more

and an access that is not claimed answers "unclaimed". Of the golden traces' operations, take_extint is not here: not
every kernel's KVM could do it alone (see kernel_machine.py).
"""

from __future__ import annotations

from typing import Any, Protocol

from irqchipd.chips.lapic import Msr
from irqchipd.chips.lapic_registers import BASE_ADDRESS, Reg

Op = list[Any]
Answer = Any

UNCLAIMED = "unclaimed"
EOI_MSR = Msr.X2APIC + (Reg.EOI >> 4)  # of an x2APIC; an xAPIC has none


class Machine(Protocol):
    """A VM that performs operations."""

    @property
    def tsc_khz(self) -> int:
        """The frequency of its vCPUs' TSCs."""

    def perform(self, op: Op) -> Answer:
        """Perform one and give its answer."""

    def close(self) -> None:
        """It is no longer needed."""


def eoi_address(base: int | None) -> int:
    """An xAPIC's EOI register, by its IA32_APIC_BASE."""
    assert base is not None
    return (base & BASE_ADDRESS) + Reg.EOI


def comparable_page(page: bytes) -> bytes:
    """A local APIC's registers without those that depend on when they are read.

    PPR is what it was when the kernel last looked, which is at every entry of the guest and some others (lapic.c
    apic_update_ppr); a guest that reads it always gets it fresh. A running timer's current count is time.
    """
    words = bytearray(page)
    words[Reg.PPR : Reg.PPR + 4] = bytes(4)
    if any(words[Reg.TIMER_INITIAL_COUNT : Reg.TIMER_INITIAL_COUNT + 4]):
        words[Reg.TIMER_CURRENT_COUNT : Reg.TIMER_CURRENT_COUNT + 4] = bytes(4)
    return bytes(words)

"""One vCPU's own interrupts. KVM: struct kvm_s390_local_interrupt, interrupt.c do_inject_vcpu.

This module follows KVM on a machine that does not interpret SIGP (sclp.has_sigpif): external calls are pending here.
"""

from __future__ import annotations

import errno
from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Final

from irqchipd.chips.s390.errors import RefusedError, invalid
from irqchipd.chips.s390.irq import (
    IRQ_SIZE,
    External,
    Irq,
    Kind,
    MachineCheck,
    Program,
    not_local,
    pack,
    unpack,
    unpack_all,
)
from irqchipd.chips.s390.pending import Pend
from irqchipd.chips.saved import check, in_range

PROGRAM_PER: Final = 0x80  # PGM_PER: the code of a PER event, which may be added to another code
ILC_VALID: Final = 0x01
ILC_MASK: Final = 0x06
STORE_STATUS: Final = 0x01  # KVM_S390_STOP_FLAG_STORE_STATUS

# The bits of a machine check's interruption code for its kind.
MCIC_EXIGENT: Final = 1 << 63 | 1 << 62
MCIC_REPRESSIBLE: Final = 1 << 58 | 1 << 56 | 1 << 55

MAX_CPUS: Final = 255  # KVM_MAX_VCPUS
MAX_STATE: Final = (MAX_CPUS + 32) * IRQ_SIZE  # VCPU_IRQS_MAX_BUF

_KNOWN: Final = (
    1 << Pend.SET_PREFIX
    | 1 << Pend.RESTART
    | 1 << Pend.SIGP_STOP
    | 1 << Pend.PFAULT_INIT
    | 1 << Pend.CPU_TIMER
    | 1 << Pend.CLOCK_COMPARATOR
    | 1 << Pend.EXTERNAL_CALL
    | 1 << Pend.EMERGENCY
    | 1 << Pend.REPRESSIBLE
    | 1 << Pend.PROGRAM
    | 1 << Pend.EXIGENT
)
_CHECK_BITS: Final = 1 << Pend.EXIGENT | 1 << Pend.REPRESSIBLE


_NO_PROGRAM: Final = pack(Irq(Kind.PROGRAM, Program()))
_NO_PFAULT: Final = pack(Irq(Kind.PFAULT_INIT, External()))
_NO_CHECK: Final = pack(Irq(Kind.MACHINE_CHECK, MachineCheck()))


@dataclass(frozen=True, slots=True)
class SavedLocal:
    """A vCPU's interrupts in a snapshot: the pending bits, and the contents that KVM keeps once each.

    The last three are struct kvm_s390_irq.
    """

    pending: int = 0
    stopped: bool = False
    emergencies: bytes = b""
    caller: int = 0
    prefix: int = 0
    stop_flags: int = 0
    program: bytes = _NO_PROGRAM
    pfault: bytes = _NO_PFAULT
    machine_check: bytes = _NO_CHECK


class LocalInterrupts:
    """The pending interrupts of one vCPU. cpus are the ids of all vCPUs of the VM."""

    def __init__(self, cpus: Container[int]) -> None:
        self._cpus = cpus
        self.stopped = False  # the vCPU's operating state: a stop and set prefix depend on it
        self.clear()

    def clear(self) -> None:
        """Drop all interrupts, as each reset of a vCPU does. KVM: kvm_s390_clear_local_irqs."""
        self.pending = 0  # one bit each: Pend
        self._emergencies = 0  # the CPUs that sent an emergency signal, one bit each
        self._caller = 0
        self._prefix = 0
        self._stop_flags = 0
        self._program = Program()
        self._pfault = External()
        self._check = MachineCheck()

    @property
    def cr14(self) -> int:
        """The subclasses of the machine check."""
        return self._check.cr14

    # Adding.

    def add(self, irq: Irq) -> None:
        """Add an interrupt, or refuse it. KVM: do_inject_vcpu."""
        kind, info = irq.kind, irq.info
        if isinstance(info, Program):
            self._add_program(info)
        elif isinstance(info, MachineCheck):
            self._add_machine_check(info)
        elif isinstance(info, External) and kind == Kind.PFAULT_INIT:
            self._pfault = info
            self.pending |= 1 << Pend.PFAULT_INIT
        elif isinstance(info, int):
            self._add_number(kind, info)
        elif kind == Kind.RESTART:
            self.pending |= 1 << Pend.RESTART
        elif kind == Kind.CLOCK_COMPARATOR:
            self.pending |= 1 << Pend.CLOCK_COMPARATOR
        elif kind == Kind.CPU_TIMER:
            self.pending |= 1 << Pend.CPU_TIMER
        else:
            raise not_local(kind)

    def _add_number(self, kind: int, number: int) -> None:
        if kind == Kind.EMERGENCY:
            self._check_cpu(number)
            self._emergencies |= 1 << number
            self.pending |= 1 << Pend.EMERGENCY
        elif kind == Kind.EXTERNAL_CALL:
            self._check_cpu(number)
            self._check_absent(Pend.EXTERNAL_CALL, "an external call")
            self._caller = number
            self.pending |= 1 << Pend.EXTERNAL_CALL
        elif kind == Kind.SET_PREFIX:
            if not self.stopped:
                raise RefusedError(errno.EBUSY, "the vCPU's prefix can only be set while it is stopped: stop it first")
            self._prefix = number
            self.pending |= 1 << Pend.SET_PREFIX
        else:
            self._add_stop(number)

    def _add_stop(self, flags: int) -> None:
        """KVM: __inject_sigp_stop; a stopped vCPU ignores a stop."""
        if flags & ~STORE_STATUS:
            raise invalid(f"a stop's flags are {flags:#x}; use 0, or {STORE_STATUS} to store the status")
        if self.stopped:
            return
        self._check_absent(Pend.SIGP_STOP, "a stop")
        self._stop_flags = flags
        self.pending |= 1 << Pend.SIGP_STOP

    def _check_cpu(self, cpu: int) -> None:
        if cpu not in self._cpus:
            raise invalid(f"the sender is vCPU {cpu}, which does not exist: use a vCPU of this VM")

    def _check_absent(self, bit: int, what: str) -> None:
        if self.pending & 1 << bit:
            raise RefusedError(errno.EBUSY, f"{what} is already pending: wait until the vCPU has taken it")

    def _add_program(self, new: Program) -> None:
        """KVM: __inject_prog. Without a valid length code, KVM asks the hardware; here it is 0."""
        if not new.flags & ILC_VALID:
            new = replace(new, flags=new.flags & ~ILC_MASK | ILC_VALID)
        old = self._program
        if new.code == PROGRAM_PER:  # only the PER event
            self._program = replace(
                old,
                code=old.code | PROGRAM_PER,
                flags=new.flags,
                per_address=new.per_address,
                per_code=new.per_code,
                per_atmid=new.per_atmid,
                per_access_id=new.per_access_id,
            )
        elif new.code & PROGRAM_PER:
            self._program = new
        else:  # all but the PER event
            self._program = replace(
                new,
                code=old.code & PROGRAM_PER | new.code,
                per_address=old.per_address,
                per_code=old.per_code,
                per_atmid=old.per_atmid,
                per_access_id=old.per_access_id,
            )
        self.pending |= 1 << Pend.PROGRAM

    def _add_machine_check(self, new: MachineCheck) -> None:
        """KVM: __inject_mchk; conditions are combined, and the other fields are the last machine check's."""
        old = self._check
        self._check = MachineCheck(
            cr14=old.cr14 | new.cr14,
            mcic=old.mcic | new.mcic,
            failing_storage_address=new.failing_storage_address,
            ext_damage_code=old.ext_damage_code | new.ext_damage_code,
            fixed_logout=new.fixed_logout,
        )
        if self._check.mcic & MCIC_EXIGENT:
            self.pending |= 1 << Pend.EXIGENT
        elif self._check.mcic & MCIC_REPRESSIBLE:
            self.pending |= 1 << Pend.REPRESSIBLE

    # Taking.

    def take_emergency(self) -> Irq:
        """The emergency signal of the sender with the lowest CPU address. KVM: __deliver_emergency_signal."""
        lowest = self._emergencies & -self._emergencies
        self._emergencies ^= lowest
        if not self._emergencies:
            self.pending &= ~(1 << Pend.EMERGENCY)
        return Irq(Kind.EMERGENCY, lowest.bit_length() - 1)

    def take_machine_check(self) -> MachineCheck:
        """The pending machine check, or all zeros. KVM: __deliver_machine_check, its first half."""
        if not self.pending & _CHECK_BITS:
            return MachineCheck()
        taken, self._check = self._check, MachineCheck()
        self.pending &= ~_CHECK_BITS
        return taken

    def take(self, bit: int) -> Irq:
        """A pending interrupt of another kind."""
        irq = self._stored(bit)
        self.pending &= ~(1 << bit)
        if bit == Pend.PROGRAM:
            self._program = Program()
        elif bit == Pend.PFAULT_INIT:
            self._pfault = replace(self._pfault, parameter2=0)
        elif bit == Pend.EXTERNAL_CALL:
            self._caller = 0
        elif bit == Pend.SET_PREFIX:
            self._prefix = 0
        elif bit == Pend.SIGP_STOP:
            self._stop_flags = 0
        return irq

    def _stored(self, bit: int) -> Irq:
        """KVM: store_local_irq."""
        if bit in (Pend.EXIGENT, Pend.REPRESSIBLE):
            return Irq(Kind.MACHINE_CHECK, self._check)
        if bit == Pend.PROGRAM:
            return Irq(Kind.PROGRAM, self._program)
        if bit == Pend.PFAULT_INIT:
            return Irq(Kind.PFAULT_INIT, self._pfault)
        if bit == Pend.EXTERNAL_CALL:
            return Irq(Kind.EXTERNAL_CALL, self._caller)
        if bit == Pend.SET_PREFIX:
            return Irq(Kind.SET_PREFIX, self._prefix)
        if bit == Pend.SIGP_STOP:
            return Irq(Kind.SIGP_STOP, self._stop_flags)
        return Irq(_KIND_OF_BARE[bit])

    def clear_stop(self) -> None:
        """The vCPU has stopped. KVM: kvm_s390_clear_stop_irq."""
        self.pending &= ~(1 << Pend.SIGP_STOP)
        self._stop_flags = 0

    # Reading and writing all.

    def state(self, length: int) -> bytes:
        """An array of struct kvm_s390_irq, in KVM's order; nothing is removed. KVM: kvm_s390_get_irq_state."""
        if length <= 0:
            raise invalid(f"the buffer's length is {length}; use at least {IRQ_SIZE} for each interrupt")
        bits = [bit for bit in range(Pend.EXIGENT + 1) if self.pending >> bit & 1 and bit != Pend.EMERGENCY]
        irqs = [self._stored(bit) for bit in bits]
        if self.pending & 1 << Pend.EMERGENCY:
            senders = range(self._emergencies.bit_length())
            irqs += [Irq(Kind.EMERGENCY, cpu) for cpu in senders if self._emergencies >> cpu & 1]
        if len(irqs) * IRQ_SIZE > length:
            needed = len(irqs) * IRQ_SIZE
            raise RefusedError(
                errno.ENOBUFS, f"the interrupts need {needed} bytes, and the buffer has {length}: use a larger one"
            )
        return b"".join(map(pack, irqs))

    def set_state(self, data: bytes) -> None:
        """Add the interrupts of state(), when none is pending. KVM: kvm_s390_set_irq_state.

        KVM keeps the interrupts before the one that it refuses; here a refused state changes nothing.
        """
        if not data or len(data) > MAX_STATE or len(data) % IRQ_SIZE:
            raise invalid(f"{len(data)} bytes of interrupts; use a multiple of {IRQ_SIZE} up to {MAX_STATE}")
        if self.pending:
            raise RefusedError(errno.EBUSY, "the vCPU has interrupts pending: reset it first")
        before = self.save()
        try:
            for irq in unpack_all(data):
                self.add(irq)
        except RefusedError:
            self.resume(before)
            raise

    def save(self) -> SavedLocal:
        """The state, for resume()."""
        return SavedLocal(
            self.pending,
            self.stopped,
            self._emergencies.to_bytes((self._emergencies.bit_length() + 7) // 8, "little"),
            self._caller,
            self._prefix,
            self._stop_flags,
            pack(Irq(Kind.PROGRAM, self._program)),
            pack(Irq(Kind.PFAULT_INIT, self._pfault)),
            pack(Irq(Kind.MACHINE_CHECK, self._check)),
        )

    def check(self, saved: SavedLocal) -> None:
        """Refuse a state that no vCPU can have."""
        pending = saved.pending
        check(
            not pending & ~_KNOWN, f"a vCPU's pending interrupts are {pending:#x}; only bits of {_KNOWN:#x} can be set"
        )
        emergencies = int.from_bytes(saved.emergencies, "little")
        check(not emergencies >> MAX_CPUS, "a CPU that can't exist has sent an emergency signal")
        signalled = bool(pending & 1 << Pend.EMERGENCY)
        check(signalled == bool(emergencies), "an emergency signal's pending bit contradicts its senders")
        in_range(saved.caller, 0, 0xFFFF, "an external call's sender")
        in_range(saved.prefix, 0, 0xFFFF_FFFF, "a prefix")
        in_range(saved.stop_flags, 0, STORE_STATUS, "a stop's flags")
        check(not (saved.stopped and pending & 1 << Pend.SIGP_STOP), "a stopped vCPU has a pending stop")
        for kind, packed in (
            (Kind.PROGRAM, saved.program),
            (Kind.PFAULT_INIT, saved.pfault),
            (Kind.MACHINE_CHECK, saved.machine_check),
        ):
            check(len(packed) == IRQ_SIZE, f"an interrupt has {len(packed)} bytes, not {IRQ_SIZE}")
            found = int.from_bytes(packed[:8], "big")
            check(found == kind, f"an interrupt's type is {found:#x}; it must be {kind:#x}")

    def resume(self, saved: SavedLocal) -> None:
        """Take a saved state, which check has accepted."""
        self.pending = saved.pending
        self.stopped = saved.stopped
        self._emergencies = int.from_bytes(saved.emergencies, "little")
        self._caller = saved.caller
        self._prefix = saved.prefix
        self._stop_flags = saved.stop_flags
        program, pfault, found = (unpack(packed).info for packed in (saved.program, saved.pfault, saved.machine_check))
        assert isinstance(program, Program)
        assert isinstance(pfault, External)
        assert isinstance(found, MachineCheck)
        self._program, self._pfault, self._check = program, pfault, found


_KIND_OF_BARE: Final = {
    Pend.RESTART: Kind.RESTART,
    Pend.CLOCK_COMPARATOR: Kind.CLOCK_COMPARATOR,
    Pend.CPU_TIMER: Kind.CPU_TIMER,
}

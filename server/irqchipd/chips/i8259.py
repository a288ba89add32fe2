"""The 8259A pair of a PC, as in Linux KVM (arch/x86/kvm/i8259.c), with its edge/level control registers.

Intel 8259A datasheet (231468): ICW1-4 initialise, OCW1 is the mask, OCW2 ends interrupts and rotates, OCW3 selects
the register for reads. ICW1 does not choose between edge and level: each line has a bit in the ELCR.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final, Protocol

CASCADE: Final = 2  # the primary's input that the secondary's output drives
LINES: Final = 8  # inputs of one 8259


class Port:
    """The addresses of the pair on the I/O bus."""

    PRIMARY_COMMAND: Final = 0x20
    PRIMARY_DATA: Final = 0x21
    SECONDARY_COMMAND: Final = 0xA0
    SECONDARY_DATA: Final = 0xA1
    PRIMARY_ELCR: Final = 0x4D0
    SECONDARY_ELCR: Final = 0x4D1


# Command port, datasheet order: ICW1 has bit 4, OCW3 has bit 3, OCW2 neither.
ICW1: Final = 0x10
ICW1_ICW4: Final = 0x01  # an ICW4 will follow
ICW2_BASE: Final = 0xF8
ICW4_AUTO_EOI: Final = 0x02
ICW4_SPECIAL_FULLY_NESTED: Final = 0x10
OCW3: Final = 0x08
OCW3_READ_SELECT: Final = 0x02
OCW3_READ_ISR: Final = 0x01
OCW3_POLL: Final = 0x04
OCW3_SPECIAL_MASK_SELECT: Final = 0x40
OCW3_SPECIAL_MASK: Final = 0x20


class Ocw2:
    """Bits 7:5 of OCW2: rotate, specific level, end of interrupt. Bits 2:0 are the level."""

    CLEAR_ROTATE_ON_AUTO_EOI: Final = 0
    EOI: Final = 1
    NO_OPERATION: Final = 2
    SPECIFIC_EOI: Final = 3
    SET_ROTATE_ON_AUTO_EOI: Final = 4
    ROTATE_ON_EOI: Final = 5
    SET_PRIORITY: Final = 6
    ROTATE_ON_SPECIFIC_EOI: Final = 7


class Expect:
    """What the data port expects next."""

    OCW1: Final = 0
    ICW2: Final = 1
    ICW3: Final = 2
    ICW4: Final = 3


POLL_INTERRUPT: Final = 0x80  # bit 7 of a poll's answer
POLL_NONE: Final = 0x07  # KVM: i8259.c pic_poll_read; a datasheet 8259 leaves the level undefined
SPURIOUS: Final = 7

_STRUCT: Final = struct.Struct("<16B")  # struct kvm_pic_state
STATE_SIZE: Final = _STRUCT.size


class PicWires(Protocol):
    """The calls of the pair to its VM."""

    def pic_acked(self, line: int) -> None:
        """Line 0 to 15 of the pair left service (the kernel's ack notifiers)."""

    def pic_masked(self, line: int, masked: bool) -> None:
        """The mask bit of line 0 to 15 of the pair was changed by OCW1 (the kernel's mask notifiers)."""

    def pic_output(self) -> None:
        """The pair's INTR may have changed."""

    def takes_pic_interrupts(self) -> bool:
        """Whether some vCPU's local APIC passes INTR on to its CPU."""


@dataclass(slots=True)
class I8259:
    """One 8259; the fields are those of struct kvm_pic_state, in its order, and 8 bits wide."""

    # The lines as last seen, for edge detection.
    last_irr: int = 0
    # Interrupt request register. KVM latches it even while masked.
    irr: int = 0
    # Interrupt mask register: 1 blocks the line.
    imr: int = 0
    # In-service register.
    isr: int = 0
    # The line with the highest priority.
    priority_add: int = 0
    # Vector of line 0.
    irq_base: int = 0
    # Whether the command port reads ISR (1) or IRR (0).
    read_reg_select: int = 0
    # Whether the next read is a poll.
    poll: int = 0
    # KVM: i8259.c pic_get_irq; special mask mode is stored and never used.
    special_mask: int = 0
    # What the data port expects. Power-on is Expect.OCW1 with base 0: a PIC never initialised gives vector 1 for IRQ 1.
    init_state: int = Expect.OCW1
    auto_eoi: int = 0
    rotate_on_auto_eoi: int = 0
    special_fully_nested_mode: int = 0
    # Whether ICW1 asked for an ICW4.
    init4: int = 0
    # Edge/level control: 1 makes the line level-triggered.
    elcr: int = 0
    # The ELCR bits a guest may set.
    elcr_mask: int = 0

    def copy(self) -> I8259:
        """An independent copy."""
        return I8259(*_values(self))

    def pack(self) -> bytes:
        """struct kvm_pic_state, 16 bytes."""
        return _STRUCT.pack(*_values(self))

    @classmethod
    def unpack(cls, data: bytes) -> I8259:
        """From struct kvm_pic_state; any 16 bytes are valid, as in the kernel."""
        return cls(*_STRUCT.unpack(data))

    def drive(self, line: int, level: int) -> int:
        """Set a line's level and return KVM's status: -1 masked, 0 coalesced, 1 latched or lowered.

        KVM: i8259.c pic_set_irq1; an edge line raised twice answers 1 the second time, as nothing was coalesced.
        """
        mask = 1 << line
        status = 1
        if level:
            if self.elcr & mask or not self.last_irr & mask:
                status = 0 if self.irr & mask else 1
                self.irr |= mask
            self.last_irr |= mask
        else:
            self.last_irr &= ~mask
            if self.elcr & mask:
                self.irr &= ~mask
        return -1 if self.imr & mask else status

    def priority(self, lines: int) -> int:
        """The priority, 0 highest, of the best of some lines; 8 without a line."""
        if not lines:
            return LINES
        first = self.priority_add & 7
        rotated = (lines >> first | lines << (LINES - first)) & 0xFF
        return (rotated & -rotated).bit_length() - 1

    def line(self, priority: int) -> int:
        """The line that has a priority now."""
        return (priority + self.priority_add) & 7

    def requested(self, ignore_in_service: int = 0) -> int:
        """The line that requests service, or -1: unmasked, with a higher priority than all lines in service."""
        pending = self.irr & ~self.imr
        if not pending:
            return -1
        priority = self.priority(pending)
        if priority < self.priority(self.isr & ~ignore_in_service):
            return self.line(priority)
        return -1


_FIELDS: Final = tuple(field.name for field in fields(I8259))
_values = attrgetter(*_FIELDS)


@dataclass(slots=True)
class PicPair:
    """The primary and secondary 8259, cascaded through line 2. Lines are 0 to 15, the secondary's from 8."""

    wires: PicWires
    primary: I8259
    secondary: I8259
    # INTR, the primary's output. A VM must check it before INTA: without INTR, INTA gets a spurious interrupt.
    output: bool = False
    was_spurious: bool = False  # whether the last INTA was spurious

    @classmethod
    def at_reset(cls, wires: PicWires) -> PicPair:
        """The pair at power-on. KVM: i8259.c kvm_pic_init for the ELCR masks."""
        return cls(wires, I8259(elcr_mask=0xF8), I8259(elcr_mask=0xDE))

    # Inputs.

    def set_line(self, line: int, level: int) -> int:
        """Drive a line, 0 to 15, and return KVM's status (see I8259.drive)."""
        chip = self.primary if line < LINES else self.secondary
        status = chip.drive(line & 7, level)
        self.update()
        return status

    def update(self) -> None:
        """Compute the output again.

        KVM: i8259.c pic_update_irq; the secondary's request is a pulse on the cascade line, and the primary's IRR bit 2
        stays set when the secondary's line drops.
        """
        primary, secondary = self.primary, self.secondary
        if secondary.irr & ~secondary.imr and secondary.requested() >= 0:
            primary.drive(CASCADE, 1)
            primary.drive(CASCADE, 0)
        output = bool(primary.irr & ~primary.imr) and self._primary_request() >= 0
        if output != self.output:
            self.output = output
            self.wires.pic_output()

    def _primary_request(self) -> int:
        # Special fully nested mode: the secondary's interrupt in service does not block the secondary's others.
        nested = 1 << CASCADE if self.primary.special_fully_nested_mode else 0
        return self.primary.requested(nested)

    def _request(self, chip: I8259) -> int:
        return self._primary_request() if chip is self.primary else chip.requested()

    # Interrupt acknowledge.

    def acknowledge(self) -> int:
        """The CPU's INTA cycles: accept the best request and return its vector. KVM: i8259.c kvm_pic_read_irq.

        Without a request the answer is spurious (line 7 of the chip), and nothing is put in service.
        """
        chip, line = self.primary, self._primary_request()
        if line < 0:
            line, self.was_spurious = SPURIOUS, True
        else:
            self.was_spurious = False
            self._put_in_service(chip, line)
            if line == CASCADE:
                chip, line = self.secondary, self.secondary.requested()
                if line < 0:
                    line, self.was_spurious = SPURIOUS, True
                else:
                    self._put_in_service(chip, line)
        vector = (chip.irq_base + line) & 0xFF
        self.update()
        return vector

    def _put_in_service(self, chip: I8259, line: int) -> None:
        mask = 1 << line
        chip.isr |= mask
        if not chip.elcr & mask:
            chip.irr &= ~mask
        if chip.auto_eoi:
            if chip.rotate_on_auto_eoi:
                chip.priority_add = (line + 1) & 7
            self._retire(chip, line)

    def _retire(self, chip: I8259, line: int) -> None:
        """Take a line out of service, and report that. KVM: i8259.c pic_clear_isr; also for an idle line."""
        chip.isr &= ~(1 << line)
        self.wires.pic_acked(line if chip is self.primary else line + LINES)

    # Ports.

    def read(self, port: int, size: int) -> int:
        """A guest's IN. KVM: i8259.c picdev_read; any size but a byte reads as 0, without an effect."""
        if size != 1:
            return 0
        match port:
            case Port.PRIMARY_COMMAND | Port.PRIMARY_DATA:
                return self._read(self.primary, port & 1)
            case Port.SECONDARY_COMMAND | Port.SECONDARY_DATA:
                return self._read(self.secondary, port & 1)
            case Port.PRIMARY_ELCR:
                return self.primary.elcr
            case Port.SECONDARY_ELCR:
                return self.secondary.elcr
            case _:
                raise ValueError(f"port {port:#x} is not a PIC's")

    def write(self, port: int, size: int, value: int) -> None:
        """A guest's OUT. KVM: i8259.c picdev_write; any size but a byte is dropped."""
        if size != 1:
            return
        match port:
            case Port.PRIMARY_COMMAND:
                self._write_command(self.primary, value)
            case Port.PRIMARY_DATA:
                self._write_data(self.primary, value)
            case Port.SECONDARY_COMMAND:
                self._write_command(self.secondary, value)
            case Port.SECONDARY_DATA:
                self._write_data(self.secondary, value)
            case Port.PRIMARY_ELCR:  # KVM: i8259.c elcr_ioport_write; latched requests stay
                self.primary.elcr = value & self.primary.elcr_mask
            case Port.SECONDARY_ELCR:
                self.secondary.elcr = value & self.secondary.elcr_mask
            case _:
                raise ValueError(f"port {port:#x} is not a PIC's")

    def _read(self, chip: I8259, data_port: int) -> int:
        if chip.poll:
            chip.poll = 0
            return self._poll(chip)
        if data_port:
            return chip.imr
        return chip.isr if chip.read_reg_select else chip.irr

    def _poll(self, chip: I8259) -> int:
        """The read after OCW3's poll command, on either port.

        KVM: i8259.c pic_poll_read; a poll acknowledges without putting the line in service, and drops even a level
        request. A poll of the primary that finds the cascade changes neither the secondary nor the output.
        """
        line = self._request(chip)
        if line < 0:
            self.update()
            return POLL_NONE
        if chip is self.secondary:
            self.primary.isr &= ~(1 << CASCADE)
            self.primary.irr &= ~(1 << CASCADE)
        chip.irr &= ~(1 << line)
        self._retire(chip, line)
        if chip is self.secondary or line != CASCADE:
            self.update()
        return POLL_INTERRUPT | line

    def _write_command(self, chip: I8259, value: int) -> None:
        """A write to the even port: ICW1, OCW3 or OCW2, distinguished by bits 4 and 3."""
        if value & ICW1:
            self._begin_init(chip, value)
        elif value & OCW3:
            if value & OCW3_POLL:
                chip.poll = 1
            if value & OCW3_READ_SELECT:
                chip.read_reg_select = value & OCW3_READ_ISR
            if value & OCW3_SPECIAL_MASK_SELECT:
                chip.special_mask = int(bool(value & OCW3_SPECIAL_MASK))
        else:
            self._end_or_rotate(chip, value >> 5, value & 7)

    def _begin_init(self, chip: I8259, value: int) -> None:
        """ICW1. KVM: i8259.c kvm_pic_reset; level requests stay, and the output is not computed again."""
        discarded = chip.irr & ~chip.elcr
        chip.init4 = value & ICW1_ICW4
        chip.last_irr = 0
        chip.irr &= chip.elcr
        chip.imr = 0
        chip.priority_add = 0
        chip.special_mask = 0
        chip.read_reg_select = 0
        if not chip.init4:
            chip.special_fully_nested_mode = 0
            chip.auto_eoi = 0
        chip.init_state = Expect.ICW2
        # KVM: i8259.c kvm_pic_reset; lost edges are acknowledged, if a vCPU would have taken them.
        if discarded and self.wires.takes_pic_interrupts():
            for line in range(LINES):
                if discarded & 1 << line:
                    self._retire(chip, line)

    def _end_or_rotate(self, chip: I8259, command: int, level: int) -> None:
        """OCW2. Commands that name no level act on the best line in service, and do nothing without one."""
        match command:
            case Ocw2.CLEAR_ROTATE_ON_AUTO_EOI | Ocw2.SET_ROTATE_ON_AUTO_EOI:
                chip.rotate_on_auto_eoi = command >> 2
            case Ocw2.EOI | Ocw2.ROTATE_ON_EOI:
                if chip.isr:
                    line = chip.line(chip.priority(chip.isr))
                    if command == Ocw2.ROTATE_ON_EOI:
                        chip.priority_add = (line + 1) & 7
                    self._retire(chip, line)
                    self.update()
            case Ocw2.SET_PRIORITY:
                chip.priority_add = (level + 1) & 7
                self.update()
            case Ocw2.SPECIFIC_EOI | Ocw2.ROTATE_ON_SPECIFIC_EOI:
                if command == Ocw2.ROTATE_ON_SPECIFIC_EOI:
                    chip.priority_add = (level + 1) & 7
                self._retire(chip, level)
                self.update()
            case Ocw2.NO_OPERATION:
                pass

    def _write_data(self, chip: I8259, value: int) -> None:
        """A write to the odd port: the ICW that is expected, or the mask."""
        match chip.init_state:
            case Expect.OCW1:
                changed, chip.imr = chip.imr ^ value, value
                if changed:
                    self._report_masked(chip, changed)
                self.update()
            case Expect.ICW2:
                chip.irq_base = value & ICW2_BASE
                chip.init_state = Expect.ICW3
            case Expect.ICW3:  # the cascade is fixed, so the value is ignored
                chip.init_state = Expect.ICW4 if chip.init4 else Expect.OCW1
            case Expect.ICW4:
                chip.special_fully_nested_mode = int(bool(value & ICW4_SPECIAL_FULLY_NESTED))
                chip.auto_eoi = int(bool(value & ICW4_AUTO_EOI))
                chip.init_state = Expect.OCW1
            case _:  # KVM: i8259.c pic_ioport_write; with any other restored value a write is ignored
                pass

    def _report_masked(self, chip: I8259, changed: int) -> None:
        """KVM: i8259.c pic_ioport_write; lines that ICW1 unmasks are not reported."""
        first = 0 if chip is self.primary else LINES
        for line in range(LINES):
            if changed >> line & 1:
                self.wires.pic_masked(first + line, bool(chip.imr >> line & 1))

    # State.

    def reset(self) -> None:
        """RESET: both chips at power-on."""
        fresh = PicPair.at_reset(self.wires)
        self.restore(self.primary, fresh.primary)
        self.restore(self.secondary, fresh.secondary)

    def restore(self, chip: I8259, state: I8259) -> None:
        """Replace the state of one of the two chips. KVM: irq.c kvm_vm_ioctl_set_irqchip, a raw copy, then update."""
        for name in _FIELDS:
            setattr(chip, name, getattr(state, name))
        self.update()

    def resume(self, primary: bytes, secondary: bytes, output: bool) -> None:
        """Resume from a snapshot: STATE_SIZE bytes per chip, and INTR."""
        self.primary, self.secondary = I8259.unpack(primary), I8259.unpack(secondary)
        self.output = output

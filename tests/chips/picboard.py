"""A board for the 8259 pair: device lines on one side, a CPU on the other, and the names of its commands."""

from __future__ import annotations

from irqchipd.chips.i8259 import PicPair, Port

PRIMARY, SECONDARY = 0x20, 0x28  # the vector bases that the helpers program

# OCW2.
EOI = 0x20
ROTATE_ON_EOI = 0xA0
SET_ROTATE_ON_AUTO_EOI, CLEAR_ROTATE_ON_AUTO_EOI = 0x80, 0x00
NO_OPERATION = 0x40


def specific_eoi(line: int) -> int:
    return 0x60 | line


def set_lowest_priority(line: int) -> int:
    return 0xC0 | line


def rotate_on_specific_eoi(line: int) -> int:
    return 0xE0 | line


# OCW3.
READ_IRR, READ_ISR, POLL = 0x0A, 0x0B, 0x0C
SPECIAL_MASK_MODE = 0x68


class Board:
    """The pair's surroundings."""

    def __init__(self, *, takes_interrupts: bool = True) -> None:
        self.pair = PicPair.at_reset(self)
        self.takes_interrupts = takes_interrupts
        self.acked: list[int] = []
        self.output_changes: list[bool] = []
        self.masks: list[tuple[int, bool]] = []

    # The wires.

    def pic_acked(self, line: int) -> None:
        self.acked.append(line)

    def pic_masked(self, line: int, masked: bool) -> None:
        self.masks.append((line, masked))

    def pic_output(self) -> None:
        self.output_changes.append(self.pair.output)

    def takes_pic_interrupts(self) -> bool:
        return self.takes_interrupts

    # The guest.

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.pair.write(port, 1, value)

    def read(self, port: int) -> int:
        return self.pair.read(port, 1)

    def initialise(self, *, icw4: int = 0x01) -> None:
        """Initialise the pair as a BIOS does: bases 20h and 28h, cascade on line 2."""
        self.out(Port.PRIMARY_COMMAND, 0x11)
        self.out(Port.PRIMARY_DATA, PRIMARY, 0x04, icw4)
        self.out(Port.SECONDARY_COMMAND, 0x11)
        self.out(Port.SECONDARY_DATA, SECONDARY, 0x02, icw4)

    def selected(self, command: int, port: int = Port.PRIMARY_COMMAND) -> int:
        self.out(port, command)
        return self.read(port)

    def irr(self, port: int = Port.PRIMARY_COMMAND) -> int:
        return self.selected(READ_IRR, port)

    def isr(self, port: int = Port.PRIMARY_COMMAND) -> int:
        return self.selected(READ_ISR, port)

    def inta(self) -> int | None:
        """Take the CPU's next interrupt: the CPU runs the acknowledge cycles only while INTR is high."""
        return self.pair.acknowledge() if self.pair.output else None

    def drain(self) -> list[int]:
        """Take interrupts without ending any until there are no more."""
        taken = []
        while (vector := self.inta()) is not None:
            taken.append(vector)
        return taken

    # The devices.

    def rise(self, *lines: int) -> None:
        for line in lines:
            self.pair.set_line(line, 1)

    def fall(self, *lines: int) -> None:
        for line in lines:
            self.pair.set_line(line, 0)

    def pulse(self, *lines: int) -> None:
        for line in lines:
            self.rise(line)
            self.fall(line)

"""A VM with a Unicorn vCPU, for guests of a few instructions of machine code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from struct import pack

from irqchip_client import Client
from irqchip_client.unicorn import GuestMemory, Start, StartMode, UnicornVcpu
from tests.waiting import PATIENCE

EXIT = 0xF4  # A write to this port ends run().
DEVICE = 0x300  # Reads count, writes are kept.
DEVICE_MEMORY = 0xD000_0000  # The same for addresses.

REAL_ENTRY, ENTRY = 0x7C00, 0x1000
GDT, GDTR, IDTR, TSS, IDT = 0x400, 0x800, 0x80A, 0x900, 0x2000
PML4, PDPT, PD = 0x10000, 0x11000, 0x12000
CODE32, DATA, CODE64, FLAT_CODE, OTHER_CODE, TSS64 = 0x08, 0x10, 0x18, 0x20, 0x28, 0x30
INTERRUPT_GATE, TRAP_GATE = 0x8E, 0x8F


class Devices:
    """The local devices of this process: irqchip_client.unicorn.LocalDevices."""

    def __init__(self) -> None:
        self.stop: Callable[[], None] = lambda: None
        self.written: list[tuple[int, int, int]] = []  # port or address, value, size
        self.reads = 0

    def pio_read(self, port: int, size: int) -> int | None:
        return self._read(size) if port == DEVICE else None

    def pio_write(self, port: int, value: int, size: int) -> bool:
        if port == EXIT:
            self.stop()
            return True
        return self._write(port, value, size) if port == DEVICE else False

    def mmio_read(self, address: int, size: int) -> int | None:
        return self._read(size) if address & ~0xFFF == DEVICE_MEMORY else None

    def mmio_write(self, address: int, value: int, size: int) -> bool:
        return self._write(address, value, size) if address & ~0xFFF == DEVICE_MEMORY else False

    def _read(self, size: int) -> int:
        self.reads += 1
        return self.reads * 0x0101_0101_0101_0101 & (1 << 8 * size) - 1

    def _write(self, at: int, value: int, size: int) -> bool:
        self.written.append((at, value, size))
        return True


class Machine:
    """1 MiB of memory, PICs, IOAPIC, PIT and one vCPU."""

    def __init__(self, client: Client, memory: GuestMemory) -> None:
        self.vm = client.create_vm()
        self.vm.create_irqchip()
        self.vm.create_pit()
        self.daemon = self.vm.create_vcpu(0)
        self.memory = memory
        self.devices = Devices()
        self.cpu = UnicornVcpu(memory, self.vm, 0, self.devices)
        self.devices.stop = self.cpu.stop

    def start_real(self, code: bytes) -> None:
        self.memory.write(REAL_ENTRY, code)
        self.cpu.start(Start(StartMode.REAL, REAL_ENTRY, esp=0x7000))

    def start(self, code: bytes) -> None:
        """Start in 32-bit protected mode. The guest has to load the registers of the GDT and IDT given here."""
        self.memory.write(ENTRY, code)
        descriptors = (0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00AF_9B00_0000_FFFF, 0x00CF_9B00_0000_FFFF)
        other = 0x0040_9B10_0000_FFFF  # Code with a base of 100000h
        tss = (0x0000_8900_0000_0067 | TSS << 16, 0)
        self.memory.write(GDT, pack("<8Q", *descriptors, other, *tss))
        self.memory.write(GDTR, pack("<HI", 0x3F, GDT))
        self.memory.write(IDTR, pack("<HI", 0xFFF, IDT))
        # 2 MiB pages, from linear address 0 on; the last 2 MiB map to the first again.
        self.memory.write(PML4, pack("<Q", PDPT | 3))
        self.memory.write(PML4 + 511 * 8, pack("<Q", PDPT | 3))
        self.memory.write(PDPT, pack("<4Q", PD | 3, 0, 0, PD + 0x1000 | 3))
        self.memory.write(PDPT + 511 * 8, pack("<Q", PD | 3))
        self.memory.write(PD, pack("<2Q", 0x83, 0))
        self.memory.write(PD + 511 * 8, pack("<Q", 0x83))
        for page in range(512):  # The last GiB below 4 GiB, where the APICs are
            self.memory.write(PD + 0x1000 + page * 8, pack("<Q", 0xC000_0000 + (page << 21) | 0x83))
        self.cpu.start(Start(StartMode.PROTECTED, ENTRY))

    def vector(self, vector: int, at: int, code: bytes) -> None:
        """Set a real-mode handler."""
        self.memory.write(vector * 4, pack("<HH", at, 0))
        self.memory.write(at, code)

    def gate(self, vector: int, at: int, kind: int = INTERRUPT_GATE, selector: int = CODE32) -> None:
        """Set a 32-bit handler."""
        self.memory.write(IDT + vector * 8, pack("<HHBBH", at & 0xFFFF, selector, 0, kind, at >> 16))

    def gate64(self, vector: int, at: int, kind: int = INTERRUPT_GATE, ist: int = 0) -> None:
        """Set a 64-bit handler."""
        gate = pack("<HHBBHII", at & 0xFFFF, CODE64, ist, kind, at >> 16 & 0xFFFF, at >> 32, 0)
        self.memory.write(IDT + vector * 16, gate)

    def word(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 4), "little")

    def words(self, address: int, count: int) -> list[int]:
        return [self.word(address + 4 * index) for index in range(count)]

    def quads(self, address: int, count: int) -> list[int]:
        return [int.from_bytes(self.memory.read(address + 8 * index, 8), "little") for index in range(count)]

    def initialise_pic(self) -> None:
        """Initialise the PICs: vectors 20h to 2Fh, nothing masked."""
        for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)):
            self.daemon.pio_write(port, value)

    @contextmanager
    def running(self) -> Iterator[Running]:
        """run() in a thread of its own, stopped at the end of the `with` unless it has ended."""
        running = Running(self.cpu)
        try:
            yield running
        finally:
            if not running.ended:  # Or the next run would end at once.
                self.cpu.stop()
            running.join()

    def close(self) -> None:
        self.cpu.close()
        self.vm.delete()


class Running:
    """A run() in progress."""

    def __init__(self, cpu: UnicornVcpu) -> None:
        self._cpu = cpu
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._cpu.run()
        except BaseException as error:
            self._error = error

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait for run() to end, and raise its exception."""
        self._thread.join(PATIENCE)
        assert self.ended
        if self._error is not None:
            error, self._error = self._error, None
            raise error

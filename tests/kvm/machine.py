"""A PC with a daemon's irqchip, a KVM vCPU and 1 MiB of RAM, in which a test can run a guest."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from irqchip_client import Client, MpState
from irqchip_client.kvm import GuestMemory, KvmVcpu, KvmVm, Start, StartMode
from irqchip_client.vmm.exit_stats import ExitStats
from tests.kvm.guests import LONG
from tests.waiting import PATIENCE, eventually

ENTRY, LONG_ENTRY, STACK = 0x1000, 0x1200, 0xF000
HANDLER, NMI_HANDLER, FAULT_HANDLER = 0x2000, 0x2100, 0x2200
COUNT = 0x500  # the counter of the handlers
# The operands of LIDT and LGDT, and the tables; those of 64-bit mode are separate.
IDTR, GDTR, LONG_IDTR, GDT, IDT, LONG_IDT = 0x600, 0x608, 0x620, 0x700, 0x800, 0x4000
PAGE_TABLES = 0x10000  # three levels that map 4 GiB onto themselves
VECTOR, NMI, BREAKPOINT, PROTECTION_FAULT = 0x50, 2, 3, 13
APIC, IOAPIC = 0xFEE0_0000, 0xFEC0_0000
SAY, STOP = 0xE9, 0xF4
OTHER_KHZ = 1_234_567  # a TSC that no guest's has: a vCPU then has no TSC-deadline timer


def _ignore(_: int) -> None:
    pass


class Devices:
    """The local devices: a port for output, one to stop, and those that a test adds."""

    def __init__(self) -> None:
        self.said = bytearray()
        self.stop: Callable[[], None] = lambda: None
        self.on_say: Callable[[int], None] = _ignore
        self.ports: dict[int, Iterator[int]] = {}
        self.memory: dict[int, int] = {}

    def pio_read(self, port: int, size: int) -> int | None:  # noqa: ARG002
        return next(self.ports[port]) if port in self.ports else None

    def pio_write(self, port: int, value: int, size: int) -> bool:  # noqa: ARG002
        if port == SAY:
            self.said.append(value)
            self.on_say(value)
        elif port == STOP:
            self.stop()
        return port in (SAY, STOP)

    def mmio_read(self, address: int, size: int) -> int | None:
        if address not in self.memory:
            return None
        return sum(self.memory[address + n] << 8 * n for n in range(size))

    def mmio_write(self, address: int, value: int, size: int) -> bool:
        if address >> 16 != 0xFD00:
            return False
        for n in range(size):
            self.memory[address + n] = value >> 8 * n & 0xFF
        return True


class Machine:
    """vCPU 0 of the PC, and its memory."""

    def __init__(
        self, client: Client, kvm: KvmVm, memory: GuestMemory, tsc_khz: int = OTHER_KHZ, exits: ExitStats | None = None
    ) -> None:
        self.client = client
        self.kvm = kvm
        self.memory = memory
        self.vm = client.create_vm(tsc_khz=tsc_khz)
        self.vm.create_irqchip()
        self.vcpu = self.vm.create_vcpu(0)
        self.devices = Devices()
        self.cpu = KvmVcpu(kvm, self.vm, 0, self.devices, exits)
        self.devices.stop = self.cpu.stop

    # Set-up.

    def load_real(self, guest: bytes) -> None:
        """Load a guest in real mode. The PICs' vectors begin at 20h and 28h, and share one handler."""
        for vector in range(0x20, 0x30):
            self.memory.write(4 * vector, struct.pack("<HH", HANDLER, 0))
        for port, values in ((0x20, (0x11,)), (0x21, (0x20, 4, 1, 0)), (0xA0, (0x11,)), (0xA1, (0x28, 2, 1, 0))):
            for value in values:
                self.vcpu.pio_write(port, value)
        self._start(StartMode.REAL, guest)

    def load_protected(self, guest: bytes) -> None:
        """Load a guest in protected mode, with its local APIC enabled and its PICs masked."""
        for port in (0x21, 0xA1):
            self.vcpu.pio_write(port, 0xFF)
        self.vcpu.mmio_write(APIC + 0xF0, 0x1FF)
        self._write_tables()
        self._start(StartMode.PROTECTED, guest)

    def load_long(self, guest: bytes) -> None:
        """Load such a guest, which enters 64-bit mode itself."""
        self.memory.write(LONG_ENTRY, guest)
        self.load_protected(LONG)

    def _start(self, mode: StartMode, guest: bytes) -> None:
        self.memory.write(ENTRY, guest)
        self.cpu.start(Start(mode, ENTRY, esp=STACK))

    def _write_tables(self) -> None:
        memory = self.memory
        flat_code, flat_data, long_code = 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00AF_9B00_0000_FFFF
        memory.write(GDT, struct.pack("<4Q", 0, flat_code, flat_data, long_code))
        memory.write(GDTR, struct.pack("<HI", 31, GDT))
        memory.write(IDTR, struct.pack("<HI", 0x7FF, IDT))
        memory.write(LONG_IDTR, struct.pack("<HQ", 0xFFF, LONG_IDT))
        for vector, handler in (
            (VECTOR, HANDLER),
            (BREAKPOINT, HANDLER),
            (NMI, NMI_HANDLER),
            (PROTECTION_FAULT, FAULT_HANDLER),
        ):
            memory.write(IDT + 8 * vector, struct.pack("<HHHH", handler, 0x08, 0x8E00, 0))
            memory.write(LONG_IDT + 16 * vector, struct.pack("<HHHHQ", handler, 0x18, 0x8E00, 0, 0))
        pointers, directories, present, large = PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000, 0x3, 0x83
        memory.write(PAGE_TABLES, struct.pack("<Q", pointers | present))
        memory.write(pointers, struct.pack("<4Q", *(directories + 0x1000 * n | present for n in range(4))))
        memory.write(directories, struct.pack("<2048Q", *(n << 21 | large for n in range(2048))))

    # While the guest runs.

    @contextmanager
    def running(self) -> Iterator[Future[None]]:
        """Run the guest in a thread; the future has the result of run()."""
        with running(self.cpu) as done:
            yield done

    def word(self, address: int) -> int:
        """A 4-byte word of memory."""
        return int.from_bytes(self.memory.read(address, 4), "little")

    def wait_until_halted(self) -> None:
        """Wait until the daemon knows that the vCPU halts."""
        eventually(lambda: self.vcpu.mp_state() is MpState.HALTED)


@contextmanager
def running(cpu: KvmVcpu) -> Iterator[Future[None]]:
    """Run a vCPU in a thread."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            cpu.run()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        if not done.done():
            cpu.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()

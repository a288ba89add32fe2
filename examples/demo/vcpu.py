"""A vCPU, and what an operating system would do on it: program the chips, take interrupts, drive the devices.

Every access to the chips is a guest's: PIO to the PICs, MMIO to the IOAPIC and the local APIC.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from examples.demo import DISK_GSI, SECTOR, SERIAL_GSI, TIMER_GSI, VM
from examples.demo.options import connect, open_session, parser, say, stop_on_sigterm
from examples.demo.wire import Device, DeviceGoneError
from irqchip_client import AlreadyExists, Client, Interrupt, InterruptSource, Session

# The 8259s, and the vectors that they are given.
PIC1, PIC2, PIC_VECTOR = 0x20, 0xA0, 0x20
# The IOAPIC's index and window, and a register.
IOAPIC_SELECT, IOAPIC_WINDOW, IOAPIC_VERSION = 0xFEC0_0000, 0xFEC0_0010, 0x01
LEVEL, MASKED = 1 << 15, 1 << 16
# The local APIC.
LAPIC = 0xFEE0_0000
LAPIC_VERSION, LAPIC_TPR, LAPIC_EOI, LAPIC_SVR, LAPIC_LINT0 = 0x030, 0x080, 0x0B0, 0x0F0, 0x350
EXTINT = 7 << 8

# How many ticks the handler of the last sector is put off.
DEFER_TICKS = 30

TIMER_VECTOR = PIC_VECTOR + TIMER_GSI
SERIAL_VECTOR, DISK_VECTOR = 0x34, 0x3B


class Kernel:
    """The operating system. It reads sectors one after the other, and what comes over the serial port."""

    def __init__(self, session: Session, serial: Device, disk: Device, sectors: int, defer: bool) -> None:
        self._session = session
        self._cpu = session.vcpu(0)
        self._serial = serial
        self._disk = disk
        self._sectors = sectors
        self._defer = defer
        self._handlers: dict[int, Callable[[], None]] = {
            TIMER_VECTOR: self._tick,
            SERIAL_VECTOR: self._receive,
            DISK_VECTOR: self._take_sector,
        }
        self.interrupts: Counter[str] = Counter()
        self._text = bytearray()
        self._said = 0
        self._deferred_until: int | None = None
        self._next_sector = 0
        self.disk_failed = False
        self._digest = hashlib.sha256()

    # Programming the chips.

    def start(self) -> None:
        """What a PC's kernel does at boot."""
        for command, base, cascade in ((PIC1, PIC_VECTOR, 1 << 2), (PIC2, PIC_VECTOR + 8, 2)):
            self._cpu.pio_write(command, 0x11)  # ICW1: edge, cascade, ICW4 follows
            self._cpu.pio_write(command + 1, base)  # ICW2
            self._cpu.pio_write(command + 1, cascade)  # ICW3
            self._cpu.pio_write(command + 1, 0x01)  # ICW4: 8086 mode
            self._cpu.pio_write(command + 1, 0xFF)  # OCW1: all masked
        self._cpu.pio_write(PIC1 + 1, 0xFF & ~(1 << TIMER_GSI))
        say(f"PICs: vectors {PIC_VECTOR:#x} to {PIC_VECTOR + 15:#x}, IRQ {TIMER_GSI} unmasked, edge")

        version = self._cpu.mmio_read(LAPIC + LAPIC_VERSION).data
        self._cpu.mmio_write(LAPIC + LAPIC_SVR, 0x1FF)
        self._cpu.mmio_write(LAPIC + LAPIC_TPR, 0)
        self._cpu.mmio_write(LAPIC + LAPIC_LINT0, EXTINT)
        say(f"local APIC: version {version:#x}, enabled, LINT0 takes the PICs' interrupts")

        pins = (self._read_ioapic(IOAPIC_VERSION) >> 16 & 0xFF) + 1
        self._write_entry(SERIAL_GSI, SERIAL_VECTOR)
        self._write_entry(DISK_GSI, DISK_VECTOR | LEVEL)
        # An edge that came while its pin was masked is lost, on KVM's IOAPIC as on others: look for what it announced.
        self._drain_serial()
        say(f"IOAPIC: {pins} pins; {SERIAL_GSI} edge to {SERIAL_VECTOR:#x}, {DISK_GSI} level to {DISK_VECTOR:#x}")

    def _read_ioapic(self, register: int) -> int:
        self._cpu.mmio_write(IOAPIC_SELECT, register)
        return self._cpu.mmio_read(IOAPIC_WINDOW).data

    def _write_entry(self, pin: int, low: int) -> None:
        for register, value in ((0x11 + 2 * pin, 0), (0x10 + 2 * pin, low)):  # CPU 0, then the rest
            self._cpu.mmio_write(IOAPIC_SELECT, register)
            self._cpu.mmio_write(IOAPIC_WINDOW, value)

    # Taking interrupts.

    def run(self, seconds: float, until: Callable[[], bool]) -> None:
        """Take interrupts until something is so, or time is up."""
        self._read_next()
        deadline = time.monotonic() + seconds
        while not until() and (left := deadline - time.monotonic()) > 0:
            for _ in self._session.events(timeout=min(left, 0.2)):
                while (interrupt := self._cpu.acknowledge()) is not None:
                    self._take(interrupt)
                if until():
                    break

    def _take(self, interrupt: Interrupt) -> None:
        handler = self._handlers.get(interrupt.vector)
        if handler is None:
            say(f"vector {interrupt.vector:#x} is nobody's")
        else:
            handler()
        if interrupt.source == InterruptSource.PIC:
            self._cpu.pio_write(PIC1, 0x20)  # OCW2: non-specific EOI
        else:
            self._cpu.mmio_write(LAPIC + LAPIC_EOI, 0)

    def _tick(self) -> None:
        self.interrupts["timer"] += 1
        tick = self.interrupts["timer"]
        if tick % 10 == 0:
            say(f"vector {TIMER_VECTOR:#x} from the PIC: tick {tick}")
        if self._deferred_until is not None and tick >= self._deferred_until:
            self._deferred_until = None
            self._read_sector()
            self._write_entry(DISK_GSI, DISK_VECTOR | LEVEL)
            say(f"pin {DISK_GSI} unmasked")

    def _receive(self) -> None:
        self.interrupts["serial"] += 1
        self._drain_serial()

    def _drain_serial(self) -> None:
        try:
            while self._serial.read("status"):
                self._text.append(int(self._serial.read("data")))
        except DeviceGoneError:
            say("serial: the device is gone; carrying on without it")
        while (end := self._text.find(b"\n", self._said)) >= 0:
            say(f"vector {SERIAL_VECTOR:#x} from the local APIC: {self._text[self._said : end].decode()!r}")
            self._said = end + 1

    def _take_sector(self) -> None:
        self.interrupts["disk"] += 1
        if self._defer and self._next_sector == self._sectors - 1:
            # As a threaded handler does: mask the pin, end the interrupt, and see to the device later.
            self._write_entry(DISK_GSI, DISK_VECTOR | LEVEL | MASKED)
            self._defer = False
            self._deferred_until = self.interrupts["timer"] + DEFER_TICKS
            say(f"vector {DISK_VECTOR:#x}: sector {self._next_sector} is deferred, pin {DISK_GSI} masked, line high")
            return
        self._read_sector()

    def _read_sector(self) -> None:
        try:
            data = bytes.fromhex(str(self._disk.read("data")))
        except DeviceGoneError:
            self._fail()
            return
        self._digest.update(data)
        say(f"vector {DISK_VECTOR:#x} from the local APIC: sector {self._next_sector}, {len(data)} bytes")
        self._next_sector += 1
        self._read_next()

    def _read_next(self) -> None:
        if self._next_sector < self._sectors:
            try:
                self._disk.write("sector", self._next_sector)
            except DeviceGoneError:
                self._fail()

    def _fail(self) -> None:
        self.disk_failed = True
        say(f"disk: sector {self._next_sector}: I/O error, the device is gone; carrying on without it")

    # What came of it.

    @property
    def text(self) -> bytes:
        """What the serial port received."""
        return bytes(self._text)

    @property
    def sectors_read(self) -> int:
        """How many sectors arrived."""
        return self._next_sector

    def read_image_of(self, image: Path) -> bool:
        """Whether the sectors that arrived are the image's first."""
        size = self.sectors_read * SECTOR
        return hashlib.sha256(image.read_bytes()[:size]).digest() == self._digest.digest()


def make_vm(client: Client) -> None:
    """The VM, its irqchip and its vCPU."""
    try:
        vm = client.create_vm(VM)
    except AlreadyExists:
        client.delete_vm(VM)  # left behind by a run that was cut short
        vm = client.create_vm(VM)
    vm.create_irqchip()
    vm.create_vcpu(0)


def main() -> int:
    """Boot, run, and say what came of it."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--serial-file", type=Path, required=True, help="what the serial port is going to receive")
    options.add_argument("--image", type=Path, required=True, help="what is on the disk")
    options.add_argument("--sectors", type=int, default=8, help="how many to read")
    options.add_argument("--ticks", type=int, default=60, help="how many to wait for, at the least")
    options.add_argument("--defer", action="store_true", help="handle the last sector's interrupt late")
    options.add_argument("--seconds", type=float, default=25.0, help="the most that all may take")
    arguments = options.parse_args()
    stop_on_sigterm()
    text = arguments.serial_file.read_bytes()
    with connect(arguments.target) as client:
        make_vm(client)
        say(f"VM {VM!r} with an irqchip and vCPU 0")
        with open_session(client, "vcpu", vcpus=(0,)) as session:
            serial, disk = (wait_for_device(arguments.run / name) for name in ("serial", "disk"))
            kernel = Kernel(session, serial, disk, arguments.sectors, arguments.defer)
            kernel.start()
            kernel.run(arguments.seconds, lambda: done(kernel, len(text), arguments.sectors, arguments.ticks))
    good = kernel.text == text and kernel.read_image_of(arguments.image) and kernel.disk_failed == arguments.defer
    counts = ", ".join(f"{name} {count}" for name, count in sorted(kernel.interrupts.items()))
    say(f"interrupts: {counts}")
    say(f"received {len(kernel.text)} of {len(text)} bytes and {kernel.sectors_read} of {arguments.sectors} sectors")
    say("everything arrived as it was sent" if good else "NOT everything arrived as it was sent")
    return 0 if good else 1


def wait_for_device(path: Path, patience: float = 30.0) -> Device:
    """A device's registers, once its process serves them."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return Device(path)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def done(kernel: Kernel, bytes_expected: int, sectors: int, ticks: int) -> bool:
    """Whether all that was to come has come."""
    disk_done = kernel.disk_failed or kernel.sectors_read == sectors
    return disk_done and len(kernel.text) >= bytes_expected and kernel.interrupts["timer"] >= ticks


if __name__ == "__main__":
    sys.exit(main())

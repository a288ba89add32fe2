"""fw_cfg: QEMU's device from which firmware and kernels read data, as numbered items and as files.

QEMU: docs/specs/fw_cfg.rst; numbers of items: include/standard-headers/linux/qemu_fw_cfg.h, and for a PC
hw/i386/fw_cfg.h. Where the specification is silent, this device behaves as QEMU's (hw/nvram/fw_cfg.c).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import ClassVar

from irqchip_client._errors import InvalidArgument

from .device import Device
from .ram import Ram
from .saving import Fields, Number

SELECTOR, DATA = 0x510, 0x511  # the selector has 16 bits, and the data port, 8, lies within them
ADDRESS = 0x514  # of a DMA command; 64 bits, big-endian

SIGNATURE, ID, RAM_SIZE, NO_GRAPHICS, CPUS, MAX_CPUS = 0x00, 0x01, 0x03, 0x04, 0x05, 0x0F
DIRECTORY, FIRST_FILE = 0x19, 0x20
IRQ0_OVERRIDE = 0x8002
WRITE_CHANNEL = 0x4000  # a bit of the selector without effect, as nothing is written through the data port
FILES = WRITE_CHANNEL - FIRST_FILE

TRADITIONAL, DMA = 1 << 0, 1 << 1  # bits of ID
DMA_SIGNATURE = b"QEMU CFG"

COMMAND = struct.Struct(">IIQ")  # control, length, address
ERROR, READ, SKIP, SELECT, WRITE = (1 << bit for bit in range(5))  # of control, whose upper half is an item

ENTRY, COUNT = struct.Struct(">IHxx56s"), struct.Struct(">I")  # of the directory: size, item, name; and how many
NAME_LENGTH, LARGEST_FILE = 55, 0xFFFF_FFFF

MOST_ZEROS = 1 << 20  # bytes


class FwCfg(Device):
    """fw_cfg. The guest selects an item, and reads its bytes one by one, or by DMA.

    cpus, memory_size  the number of CPUs, and the size of the guest's RAM
    files              the content of each file, by name: up to 55 ASCII characters; guests can't write files
    dma                whether the guest can copy items into its memory by DMA; the device's host then needs the memory

    InvalidArgument for a name or number of files that fw_cfg can't have.
    """

    STATE: ClassVar[Fields] = {
        "_selected": Number(0, 0xFFFF),
        "_position": Number(0, 0xFFFF_FFFF),
        "_address": Number(0, 0xFFFF_FFFF),
    }
    STATE_VERSION = 2

    def __init__(
        self,
        cpus: int,
        memory_size: int,
        files: Mapping[str, bytes] = MappingProxyType({}),
        *,
        dma: bool = False,
    ) -> None:
        super().__init__("fw_cfg")
        self.USES_MEMORY = dma
        # The content of each item, by number.
        self.items = {
            SIGNATURE: b"QEMU",
            ID: struct.pack("<I", TRADITIONAL | (DMA if dma else 0)),
            RAM_SIZE: struct.pack("<Q", memory_size),
            NO_GRAPHICS: struct.pack("<H", 1),  # so firmware's console is the serial port
            CPUS: struct.pack("<H", cpus),
            MAX_CPUS: struct.pack("<H", cpus),
            IRQ0_OVERRIDE: b"\1",  # the PIT is at the IOAPIC's pin 2
        }
        self._files: dict[str, bytes] = {}
        self.add_files(files)
        self._selected = 0
        self._position = 0
        self._address = 0  # the upper half of a command's address
        self.pio(SELECTOR, 2, self.read, self.write, width=2)
        if dma:
            self.pio(ADDRESS, 8, self._read_signature, self._write_address, width=4)

    def add_files(self, files: Mapping[str, bytes]) -> None:
        """Adds files before the guest starts. Does not replace a file. InvalidArgument."""
        files = {**files, **self._files}
        self.items |= _items_of_files(files)
        self._files = files

    def reset(self) -> None:
        """QEMU: hw/nvram/fw_cfg.c fw_cfg_reset."""
        self._select(SIGNATURE)
        self._address = 0

    # Selector and data.

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - QEMU: both ports read as the data port
        """The next byte of the item; behind its end, and for wider reads, 0."""
        if size > 1:
            return 0
        byte = self._content[self._position : self._position + 1]
        self._position += len(byte)
        return byte[0] if byte else 0

    def write(self, offset: int, value: int, size: int) -> None:
        """Selects an item. The data port ignores writes."""
        if offset == 0 and size == 2:
            self._select(value)

    def _select(self, item: int) -> None:
        self._selected, self._position = item, 0

    @property
    def _content(self) -> bytes:
        return self.items.get(self._selected & ~WRITE_CHANNEL, b"")

    # "Guest-side DMA Interface".

    def _read_signature(self, offset: int, size: int) -> int:
        return int.from_bytes(DMA_SIGNATURE[offset : offset + size], "little")

    def _write_address(self, offset: int, value: int, size: int) -> None:
        """The lower half begins a command. QEMU: fw_cfg.c fw_cfg_dma_mem_valid: other writes are ignored."""
        if size != 4:
            return
        half = int.from_bytes(value.to_bytes(size, "little"), "big")
        if offset == 0:
            self._address = half
        elif offset == 4:
            address, self._address = self._address << 32 | half, 0
            self._execute(address)

    def _execute(self, at: int) -> None:
        """Executes the command at an address, completely, before the guest goes on."""
        memory = self.host.memory()
        try:
            control, length, address = COMMAND.unpack(memory.read(at, COMMAND.size))
        except InvalidArgument:
            return
        if control & SELECT:
            self._select(control >> 16)
        try:
            if control & READ:
                self._transfer(memory, address, length)
            elif control & WRITE and length:
                raise _refused("items are read-only")
            elif control & SKIP:
                self._take(length)
            result = 0
        except InvalidArgument:
            result = ERROR
        with suppress(InvalidArgument):  # the command may be in ROM
            memory.write(at, result.to_bytes(4, "big"))

    def _transfer(self, memory: Ram, address: int, length: int) -> None:
        """Copies bytes to the guest, and zeros for the bytes behind the item's end.

        The number of zeros has a limit, so that a guest's command can't cause more work than an item's bytes.
        """
        zeros = length - max(len(self._content) - self._position, 0)
        if zeros > MOST_ZEROS:
            raise _refused(f"{zeros} bytes behind an item's end")
        memory.write(address, self._take(length).ljust(length, b"\0"))

    def _take(self, length: int) -> bytes:
        """Returns the next bytes of the item, up to its end."""
        taken = self._content[self._position : self._position + length]
        self._position += len(taken)
        return taken


def _items_of_files(files: Mapping[str, bytes]) -> dict[int, bytes]:
    """The files' items, and their directory. InvalidArgument for files that fw_cfg can't have."""
    if len(files) > FILES:
        raise _refused(f"{len(files)} files: give it at most {FILES}")
    items, entries = {}, []
    for item, (name, content) in enumerate(sorted(files.items()), FIRST_FILE):
        if not 0 < len(name) <= NAME_LENGTH or not name.isascii() or not name.isprintable():
            raise _refused(f"a file named {name!r:.100}: use 1 to {NAME_LENGTH} ASCII characters")
        if len(content) > LARGEST_FILE:
            raise _refused(f"a file of {len(content)} bytes, {name}: it must be smaller than 4 GiB")
        items[item] = bytes(content)
        entries.append(ENTRY.pack(len(content), item, name.encode()))
    return {**items, DIRECTORY: COUNT.pack(len(entries)) + b"".join(entries)}


def _refused(what: str) -> InvalidArgument:
    return InvalidArgument(errno.EINVAL, f"fw_cfg can't have {what}")

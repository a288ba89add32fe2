"""The registers of an interrupt translation service (ITS) that translates nothing. Arm IHI 0069, 12.19.

KVM: vgic-its.c. Its tables and commands are in the guest's memory, which irqchipd does not have. It skips a command
that it cannot read, as KVM does at an address without memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EBUSY, EFAULT, EINVAL, ENXIO
from typing import Any, Final

from irqchipd.chips.gic.redistributor import INNER_SHAREABLE, SHAREABILITY_SHIFT, allowed_attributes, merged
from irqchipd.chips.gic.refused import AccessRefused
from irqchipd.chips.saved import check, in_range

FRAME_SIZE: Final = 0x20000  # the registers, and GITS_TRANSLATER at 64 KiB

CTLR, IIDR, TYPER, CBASER, CWRITER, CREADR, BASER, IDS = 0, 4, 8, 0x80, 0x88, 0x90, 0x100, 0xFFD0  # offsets
# The registers: offset, bytes, and the sizes of accesses.
_WORD, _BOTH = (4,), (4, 8)
_REGISTERS: Final = (
    *((CTLR, 4, _WORD), (IIDR, 4, _WORD), (TYPER, 8, _BOTH), (CBASER, 8, _BOTH), (CWRITER, 8, _BOTH)),
    *((CREADR, 8, _BOTH), (BASER, 0x40, _BOTH), (IDS, 0x30, _WORD)),
)

ENABLED: Final = 1 << 0  # GITS_CTLR.Enabled
QUIESCENT: Final = 1 << 31
IDENTITY: Final = 0x4B00043B  # product K for KVM, implementer Arm
REVISION: Final = 0xF << 12
# GITS_TYPER: physical LPIs, entries of 8 bytes, 16 bits of an event's and of a device's number.
FEATURES: Final = 1 | 7 << 4 | 15 << 8 | 15 << 13
_ID_BYTES: Final = {
    0xFFD0: 0x40,
    0xFFE0: 0x92,
    0xFFE4: 0xB4,
    0xFFE8: 0x3B,
    0xFFF0: 0x0D,
    0xFFF4: 0xF0,
    0xFFF8: 0x05,
    0xFFFC: 0xB1,
}

VALID: Final = 1 << 63
_INDIRECT: Final = 1 << 62
_INNER_SHIFT, _OUTER_SHIFT = 59, 53
_FIXED: Final = 7 << 56 | 0x1F << 48  # of a table: the type and the size of entries
_ENTRIES_OF_8: Final = 7 << 48
_DEVICES, _COLLECTIONS = 1 << 56 | _ENTRIES_OF_8, 4 << 56 | _ENTRIES_OF_8
_PAGE_SIZE, _PAGES_OF_64K = 3 << 8, 2 << 8
_NOT_IN_CBASER: Final = 0xF << 12  # the queue is at a multiple of 64 KiB
_OFFSET: Final = 0xFFFE0  # of a command, which has 32 bytes
_U64: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedIts:
    """An ITS in a snapshot: the fields of Its."""

    enabled: bool
    cbaser: int
    cwriter: int
    creadr: int
    devices: int
    collections: int

    def check(self) -> None:
        """Refuse a state that no ITS can have."""
        for table, kind in ((self.devices, _DEVICES), (self.collections, _COLLECTIONS)):
            in_range(table, 0, _U64, "a table of an ITS")
            check(table == _allowed(table, kind), f"a table of an ITS is {table:#x}")
        in_range(self.cbaser, 0, _U64, "cbaser")
        check(self.cbaser in (0, _queue(self.cbaser)), f"cbaser {self.cbaser:#x}")
        for offset in (self.cwriter, self.creadr):
            check(offset == offset & _OFFSET and offset < _queue_size(self.cbaser), f"a command is at {offset:#x}")
        if self.enabled:
            check(self.devices & self.collections & self.cbaser & VALID, "an enabled ITS lacks tables or a queue")
            check(self.cwriter == self.creadr, "an enabled ITS has pending commands")


class Its:
    """One ITS. KVM: struct vgic_its."""

    def __init__(self) -> None:
        self.enabled = False
        # The queue of commands: its address, and the offsets of the guest's next command and of the next to execute.
        self.cbaser = 0
        self.cwriter = 0
        self.creadr = 0
        # The tables of devices and of collections.
        self.devices = _allowed(INNER_SHAREABLE << SHAREABILITY_SHIFT, _DEVICES)
        self.collections = _allowed(INNER_SHAREABLE << SHAREABILITY_SHIFT, _COLLECTIONS)

    # A guest's accesses. KVM: dispatch_mmio_read, dispatch_mmio_write.

    def read(self, offset: int, size: int) -> int:
        """A guest's read: 0 without a register that allows this size."""
        register = _find(offset)
        if register is None or size not in register[2] or offset % size:
            return 0
        return self._read(offset) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write, ignored without a register that allows this size."""
        register = _find(offset)
        if register is not None and size in register[2] and offset % size == 0:
            self._write(offset, size, value)

    # User space's accesses, each to a whole register.

    def check_alignment(self, offset: int) -> None:
        """EINVAL for an offset that is not aligned to its register's size."""
        if offset % _size(offset):
            raise AccessRefused(EINVAL, f"offset {offset:#x} of an ITS is not a multiple of {_size(offset)}")

    def check_register(self, offset: int) -> None:
        """EINVAL for an offset that is not aligned, ENXIO without a register there. KVM: vgic_its_has_attr_regs."""
        self.check_alignment(offset)
        if _find(offset) is None:
            raise AccessRefused(ENXIO, f"an ITS has no register at offset {offset:#x}")

    def user_read(self, offset: int) -> int:
        """A register. KVM: vgic_its_attr_regs_access."""
        self.check_register(offset)
        return self._read(offset)

    def user_write(self, offset: int, value: int) -> None:
        """Write a register; EBUSY and EINVAL for a refused value. KVM: vgic_its_attr_regs_access."""
        self.check_register(offset)
        if offset == IIDR:
            # KVM: vgic_mmio_uaccess_write_its_iidr
            if value & REVISION:
                raise AccessRefused(EINVAL, f"GITS_IIDR {value:#x}: the revision must be 0")
        elif offset == CREADR:
            # KVM: vgic_mmio_uaccess_write_its_creadr
            if self.enabled:
                raise AccessRefused(EBUSY, "the ITS is enabled: write GITS_CREADR before enabling it")
            if value & _OFFSET >= _queue_size(self.cbaser):
                raise AccessRefused(EINVAL, f"GITS_CREADR {value:#x} is beyond the queue's end")
            self.creadr = value & _OFFSET
        else:
            self._write(offset, _size(offset), value)

    def save_tables(self) -> None:
        """EFAULT if there is a table to write. KVM: vgic_its_save_tables_v0."""
        if self.collections & VALID:
            raise AccessRefused(EFAULT, "the table of collections is in the guest's memory, which irqchipd lacks")

    def restore_tables(self) -> None:
        """EFAULT if there is a table to read. KVM: vgic_its_restore_tables_v0."""
        if (self.collections | self.devices) & VALID:
            raise AccessRefused(EFAULT, "the tables are in the guest's memory, which irqchipd lacks")

    def reset(self) -> None:
        """KVM: vgic_its_reset."""
        self.devices &= ~VALID
        self.collections &= ~VALID
        self.cbaser = self.creadr = self.cwriter = 0
        self.enabled = False

    def _read(self, offset: int) -> int:
        if offset == CTLR:
            return (QUIESCENT if self.creadr == self.cwriter else 0) | (ENABLED if self.enabled else 0)
        if offset == IIDR:
            return IDENTITY
        if offset >= IDS:
            return _ID_BYTES.get(offset, 0)
        values = {
            TYPER: FEATURES,
            CBASER: self.cbaser,
            CWRITER: self.cwriter,
            CREADR: self.creadr,
            BASER: self.devices,
            BASER + 8: self.collections,
        }
        return values.get(offset & ~7, 0) >> 8 * (offset & 7)

    def _write(self, offset: int, size: int, value: int) -> None:
        register = offset & ~7 if offset >= TYPER else offset
        if register == CTLR:
            self._write_ctlr(value)
        elif register == CWRITER:
            # KVM: vgic_mmio_write_its_cwriter
            writer = merged(self.cwriter, offset, size, value) & _OFFSET
            if writer < _queue_size(self.cbaser):
                self.cwriter = writer
                self._skip_commands()
        elif not self.enabled:
            if register == CBASER:
                # KVM: vgic_mmio_write_its_cbaser
                self.cbaser = _queue(merged(self.cbaser, offset, size, value))
                self.creadr = self.cwriter = 0
            elif register == BASER:
                self.devices = _allowed(merged(self.devices, offset, size, value), _DEVICES)
            elif register == BASER + 8:
                self.collections = _allowed(merged(self.collections, offset, size, value), _COLLECTIONS)

    def _write_ctlr(self, value: int) -> None:
        """KVM: vgic_mmio_write_its_ctlr."""
        if not self.enabled and value & ENABLED and not self.devices & self.collections & self.cbaser & VALID:
            return
        self.enabled = bool(value & ENABLED)
        self._skip_commands()

    def _skip_commands(self) -> None:
        """KVM: vgic_its_process_commands."""
        if self.enabled:
            self.creadr = self.cwriter

    def save(self) -> dict[str, Any]:
        """For a snapshot: the fields of SavedIts."""
        return {
            "enabled": self.enabled,
            "cbaser": self.cbaser,
            "cwriter": self.cwriter,
            "creadr": self.creadr,
            "devices": self.devices,
            "collections": self.collections,
        }

    def resume(self, saved: SavedIts) -> None:
        """Resume from a checked snapshot."""
        self.enabled, self.cbaser, self.cwriter, self.creadr = saved.enabled, saved.cbaser, saved.cwriter, saved.creadr
        self.devices, self.collections = saved.devices, saved.collections


def _find(offset: int) -> tuple[int, int, tuple[int, ...]] | None:
    for register in _REGISTERS:
        if register[0] <= offset < register[0] + register[1]:
            return register
    return None


def _size(offset: int) -> int:
    """The size in bytes of a register, for user space."""
    return 4 if offset < TYPER or offset >= IDS else 8


def _allowed(table: int, kind: int) -> int:
    """The bits of a value that GITS_BASER keeps. KVM: vgic_mmio_write_its_baser, vgic_sanitise_its_baser."""
    table &= ~_FIXED
    if kind == _COLLECTIONS:
        table &= ~_INDIRECT
    return allowed_attributes(table | kind, _INNER_SHIFT, _OUTER_SHIFT) & ~_PAGE_SIZE | _PAGES_OF_64K


def _queue(cbaser: int) -> int:
    """The bits of a value that GITS_CBASER keeps. KVM: vgic_sanitise_its_cbaser."""
    return allowed_attributes(cbaser, _INNER_SHIFT, _OUTER_SHIFT) & ~_NOT_IN_CBASER


def _queue_size(cbaser: int) -> int:
    return (cbaser & 0xFF) + 1 << 12

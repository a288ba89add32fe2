"""Linear addresses to physical ones, by the SDM vol. 3 chapter 4: 32-bit, PAE and 4-level paging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .exceptions import Fault, Vector

CR0_WP, CR0_PG = 1 << 16, 1 << 31
CR4_PSE, CR4_PAE = 1 << 4, 1 << 5

PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 7
ADDRESS = 0x000F_FFFF_FFFF_F000
ERROR_PRESENT, ERROR_WRITE, ERROR_USER = 1, 2, 4  # Figure 4-12


class Tables(Protocol):
    """Physical memory, for the entries."""

    def read_entry(self, address: int, size: int) -> int: ...
    def write_entry(self, address: int, value: int, size: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Paging:
    """The registers that control paging."""

    cr0: int
    cr3: int
    cr4: int
    long_mode: bool

    def translate(self, tables: Tables, linear: int, write: bool, user: bool = False) -> int:
        """The physical address of a byte that ring 0 accesses, or a program in ring 3 if `user`.

        Sets accessed and dirty bits. Fault: #PF, #GP.
        """
        if not self.cr0 & CR0_PG:
            return linear & 0xFFFF_FFFF
        error = ERROR_WRITE * write | ERROR_USER * user
        if self.long_mode:
            if (linear >> 47) not in (0, 0x1FFFF):
                raise Fault(Vector.GP, 0)  # Not canonical.
            return self._walk(tables, linear, error, self.cr3 & ADDRESS, (39, 30, 21, 12), 9, 8)
        linear &= 0xFFFF_FFFF
        if self.cr4 & CR4_PAE:
            entry = tables.read_entry((self.cr3 & ~0x1F) + (linear >> 30) * 8, 8)
            if not entry & PRESENT:
                raise Fault(Vector.PF, error, linear)
            return self._walk(tables, linear, error, entry & ADDRESS, (21, 12), 9, 8)
        return self._walk(tables, linear, error, self.cr3 & ~0xFFF, (22, 12), 10, 4)

    def _walk(
        self, tables: Tables, linear: int, error: int, table: int, shifts: tuple[int, ...], bits: int, size: int
    ) -> int:
        """The physical address. `error` describes the access, as in a page fault's error code."""
        write, user = error & ERROR_WRITE, error & ERROR_USER
        allowed = WRITABLE | USER
        for shift in shifts:
            at = table + (linear >> shift & (1 << bits) - 1) * size
            entry = tables.read_entry(at, size)
            if not entry & PRESENT:
                raise Fault(Vector.PF, error, linear)
            allowed &= entry
            is_page = shift == 12 or (bool(entry & LARGE) and shift != 39 and (size == 8 or bool(self.cr4 & CR4_PSE)))
            if is_page and self._refuses(allowed, write, user):
                raise Fault(Vector.PF, ERROR_PRESENT | error, linear)
            used = entry | ACCESSED | (DIRTY if is_page and write else 0)
            if used != entry:
                tables.write_entry(at, used, size)
            if is_page:
                offset = (1 << shift) - 1
                if size == 4 and shift == 22:  # PSE-36: bits 20 to 13 are the address's 39 to 32.
                    return (entry & 0xFFC0_0000) | (entry >> 13 & 0xFF) << 32 | linear & offset
                return entry & ADDRESS & ~offset | linear & offset
            table = entry & (ADDRESS if size == 8 else 0xFFFF_F000)
        raise AssertionError("the last level has pages")

    def _refuses(self, allowed: int, write: int, user: int) -> bool:
        """4.6.1: whether the entries' rights forbid the access."""
        if user and not allowed & USER:
            return True
        return bool(write and not allowed & WRITABLE and (user or self.cr0 & CR0_WP))

"""The RAM of a PC that is free for what a loader places: a kernel's initrd, its command line, page tables."""

from __future__ import annotations

from typing import Final

from irqchip_client.vmm.memory import PAGE, GuestMemory
from irqchip_client.vmm.pc.memory_map import Kind, memory_map

from .segments import Segment, bad_image

# Boot information goes here, or behind it. Below are the vectors and the data of a BIOS, and kernels' code for SIPIs.
INFORMATION: Final = 0x9000


class Room:
    """The free ranges: at first all RAM of the machine's memory map."""

    def __init__(self, memory: GuestMemory) -> None:
        self._size = memory.size
        self._free = [(each.start, each.end) for each in memory_map(memory.size) if each.kind is Kind.RAM]

    def take(self, segment: Segment) -> None:
        """Takes a place that an image chooses. Parts of one image may share it. InvalidArgument where is no RAM."""
        ranges = [each for each in memory_map(self._size) if each.kind is Kind.RAM]
        if not any(each.start <= segment.address and segment.end <= each.end for each in ranges):
            if segment.end > self._size:
                raise bad_image(
                    f"it needs memory up to {segment.end:#x}, and the machine has {self._size:#x} bytes; "
                    "give the machine more (--memory)"
                )
            raise bad_image(
                f"a part of it belongs at {segment.address:#x} to {segment.end:#x}, and a PC's RAM for kernels is "
                + " and ".join(f"{each.start:#x} to {each.end:#x}" for each in ranges)
            )
        self._remove(segment.address, segment.end)

    def lowest(self, what: str, size: int, *, above: int = INFORMATION, alignment: int = PAGE) -> int:
        """Takes the lowest place from `above` on. InvalidArgument where there is none."""
        for start, end in self._free:
            place = -(-max(start, above) // alignment) * alignment
            if place + size <= end:
                self._remove(place, place + size)
                return place
        raise self._full(what, size)

    def highest(self, what: str, size: int, *, below: int) -> int:
        """Takes the highest place at the beginning of a page, that ends at `below` or before."""
        for start, end in reversed(self._free):
            place = (min(end, below) - size) // PAGE * PAGE
            if place >= start:
                self._remove(place, place + size)
                return place
        raise self._full(what, size)

    def _remove(self, start: int, end: int) -> None:
        pieces = []
        for first, last in self._free:
            pieces += [(first, min(last, start)), (max(first, end), last)]
        self._free = [(first, last) for first, last in pieces if first < last]

    def _full(self, what: str, size: int) -> Exception:
        return bad_image(
            f"the machine's {self._size:#x} bytes of memory have no room for {what} of {size:#x} bytes; "
            "give the machine more (--memory)"
        )

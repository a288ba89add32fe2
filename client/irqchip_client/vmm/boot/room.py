"""The RAM of a PC that is free for a loader's data: a kernel's initrd, its command line, page tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from irqchip_client.vmm.memory import PAGE, GuestMemory
from irqchip_client.vmm.pc.memory_map import MEMORY_LIMIT, Kind, memory_map

from .segments import Segment, bad_image, load_segments

# Boot information goes here, or behind it. Below are the vectors and the data of a BIOS, and kernels' code for SIPIs.
INFORMATION: Final = 0x9000


class Room:
    """The free ranges: at first all RAM of the machine's memory map."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._ram = [(each.start, each.end) for each in memory_map(memory.size) if each.kind is Kind.RAM]
        self._free = self._ram

    def load(self, segments: Sequence[Segment], entry: int) -> None:
        """Loads an image at its own addresses. InvalidArgument if they are not in RAM, or its entry is not in it."""
        for segment in segments:
            if not any(start <= segment.address and segment.end <= end for start, end in self._ram):
                if segment.end > self._memory.size:
                    raise bad_image(
                        f"it needs memory up to {segment.end:#x}, and the machine has {self._memory.size:#x} bytes; "
                        "give the machine more (--memory)"
                    )
                raise bad_image(
                    f"a part of it belongs at {segment.address:#x} to {segment.end:#x}, and a PC's RAM for kernels is "
                    + " and ".join(f"{start:#x} to {end:#x}" for start, end in self._ram)
                )
        if not any(segment.address <= entry < segment.end for segment in segments):
            raise bad_image(f"its entry {entry:#x} is not in the image")
        load_segments(self._memory, segments)
        for segment in segments:
            self._remove(segment.address, segment.end)

    def lowest(self, what: str, size: int, *, above: int = INFORMATION, alignment: int = PAGE) -> int:
        """Takes the lowest place from `above` on, and returns its address. InvalidArgument without such a place."""
        for start, end in self._free:
            place = -(-max(start, above) // alignment) * alignment
            if place + size <= end:
                self._remove(place, place + size)
                return place
        raise self._full(what, size)

    def put_lowest(self, what: str, data: bytes, *, above: int = INFORMATION, alignment: int = PAGE) -> int:
        """Writes data at the lowest place from `above` on, and returns the address. InvalidArgument as for lowest()."""
        place = self.lowest(what, len(data), above=above, alignment=alignment)
        self._memory.write(place, data)
        return place

    def put_highest(self, what: str, data: bytes, *, below: int = MEMORY_LIMIT) -> int:
        """Writes data at the highest page where it ends at `below` or before, and returns the address.

        InvalidArgument without such a place.
        """
        for start, end in reversed(self._free):
            place = (min(end, below) - len(data)) // PAGE * PAGE
            if place >= start:
                self._remove(place, place + len(data))
                self._memory.write(place, data)
                return place
        raise self._full(what, len(data))

    def _remove(self, start: int, end: int) -> None:
        pieces = []
        for first, last in self._free:
            pieces += [(first, min(last, start)), (max(first, end), last)]
        self._free = [(first, last) for first, last in pieces if first < last]

    def _full(self, what: str, size: int) -> Exception:
        return bad_image(
            f"the machine's {self._memory.size:#x} bytes of memory have no room for {what} of {size:#x} bytes; "
            "give the machine more (--memory)"
        )

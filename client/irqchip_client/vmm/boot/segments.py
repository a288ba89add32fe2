"""The parts of an image, in any format."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field

from irqchip_client._errors import InvalidArgument
from irqchip_client.vmm.memory import GuestMemory


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of an image: `data`, and zeros up to `size` bytes."""

    address: int
    data: bytes | memoryview = field(repr=False)
    size: int

    @property
    def end(self) -> int:
        """The first address behind the segment."""
        return self.address + self.size


def load_segments(memory: GuestMemory, segments: Iterable[Segment]) -> None:
    """Writes an image's parts. InvalidArgument for too little memory."""
    for segment in segments:
        if segment.address < memory.start:
            raise bad_image(f"a part of it belongs at {segment.address:#x}; memory begins at {memory.start:#x}")
        if segment.end > memory.end:
            raise bad_image(
                f"it needs {segment.end - memory.start:#x} bytes of memory; there are {memory.size:#x}; "
                "give the machine more (--memory)"
            )
        memory.write(segment.address, bytes(segment.data))


def bad_image(why: str) -> InvalidArgument:
    return InvalidArgument(errno.EINVAL, f"this image can't be booted: {why}")

"""What a kernel is given at its start, and what all formats of images have in common."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Protocol

from irqchip_client._errors import InvalidArgument
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.start import Start


@dataclass(frozen=True, slots=True)
class Given:
    """What a machine gives its kernel.

    rsdp        the address of ACPI's root pointer, or None where a kernel has to look for it
    setup_data  for Linux: types and contents of further entries of its setup_data list
    """

    command_line: str = ""
    initrd: bytes | None = None
    rsdp: int | None = None
    setup_data: tuple[tuple[int, bytes], ...] = ()

    @property
    def line(self) -> bytes:
        """The command line's bytes, with a zero at the end. InvalidArgument where a zero is in it."""
        if "\0" in self.command_line:
            raise InvalidArgument(errno.EINVAL, "a command line can't have a NUL character in it")
        return self.command_line.encode(errors="surrogateescape") + b"\0"


class BootImage(Protocol):
    """An image that has been recognised.

    has_name_first  whether its command line begins with the kernel's name
    """

    @property
    def has_name_first(self) -> bool: ...

    def load(self, memory: GuestMemory, given: Given) -> Start:
        """Puts it into a guest's memory with what it is given, and returns how the first vCPU starts.

        InvalidArgument where the memory has no room, or the format has no use for what is given.
        """

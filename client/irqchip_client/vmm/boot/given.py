"""The data that a kernel gets at its start, and the interface of all formats of images."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Protocol

from irqchip_client._errors import InvalidArgument
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.start import Start


@dataclass(frozen=True, slots=True)
class Given:
    """The data that a machine gives its kernel.

    rsdp        the address of ACPI's root pointer, or None if a kernel has to look for it
    setup_data  for Linux: types and contents of further entries of its setup_data list
    """

    command_line: str = ""
    initrd: bytes | None = None
    rsdp: int | None = None
    setup_data: tuple[tuple[int, bytes], ...] = ()

    @property
    def line(self) -> bytes:
        """The command line's bytes, with a zero at the end. InvalidArgument for a command line that has a zero."""
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
        """Loads the image and the given data into a guest's memory, and returns how the first vCPU starts.

        InvalidArgument for too little memory, and for given data that the format has no use for.
        """

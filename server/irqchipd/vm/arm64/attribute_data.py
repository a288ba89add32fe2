"""The data of an attribute, in and out, and the error of an unknown attribute."""

from __future__ import annotations

import errno
from typing import Final

from irqchipd.vm.errors import VmError

UNDEFINED: Final = (1 << 64) - 1  # VGIC_ADDR_UNDEF


def no_attribute(group: int, attr: int) -> VmError:
    """ENXIO."""
    return VmError(errno.ENXIO, f"there is no attribute {attr:#x} of group {group}")


def number_from(data: bytes, size: int) -> int:
    """The number that get_user() takes from the data: EFAULT for too few bytes."""
    if len(data) < size:
        raise VmError(errno.EFAULT, f"the attribute has {size} bytes, but the data {len(data)}: give {size} or more")
    return int.from_bytes(data[:size], "little")


def data_with(data: bytes, size: int, value: int) -> bytes:
    """The data after put_user(): EFAULT for too few bytes."""
    number_from(data, size)
    return value.to_bytes(size, "little") + data[size:]

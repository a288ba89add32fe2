"""The interrupt translation services (ITS) of a VM: their frames, and their attributes. KVM: vgic-its.c.

Their commands and tables are in the guest's memory, which irqchipd does not have: so they translate nothing.
"""

from __future__ import annotations

import errno
from typing import Final, Protocol

from irqchipd.chips.gic.its import FRAME_SIZE, Its
from irqchipd.vm.arm64.attribute_data import UNDEFINED, data_with, no_attribute, number_from
from irqchipd.vm.arm64.frames import Running
from irqchipd.vm.arm64.numbers import Address, Control, Group
from irqchipd.vm.arm64.places import PAGE_64K, check_range
from irqchipd.vm.errors import VmError

_CONTROLS: Final = (Control.INIT, Control.ITS_SAVE_TABLES, Control.ITS_RESTORE_TABLES, Control.ITS_RESET)


class ItsFrame:
    """An ITS on the I/O bus, once it has an address."""

    def __init__(self, board: Running) -> None:
        self._board = board
        self.its = Its()
        self.address: int | None = None

    def read(self, address: int, size: int) -> int:
        """A guest's read."""
        assert self.address is not None
        value = self.its.read(address - self.address, size)
        self._board.running.step()
        return value

    def write(self, address: int, size: int, value: int) -> None:
        """A guest's write."""
        assert self.address is not None
        self.its.write(address - self.address, size, value)
        self._board.running.step()


class ItsBoard(Protocol):
    """The board, which puts an ITS on the bus."""

    def place_its(self, frame: ItsFrame, address: int) -> None:
        """Give an ITS its address."""


class ItsAttributes:
    """The attributes of one ITS."""

    def __init__(self, board: ItsBoard, frame: ItsFrame) -> None:
        self._board: Final = board
        self._frame: Final = frame

    def set(self, group: int, attr: int, data: bytes) -> None:
        """Set an attribute. KVM: vgic_its_set_attr."""
        if group == Group.ADDR:
            self._check_address(attr)
            address = number_from(data, 8)
            check_range(self._frame.address, address, PAGE_64K, FRAME_SIZE)
            self._board.place_its(self._frame, address)
        elif group == Group.CTRL:
            self._control(attr)
        elif group == Group.ITS_REGS:
            value = number_from(data, 8)
            self._its_for(attr).user_write(attr, value)
        else:
            raise no_attribute(group, attr)

    def get(self, group: int, attr: int, data: bytes) -> bytes:
        """Get an attribute. KVM: vgic_its_get_attr."""
        if group == Group.ADDR:
            self._check_address(attr)
            address = self._frame.address
            return data_with(data, 8, UNDEFINED if address is None else address)
        if group == Group.ITS_REGS:
            return data_with(data, 8, self._its_for(attr).user_read(attr))
        raise no_attribute(group, attr)

    def has(self, group: int, attr: int) -> None:
        """ENXIO for an unknown attribute. KVM: vgic_its_has_attr."""
        if group == Group.ITS_REGS:
            self._frame.its.check_register(attr)
        elif not ((group == Group.ADDR and attr == Address.ITS) or (group == Group.CTRL and attr in _CONTROLS)):
            raise no_attribute(group, attr)

    def _check_address(self, attr: int) -> None:
        if attr != Address.ITS:
            raise VmError(errno.ENODEV, f"an interrupt translation service has only address {Address.ITS}, not {attr}")

    def _control(self, attr: int) -> None:
        """KVM: vgic_its_ctrl, which does nothing for other attributes."""
        its = self._frame.its
        if attr == Control.ITS_RESET:
            its.reset()
        elif attr == Control.ITS_SAVE_TABLES:
            its.save_tables()
        elif attr == Control.ITS_RESTORE_TABLES:
            its.restore_tables()

    def _its_for(self, attr: int) -> Its:
        """The ITS of a register: EINVAL, ENXIO. KVM: vgic_its_attr_regs_access."""
        its = self._frame.its
        its.check_alignment(attr)
        if self._frame.address is None:
            raise VmError(errno.ENXIO, "the interrupt translation service has no address: set that attribute first")
        return its

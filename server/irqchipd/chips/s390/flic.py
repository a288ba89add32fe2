"""The floating interrupt controller: KVM's device of type 6, KVM_DEV_TYPE_FLIC.

Documentation/virt/kvm/devices/s390_flic.rst; KVM: interrupt.c kvm_flic_ops.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import Final

from irqchipd.chips.s390.adapters import (
    MAX_ADAPTERS,
    REGISTER_SIZE,
    REQUEST_SIZE,
    Adapter,
    AdapterRoute,
    Adapters,
    FlicWires,
    set_indicators,
)
from irqchipd.chips.s390.errors import RefusedError, invalid
from irqchipd.chips.s390.floating import FloatingInterrupts, SavedFloating, check_saved
from irqchipd.chips.s390.irq import IRQ_SIZE, MAX_ISC, Io, Irq, Kind, word_of
from irqchipd.chips.saved import check, in_range

DEVICE_TYPE: Final = 6  # KVM_DEV_TYPE_FLIC
MAX_BUFFER: Final = 0x200_0000  # KVM_S390_FLIC_MAX_BUFFER
ALL_ISCS: Final = 0xFF << 24  # as in control register 6


class Group:
    """KVM_DEV_FLIC_*: the groups of attributes."""

    GET_ALL_IRQS: Final = 1
    ENQUEUE: Final = 2
    CLEAR_IRQS: Final = 3
    APF_ENABLE: Final = 4
    APF_DISABLE_WAIT: Final = 5
    ADAPTER_REGISTER: Final = 6
    ADAPTER_MODIFY: Final = 7
    CLEAR_IO_IRQ: Final = 8
    AISM: Final = 9
    AIRQ_INJECT: Final = 10
    AISM_ALL: Final = 11


class AisMode:
    """KVM_S390_AIS_MODE_*."""

    ALL: Final = 0
    SINGLE: Final = 1


_AIS_REQUEST: Final = struct.Struct(">BxH")  # struct kvm_s390_ais_req
_AIS_ALL: Final = struct.Struct(">BB")  # struct kvm_s390_ais_all
_SUBCHANNEL: Final = struct.Struct(">I")


def ais_bit(isc: int) -> int:
    """The bit of a subclass in the suppression's masks. KVM: AIS_MODE_MASK."""
    return 0x80 >> isc


_NOTHING: Final = SavedFloating()


@dataclass(frozen=True, slots=True)
class SavedFlic:
    """The device in a snapshot."""

    floating: SavedFloating = _NOTHING
    adapters: tuple[Adapter, ...] = ()
    ais: bool = False
    simm: int = 0
    nimm: int = 0
    pfault: bool = False


class Flic:
    """Floating interrupts, adapters, and adapter-interruption suppression (AIS).

    KVM keeps these in the VM, and user space accesses them through the device; they exist without the device, too.
    """

    def __init__(self, wires: FlicWires) -> None:
        self._wires = wires
        self.floating = FloatingInterrupts()
        self.adapters = Adapters()
        self.ais = False  # facility 72, which KVM_CAP_S390_AIS adds
        self.simm = 0  # subclasses in the single-interruption mode
        self.nimm = 0  # subclasses in the no-interruption mode
        self.pfault = False  # whether the host may handle page faults asynchronously

    # The device's attributes.

    def has(self, group: int) -> bool:
        """Whether a group exists; its attributes are not checked. KVM: flic_has_attr."""
        return Group.GET_ALL_IRQS <= group <= Group.AISM_ALL

    def get(self, group: int, attribute: int) -> bytes:
        """The value of an attribute; for both groups attribute is a length. KVM: flic_get_attr."""
        if group == Group.GET_ALL_IRQS:
            return self._all(attribute)
        if group == Group.AISM_ALL:
            if attribute < _AIS_ALL.size:
                raise invalid(f"AISM_ALL's buffer has {attribute} bytes; use at least {_AIS_ALL.size}")
            self._check_ais()
            return _AIS_ALL.pack(self.simm, self.nimm)
        raise invalid(f"group {group} of the FLIC cannot be read; use 1 (GET_ALL_IRQS) or 11 (AISM_ALL)")

    def set(self, group: int, attribute: int, data: bytes, flags: int = 0) -> None:
        """Execute a group's operation. KVM: flic_set_attr."""
        if group == Group.ENQUEUE:
            self._enqueue(attribute, data)
        elif group == Group.CLEAR_IRQS:
            self.floating.clear()
        elif group == Group.APF_ENABLE:
            self.pfault = True
        elif group == Group.APF_DISABLE_WAIT:
            self.pfault = False  # here no page fault is under way, so there is no wait
        elif group == Group.ADAPTER_REGISTER:
            self.adapters.register(_head(data, REGISTER_SIZE))
        elif group == Group.ADAPTER_MODIFY:
            self.adapters.modify(_head(data, REQUEST_SIZE))
        elif group == Group.CLEAR_IO_IRQ:
            self._clear_io(attribute, data, flags)
        elif group == Group.AISM:
            self._set_ais_mode(data)
        elif group == Group.AIRQ_INJECT:
            self.inject_adapter(self.adapters.registered(attribute & 0xFFFF_FFFF))
        elif group == Group.AISM_ALL:
            self._check_ais()
            self.simm, self.nimm = _AIS_ALL.unpack(_head(data, _AIS_ALL.size))
        else:
            raise invalid(f"group {group} of the FLIC cannot be set; use 2 (ENQUEUE) to 11 (AISM_ALL)")

    def _all(self, length: int) -> bytes:
        """KVM: get_all_floating_irqs."""
        if not 0 < length <= MAX_BUFFER:
            raise invalid(f"GET_ALL_IRQS's buffer has {length} bytes; use 1 to {MAX_BUFFER}")
        needed = len(self.floating) * IRQ_SIZE
        if length // IRQ_SIZE * IRQ_SIZE < needed:
            raise RefusedError(
                errno.ENOMEM, f"the interrupts need {needed} bytes, and the buffer has {length}: use a larger one"
            )
        return self.floating.all()

    def _enqueue(self, length: int, data: bytes) -> None:
        """KVM: enqueue_floating_irq, which keeps the interrupts before a refused one. Here all are refused."""
        length &= 0xFFFF_FFFF  # KVM keeps it in an int
        if length % IRQ_SIZE or length > MAX_BUFFER:
            raise invalid(f"ENQUEUE's buffer has {length} bytes; use a multiple of {IRQ_SIZE} up to {MAX_BUFFER}")
        self.floating.add_all(_head(data, length))

    def _clear_io(self, length: int, data: bytes, flags: int) -> None:
        """KVM: clear_io_irq."""
        if flags:
            raise invalid(f"CLEAR_IO_IRQ's flags are {flags:#x}; use 0")
        if length != _SUBCHANNEL.size:
            raise invalid(f"CLEAR_IO_IRQ's buffer has {length} bytes; use {_SUBCHANNEL.size}")
        (subchannel,) = _SUBCHANNEL.unpack(_head(data, _SUBCHANNEL.size))
        if not subchannel:
            raise invalid("CLEAR_IO_IRQ's subchannel is 0: use a subsystem identification word")
        self.floating.remove_io(ALL_ISCS, subchannel)

    # Adapter interrupts.

    def _check_ais(self) -> None:
        if not self.ais:
            raise RefusedError(
                errno.EOPNOTSUPP, "this VM has no interruption suppression: enable KVM_CAP_S390_AIS first"
            )

    def _set_ais_mode(self, data: bytes) -> None:
        """KVM: modify_ais_mode."""
        self._check_ais()
        isc, mode = _AIS_REQUEST.unpack(_head(data, _AIS_REQUEST.size))
        if isc > MAX_ISC:
            raise invalid(f"interruption subclass {isc} is out of range: use 0 to {MAX_ISC}")
        if mode not in (AisMode.ALL, AisMode.SINGLE):
            raise invalid(f"mode {mode} of suppression is invalid; use 0 for all interruptions, 1 for a single one")
        bit = ais_bit(isc)
        self.simm = self.simm | bit if mode == AisMode.SINGLE else self.simm & ~bit
        self.nimm &= ~bit

    def inject_adapter(self, adapter: Adapter) -> None:
        """Make an adapter's interrupt pending, unless it is suppressed. KVM: kvm_s390_inject_airq."""
        bit = ais_bit(adapter.isc) if self.ais and adapter.suppressible else 0
        if self.nimm & bit:
            return
        word = word_of(adapter.isc)
        self.floating.add(Irq(Kind.IO_ADAPTER, Io(word=word)))
        self._wires.adapter_injected(word)
        if self.simm & bit:
            self.nimm |= bit

    def set_adapter(self, route: AdapterRoute, level: int) -> int:
        """Set a GSI that leads to an adapter. KVM: set_adapter_int.

        Return -1 on failure, 0 for a low level and for a summary that was set already, else 1.
        """
        if not level:
            return 0
        adapter = self.adapters.find(route.adapter)
        if adapter is None:
            return -1
        status = set_indicators(self._wires, adapter, route)
        return self.summarized(adapter) if status > 0 else status

    def summarized(self, adapter: Adapter) -> int:
        """An adapter's summary was set just now: inject its interrupt unless it is masked. KVM: set_adapter_int."""
        if not adapter.masked:
            try:
                self.inject_adapter(adapter)
            except RefusedError as error:
                return -error.number
        return 1

    # Snapshots.

    def save(self) -> SavedFlic:
        """The state, for resume()."""
        return SavedFlic(self.floating.save(), self.adapters.save(), self.ais, self.simm, self.nimm, self.pfault)

    def resume(self, saved: SavedFlic) -> None:
        """Take a saved state, which check_flic has accepted."""
        self.floating.resume(saved.floating)
        self.adapters.resume(saved.adapters)
        self.ais, self.simm, self.nimm, self.pfault = saved.ais, saved.simm, saved.nimm, saved.pfault


def check_flic(saved: SavedFlic) -> None:
    """Refuse a state that no FLIC can have."""
    check_saved(saved.floating)
    numbers = [adapter.id for adapter in saved.adapters]
    check(len(set(numbers)) == len(numbers), "an adapter is registered twice")
    for adapter in saved.adapters:
        in_range(adapter.id, 0, MAX_ADAPTERS - 1, "an adapter's number")
        in_range(adapter.isc, 0, 0xFF, "an adapter's subclass")
        check(adapter.maskable or not adapter.masked, f"adapter {adapter.id} is masked, but not maskable")
    for mask in (saved.simm, saved.nimm):
        in_range(mask, 0, 0xFF, "a mask of interruption subclasses")
    check(saved.ais or not (saved.simm or saved.nimm), "interruptions are suppressed without the facility")


def ais_request(isc: int, mode: int) -> bytes:
    """struct kvm_s390_ais_req."""
    return _AIS_REQUEST.pack(isc, mode)


def _head(data: bytes, length: int) -> bytes:
    """The bytes that KVM copies from its caller: EFAULT without so many."""
    if len(data) < length:
        raise RefusedError(errno.EFAULT, f"the value has {len(data)} bytes, but {length} are needed")
    return data[:length]

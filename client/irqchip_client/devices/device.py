"""The parts of a device model, without I/O: regions, lines, timers, inputs. Hosts connect a device to a VM.

    class Doorbell(Device):
        def __init__(self, port: int, gsi: int) -> None:
            super().__init__("doorbell")
            self.rung = 0
            self.interrupt = self.line(gsi)
            self.pio(port, 1, self.read, self.write)

        def read(self, offset: int, size: int) -> int:
            self.interrupt.set(False)
            return self.rung

        def write(self, offset: int, value: int, size: int) -> None:
            self.rung = value
            self.interrupt.set(True)

A host calls a device from one thread at a time, so that a model needs no lock.
"""

from __future__ import annotations

import errno
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from irqchip_client._call import is_flag
from irqchip_client._errors import InvalidArgument, NotFound
from irqchip_client._model import Architecture, Space

from .ram import Ram
from .saving import (
    FLAG,
    SECONDS,
    Fields,
    OrNone,
    Plain,
    TupleOf,
    check_keys,
    load_fields,
    put_fields,
    refused,
    save_fields,
)

Read = Callable[[int, int], int]  # offset, size: the value
Write = Callable[[int, int, int], None]  # offset, value, size


class Host(Protocol):
    """Runs devices."""

    def drive(self, line: OutputLine) -> None:
        """Called when a line has another level."""

    def arm(self, timer: Timer) -> None:
        """Called when a timer is due at another time, or no longer due."""

    def watch(self, descriptor: int, ready: Callable[[], None] | None) -> None:
        """Calls `ready` whenever a descriptor can be read. None ends this."""

    def now(self) -> float:
        """Returns the seconds of a monotonic clock."""

    def memory(self) -> Ram:
        """The guest's RAM. NotFound if the host has no RAM."""


class _NoHost:
    """The host of a device that does not run yet."""

    def drive(self, line: OutputLine) -> None:
        pass

    def arm(self, timer: Timer) -> None:
        pass

    def watch(self, descriptor: int, ready: Callable[[], None] | None) -> None:
        pass

    def now(self) -> float:
        return 0.0

    def memory(self) -> Ram:
        raise NotFound(errno.ENOENT, "the device does not run, and so has no guest's memory")


@dataclass(frozen=True, slots=True)
class DeviceRegion:
    """A range of ports or addresses of a device.

    read, write  functions of an offset into the range
    width        the bytes of a register; a wider access is split into several, lowest address first
    """

    space: Space
    start: int
    length: int
    read: Read
    write: Write
    width: int

    def do_read(self, address: int, size: int) -> int:
        """A vCPU's read of an address in the region."""
        offset, width = address - self.start, self.width
        if size <= width:
            return self._read(offset, size)
        value = 0
        for byte in range(0, size, width):
            value |= self._read(offset + byte, width) << 8 * byte
        return value

    def _read(self, offset: int, size: int) -> int:
        value = self.read(offset, size)
        try:
            return operator.index(value) & (1 << 8 * size) - 1
        except TypeError:
            what = f"read(offset={offset:#x}, size={size}) returned {value!r:.100}"
            raise TypeError(f"{what}, not a number for the guest to read") from None

    def do_write(self, address: int, value: int, size: int) -> None:
        """A vCPU's write to an address in the region."""
        offset, width = address - self.start, self.width
        if size <= width:
            self.write(offset, value, size)
            return
        mask = (1 << 8 * width) - 1
        for byte in range(0, size, width):
            self.write(offset + byte, value >> 8 * byte & mask, width)


@dataclass(frozen=True, slots=True)
class DeviceDoorbell:
    """An address at which a write notifies the device, and the vCPU does not wait.

    length, value  only a write of this many bytes and of this value rings
    rung           called after a write; writes in quick succession may share one call
    """

    start: int
    length: int
    value: int
    rung: Callable[[], None]


class OutputLine:
    """A GSI that the device drives.

    retries  repeat a coalesced edge a little later, while the line is high
    """

    __slots__ = ("_device", "gsi", "level", "retries")

    def __init__(self, device: Device, gsi: int, retries: bool) -> None:
        self._device = device
        self.gsi = gsi
        self.retries = retries
        self.level = False

    def set(self, level: bool) -> None:
        """Drives the line high or low. Does nothing if it has this level."""
        if level != self.level:
            self.level = level
            self._device.host.drive(self)

    def pulse(self) -> None:
        """Makes an edge."""
        self.set(True)
        self.set(False)


class Timer:
    """Calls the device once, when the timer is due."""

    __slots__ = ("device", "due", "expired")

    def __init__(self, device: Device, expired: Callable[[], None]) -> None:
        self.device = device
        self.expired = expired
        self.due: float | None = None  # on the host's clock

    def start(self, seconds: float) -> None:
        """Makes the timer due in `seconds`, and forgets its earlier time."""
        self.start_at(self.device.host.now() + seconds)

    def start_at(self, due: float | None) -> None:
        """Makes the timer due at a time of the host's clock; with None, never."""
        self.due = due
        self.device.host.arm(self)

    def stop(self) -> None:
        """Stops the timer."""
        self.start_at(None)


@dataclass(frozen=True, slots=True)
class _Restored:
    """A device's state to be restored, checked."""

    lines: tuple[bool, ...]
    timers: tuple[float | None, ...]
    values: Mapping[str, Any]


class Device:
    """A device model. The constructor of a subclass adds regions, lines and timers. A name has at most 64 characters.

    USES_MEMORY    whether the device accesses the guest's RAM: a host then has it before it starts the device
    STATE          the attributes that are its state, and their kinds (see saving.py); lines and timers are saved anyway
    STATE_VERSION  the version of STATE; restore() refuses the state of another version
    """

    USES_MEMORY: bool = False
    STATE: ClassVar[Fields] = {}
    STATE_VERSION: ClassVar[int] = 1

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            setattr(cls, "__init__", _with_checked_arguments(cls.__init__))  # noqa: B010 - mypy refuses the assignment

    def __init__(self, name: str) -> None:
        self.name = name
        self.host: Host = _NoHost()
        self.regions: list[DeviceRegion] = []
        self.doorbells: list[DeviceDoorbell] = []
        self.lines: list[OutputLine] = []
        self.timers: list[Timer] = []

    if not TYPE_CHECKING:  # A type checker would else accept every name.

        def __getattr__(self, name: str) -> Any:
            """The error for a missing attribute, with a hint if the constructor forgot to call Device's."""
            hint = "" if "timers" in vars(self) else ": call super().__init__(name) first, in its constructor"
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}", name=name, obj=self)

    def pio(self, start: int, length: int, read: Read, write: Write, *, width: int = 1) -> None:
        """Adds a range of ports."""
        _check_region("port", start, length, 1 << 16)
        self.regions.append(DeviceRegion(Space.PIO, start, length, read, write, width))

    def mmio(self, start: int, length: int, read: Read, write: Write, *, width: int = 8) -> None:
        """Adds a range of physical addresses."""
        _check_region("address", start, length, 1 << 64)
        self.regions.append(DeviceRegion(Space.MMIO, start, length, read, write, width))

    def doorbell(self, start: int, length: int, value: int, rung: Callable[[], None]) -> None:
        """Adds a doorbell at a physical address, which is in none of the device's regions: KVM_IOEVENTFD."""
        _check_region("address", start, length, 1 << 64)
        if length not in (1, 2, 4, 8) or not 0 <= value < 1 << 8 * length:
            raise InvalidArgument(
                errno.EINVAL, f"a doorbell of {length} bytes and value {value:#x}: use 1, 2, 4 or 8 bytes that fit it"
            )
        self.doorbells.append(DeviceDoorbell(start, length, value, rung))

    def line(self, gsi: int, *, retries: bool = False) -> OutputLine:
        """Adds a line. `retries` repeats coalesced edges; KVM would otherwise lose edges of GSI 8."""
        if not isinstance(gsi, int) or not 0 <= gsi < 1 << 32:
            raise InvalidArgument(errno.EINVAL, f"a line's GSI is {gsi!r:.100}: use a number from 0 on")
        line = OutputLine(self, gsi, retries)
        self.lines.append(line)
        return line

    def timer(self, expired: Callable[[], None]) -> Timer:
        """Adds a timer."""
        timer = Timer(self, expired)
        self.timers.append(timer)
        return timer

    # Running and resetting.

    def place(self, architecture: Architecture) -> None:
        """Called before a host claims anything: the device's place may depend on the VM's architecture."""

    def run_by(self, host: Host) -> None:
        """Connects the device to a host. The device's timers use the host's clock."""
        ahead = host.now() - self.host.now()
        self.host = host
        for timer in self.timers:
            if timer.due is not None:
                timer.start_at(timer.due + ahead)

    def started(self) -> None:
        """Called when a host begins to run the device: watch descriptors and start timers here."""

    def reset(self) -> None:
        """Called when the VM is reset: reset registers and lower lines here."""

    def save(self) -> dict[str, Plain]:
        """Returns the state as plain data, for restore() of a device that was constructed with the same arguments."""
        now = self.host.now()
        return {
            "model": type(self).__name__,
            "version": self.STATE_VERSION,
            "lines": [line.level for line in self.lines],
            "timers": [None if timer.due is None else max(timer.due - now, 0.0) for timer in self.timers],
            "state": save_fields(self, self.STATE),
        }

    def restore(self, saved: Plain) -> None:
        """Restores a state from save(). InvalidArgument for an invalid state: nothing changes.

        While a host runs the device, call the host's restore() instead.
        """
        self.put_restored(self.check_saved(saved))

    def check_saved(self, saved: Plain) -> _Restored:
        """Checks a state, and returns it for put_restored(). InvalidArgument if the device cannot have this state."""
        check_keys(saved, ("model", "version", "lines", "timers", "state"), "it")
        for key, own in (("model", type(self).__name__), ("version", self.STATE_VERSION)):
            if type(saved[key]) is not type(own) or saved[key] != own:
                raise refused(key, saved[key], repr(own))
        lines = TupleOf(*[FLAG] * len(self.lines)).load(saved["lines"], "lines")
        timers = TupleOf(*[OrNone(SECONDS)] * len(self.timers)).load(saved["timers"], "timers")
        values = load_fields(saved["state"], self.STATE, "state")
        self.check_state(values)
        return _Restored(lines, timers, values)

    def check_state(self, values: Mapping[str, Any]) -> None:
        """Override this to refuse attributes that contradict each other: raise the error that refused() returns."""

    def put_restored(self, restored: _Restored) -> None:
        """Restores a state from check_saved()."""
        put_fields(self, self.STATE, restored.values)
        for line, level in zip(self.lines, restored.lines, strict=True):
            line.set(level)
        for timer, seconds in zip(self.timers, restored.timers, strict=True):
            if seconds is None:
                timer.stop()
            else:
                timer.start(seconds)
        self.restored()

    def restored(self) -> None:
        """Called after a state was restored, before or after started(): update here all that depends on the state."""


def _with_checked_arguments(make: Callable[..., None]) -> Callable[..., None]:
    """A constructor whose error names the wrong argument, by its annotation, and the allowed arguments."""
    signature = inspect.signature(make)
    cls = make.__qualname__.split(".")[-2]

    @wraps(make)
    def _construct(self: Device, *args: Any, **kwargs: Any) -> None:
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError as error:
            _, *parameters = signature.parameters.values()
            takes = ", ".join(str(one.replace(annotation=one.empty)) for one in parameters)
            raise InvalidArgument(errno.EINVAL, f"{cls}: {error}; write {cls}({takes})") from None
        for name, value in given.items():
            kind = signature.parameters[name].annotation
            kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
            if value is None and kind.endswith(" | None"):
                continue
            is_one, advice = _KINDS.get(kind.removesuffix(" | None"), (None, ""))
            if is_one is not None and not is_one(value):
                raise InvalidArgument(errno.EINVAL, f"{cls}: {name} is {value!r:.100}: write {advice}")
        make(self, *args, **kwargs)

    return _construct


# For each annotation: the test of a value, and the advice.
_KINDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "bool": (is_flag, "True or False"),
    "int": (lambda value: hasattr(value, "__index__"), "a whole number"),
    "float": (lambda value: hasattr(value, "__float__") or hasattr(value, "__index__"), "a number"),
}


def _check_region(what: str, start: object, length: object, limit: int) -> None:
    """Raises InvalidArgument for an invalid range."""
    if not isinstance(start, int) or not 0 <= start < limit:
        raise InvalidArgument(
            errno.EINVAL, f"the first {what} of a region is {start!r:.100}: use a number from 0 to {limit - 1:#x}"
        )
    if not isinstance(length, int) or not 0 < length <= limit - start:
        raise InvalidArgument(
            errno.EINVAL,
            f"a region at {what} {start:#x} has a length of {length!r:.100}: use 1 to {limit - start:#x}"
            f", or begin lower: the last {what} is {limit - 1:#x}",
        )

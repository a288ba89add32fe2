"""Runs device models: in a process of their own, or in a VMM's process."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

from irqchip_client import ops
from irqchip_client._errors import Busy, IrqchipError, NotFound, SessionClosed
from irqchip_client._events import Doorbell, Event, RegionAccess, RegionsLost, VmReset
from irqchip_client._model import Space
from irqchip_client._sync.session import Session

from .bells import Bells, find_doorbells, ring
from .device import Device, DeviceRegion, OutputLine
from .failures import blame, call_device
from .ram import INTERRUPT_STATUS, IS_CURRENT, PUBLISHED, MappedRam, Ram
from .reactor import Reactor
from .saving import Plain, refused
from .virtio.mmio import Register
from .virtio.places import ARM64, PC

COALESCED = 0  # a status of KVM_IRQ_LINE_STATUS
RETRY = 0.001  # seconds before a coalesced edge is made again
MOST_PARTS = 16  # of a guest's memory
RECLAIM = 1.0  # seconds before a host that was too slow twice claims its regions again

# Lines that retry, and the position among a turn's operations of the one that raised them.
Retrying = list[tuple[OutputLine, int]]

log = logging.getLogger("irqchip_client.devices")


class _Host:
    """Devices, called by one thread at a time. The changes of their lines in a turn are sent at its end, in order."""

    def __init__(self, session: Session, devices: Iterable[Device]) -> None:
        self.devices = list(devices)
        self.session = session
        self.failure: BaseException | None = None
        self._lock = threading.RLock()
        self._changes: list[ops.Call[Any]] = []
        self._retrying: Retrying = []
        self._coalesced: set[OutputLine] = set()
        self._reactor = Reactor(self.turn, self._fail)
        self.arm = self._reactor.arm
        self.watch = self._reactor.watch
        self.now = time.monotonic
        self._ram: Ram | None = None
        clock = Device("clock")
        clock.host = self
        self._again = clock.timer(self._make_again)

    def start(self) -> None:
        """Begins to run the devices: their lines have the levels that they drive."""
        lines = [line for device in self.devices for line in device.lines]
        for device in self.devices:
            device.run_by(self)
        # NotReady without an irqchip.
        statuses = self.session.run([ops.irq_line(line.gsi, line.level) for line in lines])
        if any(status < 0 for status in statuses):
            self._warn_of_lost_lines()
        with self.turn():
            for device in self.devices:
                call_device(device, "started()", device.started)
        self._reactor.start()

    def stop(self) -> None:
        """Stops calling the devices."""
        self._reactor.stop()

    def _warn_of_lost_lines(self) -> None:
        routed = {route.gsi for route in self.session.routing()}
        for device in self.devices:
            if lost := [str(line.gsi) for line in device.lines if line.gsi not in routed]:
                log.warning(
                    "%s: no route for GSI %s, so its interrupts are lost: choose a GSI that `irqchipctl routes` shows,"
                    " or add a route",
                    device.name,
                    ", ".join(lost),
                )

    def reset(self) -> None:
        """Resets the devices: the VM was reset."""
        with self.turn():
            for device in self.devices:
                call_device(device, "reset()", device.reset)

    def save(self) -> list[Plain]:
        """Returns the state of all devices at one moment, as plain data. From any thread."""
        with self.turn():
            return [device.save() for device in self.devices]

    def restore(self, saved: Plain) -> None:
        """Restores what save() returned, before or after start(). InvalidArgument for an invalid state: no change."""
        if type(saved) is not list or len(saved) != len(self.devices):
            raise refused("all", saved, f"a list of {len(self.devices)}, one per device")
        checked = [device.check_saved(each) for device, each in zip(self.devices, saved, strict=True)]
        with self.turn():
            for device, state in zip(self.devices, checked, strict=True):
                device.put_restored(state)

    @contextmanager
    def turn(self) -> Generator[None, None, None]:
        """Surrounds calls of devices."""
        with self._lock:
            try:
                yield
            finally:
                changes, self._changes = self._changes, []
                retrying, self._retrying = self._retrying, []
                if changes:
                    self.send(changes, retrying)

    def memory(self) -> Ram:
        """The guest's RAM. NotFound without RAM for devices."""
        if self._ram is None:
            raise NotFound(errno.ENOENT, "devices have no access to the guest's memory here")
        return self._ram

    def drive(self, line: OutputLine) -> None:
        """A line has another level."""
        self._changes.append(ops.irq_line(line.gsi, line.level))
        if line.retries and line.level:
            self._retrying.append((line, len(self._changes) - 1))

    def send(self, changes: list[ops.Call[Any]], retrying: Retrying) -> None:
        """Sends the lines' changes of a turn, and hands the results to retry_coalesced()."""
        raise NotImplementedError

    def retry_coalesced(self, retrying: Retrying, results: list[Any]) -> None:
        """Makes each edge that was coalesced again. From any thread.

        KVM: ioapic.c rtc_irq_check_coalesced: it drops an edge of the RTC's until the guest has ended the previous
        one. The guest then does not read the RTC, the line stays high, and no further edge would come.
        """
        coalesced = [line for line, position in retrying if results[position] == COALESCED]
        if coalesced:
            self._reactor.call_soon(partial(self._retry_soon, coalesced))

    def _retry_soon(self, lines: list[OutputLine]) -> None:
        self._coalesced.update(lines)
        self._again.start(RETRY)

    def _make_again(self) -> None:
        lines, self._coalesced = self._coalesced, set()
        for line in lines:
            if line.level:
                line.set(False)
                line.set(True)

    def _fail(self, error: BaseException) -> None:
        """A device raised an exception in a timer or a descriptor's callback."""
        self.failure = error
        self.failed()

    def failed(self) -> None:
        """`failure` is set; on any thread."""
        raise NotImplementedError


class RemoteHost(_Host):
    """Runs devices for a VM whose vCPUs are in other processes."""

    # Each event is handled within this context: run_device() puts signals off until its end.
    undisturbed: AbstractContextManager[None] = nullcontext()

    def __init__(self, session: Session, devices: Iterable[Device]) -> None:
        super().__init__(session, devices)
        self._lost: list[DeviceRegion] = []
        clock = Device("claims")
        clock.host = self
        self._later = clock.timer(self._claim_again)
        self._bells = Bells(self)

    def start(self) -> None:
        """Claims the devices' regions, and begins to run them.

        AlreadyExists if a region is claimed. NotFound if a device uses the guest's memory, and no Session shares it;
        IrqchipError(EOPNOTSUPP) then over gRPC.
        """
        if any(device.USES_MEMORY for device in self.devices):
            self._ram = map_memory(self.session)
        self._claim()
        super().start()

    def stop(self) -> None:
        """Stops calling the devices."""
        super().stop()
        self._bells.close()

    def _claim(self) -> None:
        # In one batch: a run that awaits this client finds all regions at once, or nearly so.
        regions = [region for device in self.devices for region in device.regions]
        self.session.run([ops.register_region(region.space, region.start, region.length) for region in regions])
        for device in self.devices:
            for doorbell in device.doorbells:
                self._bells.hang(device, doorbell)

    def _claim_again(self) -> None:
        """Claims the lost regions again; later those that the daemon refuses for now (RegisterRegion's EBUSY)."""
        for region in list(self._lost):
            with suppress(Busy):
                self.session.register_region(region.space, region.start, region.length)
                self._lost.remove(region)
        if self._lost:
            self._later.start(RECLAIM)

    def send(self, changes: list[ops.Call[Any]], retrying: Retrying) -> None:
        """Sends the lines' changes of a turn, without waiting for the results."""
        with suppress(SessionClosed):  # serve() raises it
            self.session.post(changes, partial(self.retry_coalesced, retrying) if retrying else None)

    def failed(self) -> None:
        """Ends serve(), which raises the failure."""
        self.session.close()

    def serve(self) -> None:
        """Answers accesses. Raises SessionClosed when the Session ends, or the exception of a device."""
        try:
            while True:
                event = self.session.next_event()
                with self.undisturbed:
                    self.serve_one(event)
        except SessionClosed:
            if self.failure is not None:
                raise self.failure from None
            raise

    def serve_one(self, event: Event) -> None:
        """Handles an event."""
        match event:
            case RegionAccess():
                with self.turn():
                    self._bells.ring_pending()
                    try:
                        answer = ops.complete_access(event.access, self._access(event))
                    except BaseException:  # the caller gets the exception, and the guest no answer
                        self._changes.append(ops.complete_access(event.access, unanswered=True))
                        raise
                    self._changes.append(answer)
            case VmReset():
                with self.turn():
                    self._bells.forget_pending()
                    self.reset()
            case RegionsLost(space, address):
                log.warning(
                    "too slow to answer an access to %s %#x in time: claiming the regions again", space.name, address
                )
                with self.turn():
                    self._lost = [region for device in self.devices for region in device.regions]
                    self._claim_again()
                    self._bells.hang_again()
            case Doorbell(_, address, size, data):
                with self.turn():
                    for found in find_doorbells(self.devices, address, size, data):
                        ring(*found)
            case _:
                pass

    def _access(self, access: RegionAccess) -> int:
        found = _find(self.devices, access.space, access.address, access.size)
        if found is None:  # the daemon forwards only accesses to claimed regions
            raise IrqchipError(errno.EPROTO, f"an access to {access.address:#x}, outside of this host's regions")
        if access.write:
            _write(*found, access.address, access.data, access.size)
            return 0
        return _read(*found, access.address, access.size)


class LocalHost(_Host):
    """Runs devices in a VMM's process. Its vCPUs' accesses go to the devices first, and then to the daemon.

    events  a Session of the same VM that only this host uses, to receive the VM's resets; without it, call reset()
    memory  the guest's memory
    """

    on_failure: Callable[[], None] | None = None  # Called when `failure` is set, on any thread.

    def __init__(
        self,
        session: Session,
        devices: Iterable[Device],
        events: Session | None = None,
        memory: Ram | None = None,
    ) -> None:
        super().__init__(session, devices)
        self._events = events
        self._ram = memory
        self._published = {} if memory is None else dict(_published(memory))

    def reset(self) -> None:
        """Resets the devices, and erases the notes of other processes' devices: the VM was reset."""
        if self._ram is not None:
            self._ram.erase_notes()
        super().reset()

    def start(self) -> None:
        """Begins to run the devices: their lines have the levels that they drive."""
        super().start()
        if self._events is not None:
            threading.Thread(target=self._listen, args=(self._events,), name="irqchip resets", daemon=True).start()

    def _listen(self, events: Session) -> None:
        # On a Session of its own: on the lines' Session, a thread that waits would receive each answer.
        try:
            while True:
                if isinstance(events.next_event(), VmReset):
                    self.reset()
        except SessionClosed:
            pass
        except Exception as error:
            self._fail(error)

    def stop(self) -> None:
        """Stops calling the devices."""
        if self._events is not None:
            self._events.close()
        super().stop()

    def failed(self) -> None:
        """Calls on_failure."""
        if self.on_failure is not None:
            self.on_failure()

    def send(self, changes: list[ops.Call[Any]], retrying: Retrying) -> None:
        """Sends the lines' changes of a turn, and waits: when an access is done, the lines have their levels."""
        with suppress(SessionClosed):
            self.retry_coalesced(retrying, self.session.run(changes, return_errors=True))

    def pio_read(self, port: int, size: int) -> int | None:
        """A vCPU's IN. None if no device has the port."""
        return self._read(Space.PIO, port, size)

    def pio_write(self, port: int, value: int, size: int) -> bool:
        """A vCPU's OUT. Returns whether a device has the port."""
        return self._write(Space.PIO, port, value, size)

    def pio_read_string(self, port: int, size: int, count: int) -> list[int] | None:
        """A vCPU's INS with REP. None if no device has the port."""
        found = _find(self.devices, Space.PIO, port, size)
        if found is None:
            return None
        with self.turn():
            return [_read(*found, port, size) for _ in range(count)]

    def pio_write_string(self, port: int, values: Sequence[int], size: int) -> bool:
        """A vCPU's OUTS with REP. Returns whether a device has the port."""
        found = _find(self.devices, Space.PIO, port, size)
        if found is None:
            return False
        with self.turn():
            for value in values:
                _write(*found, port, value, size)
        return True

    def mmio_read(self, address: int, size: int) -> int | None:
        """A vCPU's load. None if no device has the address."""
        return self._read(Space.MMIO, address, size)

    def mmio_write(self, address: int, value: int, size: int) -> bool:
        """A vCPU's store. Returns whether a device has the address."""
        return self._write(Space.MMIO, address, value, size)

    def _read(self, space: Space, address: int, size: int) -> int | None:
        found = _find(self.devices, space, address, size)
        if found is None:
            words = self._published.get(address)
            if words is None or not words[IS_CURRENT] or (space, size) != (Space.MMIO, 4):
                return None
            return words[INTERRUPT_STATUS]
        with self.turn():
            return _read(*found, address, size)

    def _write(self, space: Space, address: int, value: int, size: int) -> bool:
        found = _find(self.devices, space, address, size)
        if found is None:
            return space is Space.MMIO and self._ring(address, value, size)
        with self.turn():
            _write(*found, address, value, size)
        return True

    def _ring(self, address: int, value: int, size: int) -> bool:
        found = find_doorbells(self.devices, address, size, value)
        if not found:
            return False
        with self.turn():
            for each in found:
                ring(*each)
        return True


def map_memory(session: Session) -> MappedRam:
    """Maps the guest's memory, as other Sessions share it. NotFound if none shares it; EOPNOTSUPP over gRPC."""
    parts = [session.guest_memory()]
    with suppress(NotFound):
        while len(parts) < MOST_PARTS:
            parts.append(session.guest_memory(parts[-1].address + parts[-1].length))
    return MappedRam(parts)


def _published(memory: Ram) -> Iterator[tuple[int, memoryview]]:
    """The InterruptStatus registers of virtio devices in other processes, and the words in which they publish them."""
    for places in (PC, ARM64):
        for number, place in enumerate(places):
            notes = memory.notes(number)
            if notes is not None:
                yield place.address + Register.INTERRUPT_STATUS, notes[PUBLISHED:].cast("I")


def _find(devices: Iterable[Device], space: Space, address: int, size: int) -> tuple[Device, DeviceRegion] | None:
    for device in devices:
        for region in device.regions:
            if region.space == space and region.start <= address and address + size <= region.start + region.length:
                return device, region
    return None


# Calls of a device. A note on an exception names the device.


def _read(device: Device, region: DeviceRegion, address: int, size: int) -> int:
    try:
        return region.do_read(address, size)
    except Exception as error:
        blame(error, device, f"a read of {_place(region, address, size)}")
        raise


def _write(device: Device, region: DeviceRegion, address: int, value: int, size: int) -> None:
    try:
        region.do_write(address, value, size)
    except Exception as error:
        blame(error, device, f"a write of {value:#x} to {_place(region, address, size)}")
        raise


def _place(region: DeviceRegion, address: int, size: int) -> str:
    where = "port" if region.space is Space.PIO else "address"
    return f"{size} byte{'s' if size > 1 else ''} at {where} {address:#x}"

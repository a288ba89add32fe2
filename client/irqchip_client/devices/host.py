"""Who runs device models: in a process of their own, through a Session, or within a VMM's."""

from __future__ import annotations

import errno
import logging
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from types import FrameType
from typing import Any

from irqchip_client import ops
from irqchip_client._errors import Busy, InvalidArgument, IrqchipError, NotFound, SessionClosed, TimedOut, Unavailable
from irqchip_client._events import Event, RegionAccess, RegionsLost, VmReset
from irqchip_client._model import Space
from irqchip_client._sync.client import Vm, connect
from irqchip_client._sync.session import Session

from .device import Device, DeviceRegion, OutputLine
from .failures import blame
from .reactor import Reactor
from .saving import Plain, refused

COALESCED = 0  # a status of KVM_IRQ_LINE_STATUS
SILENCE = 3.0  # seconds of waiting, after which it says so
INSISTENCE = 0.001  # seconds, after which a coalesced edge is made again
RECLAIM = 1.0  # seconds, after which a host that was too slow twice tries again to claim its regions

# Lines that insist, and which of a turn's operations raised them.
Insisting = list[tuple[OutputLine, int]]

log = logging.getLogger("irqchip_client.devices")


class _Host:
    """Devices, called by one thread at a time; what their lines do in a turn is told at its end, in order."""

    def __init__(self, session: Session, devices: Iterable[Device]) -> None:
        self.devices = list(devices)
        self.session = session
        self.failure: BaseException | None = None
        self._lock = threading.RLock()
        self._changes: list[ops.Call[Any]] = []
        self._insisting: Insisting = []
        self._coalesced: set[OutputLine] = set()
        self._reactor = Reactor(self.turn, self._fail)
        self.arm = self._reactor.arm
        self.watch = self._reactor.watch
        self.now = time.monotonic
        clock = Device("clock")
        clock.host = self
        self._again = clock.timer(self._make_again)

    def start(self) -> None:
        """Run them: their lines have the levels that they drive, and they are told."""
        lines = [line for device in self.devices for line in device.lines]
        for device in self.devices:
            device.run_by(self)
        self.session.run([ops.irq_line(line.gsi, line.level) for line in lines])  # NotReady without an irqchip
        with self.turn():
            for device in self.devices:
                _call(device, "started", device.started)
        self._reactor.start()

    def stop(self) -> None:
        """They are called no more."""
        self._reactor.stop()

    def reset(self) -> None:
        """The VM is reset: so are they."""
        with self.turn():
            for device in self.devices:
                _call(device, "reset", device.reset)

    def save(self) -> list[Plain]:
        """The state of each, as plain data, at one moment; any thread may ask."""
        with self.turn():
            return [device.save() for device in self.devices]

    def restore(self, saved: Plain) -> None:
        """They are what save() said, before start() or after. InvalidArgument, and nothing has changed."""
        if type(saved) is not list or len(saved) != len(self.devices):
            raise refused("all", saved, f"a list of {len(self.devices)}, one of each device")
        checked = [device.check_saved(each) for device, each in zip(self.devices, saved, strict=True)]
        with self.turn():
            for device, state in zip(self.devices, checked, strict=True):
                device.put_restored(state)

    @contextmanager
    def turn(self) -> Generator[None, None, None]:
        """While a device is called."""
        with self._lock:
            try:
                yield
            finally:
                changes, self._changes = self._changes, []
                insisting, self._insisting = self._insisting, []
                if changes:
                    self.tell(changes, insisting)

    def drive(self, line: OutputLine) -> None:
        """See Host."""
        self._changes.append(ops.irq_line(line.gsi, line.level))
        if line.insists and line.level:
            self._insisting.append((line, len(self._changes) - 1))

    def tell(self, changes: list[ops.Call[Any]], insisting: Insisting) -> None:
        """What lines did in a turn. The results are for `insist`, with who does."""
        raise NotImplementedError

    def insist(self, insisting: Insisting, results: list[Any]) -> None:
        """An edge that was coalesced is made again. Any thread may call this.

        KVM: ioapic.c rtc_irq_check_coalesced: an edge of the RTC's is dropped while its last is not ended, and if the
        line stays high as nobody sees it, there is no other. Userspace has to try again, as QEMU does.
        """
        coalesced = [line for line, position in insisting if results[position] == COALESCED]
        if coalesced:
            self._reactor.call_soon(partial(self._wait_and_insist, coalesced))

    def _wait_and_insist(self, lines: list[OutputLine]) -> None:
        self._coalesced.update(lines)
        self._again.start(INSISTENCE)

    def _make_again(self) -> None:
        lines, self._coalesced = self._coalesced, set()
        for line in lines:
            if line.level:
                line.set(False)
                line.set(True)

    def _fail(self, error: BaseException) -> None:
        """A device raised an exception in a timer, or a descriptor's callback."""
        self.failure = error
        self.failed()

    def failed(self) -> None:
        """See failure; called by any thread."""
        raise NotImplementedError


class RemoteHost(_Host):
    """Runs a device for a VM whose vCPUs are other processes'."""

    # What an event is handled in; see _Stop.
    undisturbed: AbstractContextManager[None] = nullcontext()

    def __init__(self, session: Session, devices: Iterable[Device]) -> None:
        super().__init__(session, devices)
        self._lost: list[DeviceRegion] = []
        clock = Device("claims")
        clock.host = self
        self._later = clock.timer(self._claim_again)

    def start(self) -> None:
        """Claim its regions and run it. AlreadyExists where they are claimed."""
        self._claim()
        super().start()

    def _claim(self) -> None:
        for device in self.devices:
            for region in device.regions:
                self.session.register_region(region.space, region.start, region.length)

    def _claim_again(self) -> None:
        """Claim what was lost, and what is refused for now (EBUSY of RegisterRegion) later."""
        for region in list(self._lost):
            with suppress(Busy):
                self.session.register_region(region.space, region.start, region.length)
                self._lost.remove(region)
        if self._lost:
            self._later.start(RECLAIM)

    def tell(self, changes: list[ops.Call[Any]], insisting: Insisting) -> None:
        """See _Host. Nobody waits for the results."""
        with suppress(SessionClosed):  # as serve() finds out
            self.session.post(changes, partial(self.insist, insisting) if insisting else None)

    def failed(self) -> None:
        """See _Host."""
        self.session.close()

    def serve(self) -> None:
        """Answer accesses. Raises SessionClosed at the Session's end, or what the device raised."""
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
        """What happened."""
        match event:
            case RegionAccess():
                with self.turn():
                    try:
                        answer = ops.complete_access(event.access, self._access(event))
                    except BaseException:  # the device's owner hears of it, and the guest that there is no answer
                        self._changes.append(ops.complete_access(event.access, unanswered=True))
                        raise
                    self._changes.append(answer)
            case VmReset():
                self.reset()
            case RegionsLost(space, address):
                log.warning(
                    "too slow to answer an access to %s %#x in time: claiming the regions again", space.name, address
                )
                with self.turn():
                    self._lost = [region for device in self.devices for region in device.regions]
                    self._claim_again()
            case _:
                pass

    def _access(self, access: RegionAccess) -> int:
        found = _find(self.devices, access.space, access.address, access.size)
        if found is None:  # it is claimed for us, so this is not to be
            raise IrqchipError(errno.EPROTO, f"an access to {access.address:#x}, which is no region of ours")
        if access.write:
            _write(*found, access.address, access.data, access.size)
            return 0
        return _read(*found, access.address, access.size)


class LocalHost(_Host):
    """Runs devices within a VMM, whose vCPUs find them before they ask the daemon: see vmm.accesses.LocalDevices.

    events  a Session of the same VM, which is this host's own: it hears there of resets; without, call reset()
    """

    on_failure: Callable[[], None] | None = None  # Called by any thread, when there is a failure.

    def __init__(self, session: Session, devices: Iterable[Device], events: Session | None = None) -> None:
        super().__init__(session, devices)
        self._events = events

    def start(self) -> None:
        """See _Host."""
        super().start()
        if self._events is not None:
            threading.Thread(target=self._listen, args=(self._events,), name="irqchip resets", daemon=True).start()

    def _listen(self, events: Session) -> None:
        # Not on the Session that drives the lines: a thread that waits there would be in the way of each answer.
        try:
            while True:
                if isinstance(events.next_event(), VmReset):
                    self.reset()
        except SessionClosed:
            pass
        except Exception as error:
            self._fail(error)

    def stop(self) -> None:
        """See _Host."""
        if self._events is not None:
            self._events.close()
        super().stop()

    def failed(self) -> None:
        """See _Host."""
        if self.on_failure is not None:
            self.on_failure()

    def tell(self, changes: list[ops.Call[Any]], insisting: Insisting) -> None:
        """See _Host. When the access is done, the lines have their levels."""
        with suppress(SessionClosed):
            self.insist(insisting, self.session.run(changes, return_errors=True))

    def pio_read(self, port: int, size: int) -> int | None:
        """See LocalDevices."""
        return self._read(Space.PIO, port, size)

    def pio_write(self, port: int, value: int, size: int) -> bool:
        """See LocalDevices."""
        return self._write(Space.PIO, port, value, size)

    def mmio_read(self, address: int, size: int) -> int | None:
        """See LocalDevices."""
        return self._read(Space.MMIO, address, size)

    def mmio_write(self, address: int, value: int, size: int) -> bool:
        """See LocalDevices."""
        return self._write(Space.MMIO, address, value, size)

    def _read(self, space: Space, address: int, size: int) -> int | None:
        found = _find(self.devices, space, address, size)
        if found is None:
            return None
        with self.turn():
            return _read(*found, address, size)

    def _write(self, space: Space, address: int, value: int, size: int) -> bool:
        found = _find(self.devices, space, address, size)
        if found is None:
            return False
        with self.turn():
            _write(*found, address, value, size)
        return True


def _find(devices: Iterable[Device], space: Space, address: int, size: int) -> tuple[Device, DeviceRegion] | None:
    for device in devices:
        for region in device.regions:
            if region.space == space and region.start <= address and address + size <= region.start + region.length:
                return device, region
    return None


# Calls of a device, with what it raises blamed on it.


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


def _call(device: Device, what: str, call: Callable[[], None]) -> None:
    try:
        call()
    except Exception as error:
        blame(error, device, f"{what}()")
        raise


def run_device(device: Device, vm: str, *, target: str | None = None, patience: float = 30.0) -> None:
    """Runs a device in this process, for the VM of this name, until SIGTERM or SIGINT, or until the VM is deleted.

    target    the daemon's address; by default as connect() finds it
    patience  seconds to wait for a daemon, and for the VM to be there with its irqchip

    If the VM was restored, and keeps the levels of a device of this name, the device takes them over. However it ends,
    device.save() is then what it was; restore it before this, and it goes on.

    Raises SessionClosed where the daemon stops; AlreadyExists where something claims its ports or
    addresses; NotFound or Unavailable when the patience is over; and whatever the device raises, with a note that says
    in which call.
    """
    if not isinstance(device, Device):
        hint = f": make one, {device.__name__}(...)" if isinstance(device, type) else ""
        raise InvalidArgument(errno.EINVAL, f"device is {device!r:.200}, and no Device{hint}")
    with _stopped_by_signals() as stop, connect(target) as client:
        machine = _wait_for(lambda: client.vm(vm), patience)
        with _session(machine, device.name) as session:
            host = RemoteHost(session, [device])
            host.undisturbed = stop
            try:
                host.start()
                log.info("%s: %s", device.name, describe(device))
                host.serve()
            except SessionClosed as error:
                if not isinstance(error.__cause__, NotFound):
                    raise
                log.info("%s: VM %r has been deleted", device.name, vm)
            finally:
                host.stop()


def _session(vm: Vm, name: str) -> Session:
    """A Session; of a VM that was restored, in the place of the device that had this name before."""
    try:
        return vm.session(name, resume=True)
    except NotFound:
        return vm.session(name)


def describe(device: Device) -> str:
    """Its regions and lines, for people to read."""
    regions = [f"{r.space.name} {r.start:#x}-{r.start + r.length - 1:#x}" for r in device.regions]
    return ", ".join(regions + [f"GSI {line.gsi}" for line in device.lines])


def _wait_for(find: Callable[[], Vm], patience: float) -> Vm:
    began = time.monotonic()
    deadline, told = began + patience, False
    while True:
        vm = find()
        try:
            if vm.info().irqchip:
                return vm
            missing: IrqchipError = NotFound(errno.ENOENT, f"VM {vm.name!r} has no irqchip")
        except (NotFound, Unavailable, TimedOut) as error:
            missing = error
        if time.monotonic() > deadline:
            if patience >= 1:
                make = f"; `irqchipctl create {vm.name}` makes it" if missing.reason == "ENOENT" else ""
                missing = type(missing)(missing.errno, f"{missing.message}; waited for {patience:g} s{make}")
            raise missing
        if not told and time.monotonic() > began + SILENCE:
            told = True
            log.info("waiting for VM %r: %s", vm.name, missing.message)
        time.sleep(0.05)


class _Stopped(BaseException):
    """SIGTERM or SIGINT."""


class _Stop:
    """How a signal ends the main thread's work: at once, but within this context only behind it.

    So a device is never left in the middle of an access, and can be saved. A second signal does not wait.
    """

    def __init__(self) -> None:
        self._deferring = False
        self._asked = False

    def ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal's handler
        """A signal says stop."""
        again, self._asked = self._asked, True
        if again or not self._deferring:
            raise _Stopped

    def __enter__(self) -> None:
        self._deferring = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._deferring = False
        if self._asked and kind is None:
            raise _Stopped


@contextmanager
def _stopped_by_signals() -> Generator[_Stop, None, None]:
    """Ends its body without an error when a signal says stop. Only the main thread can be told."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    except _Stopped:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

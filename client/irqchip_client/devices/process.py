"""Runs a device in a process of its own: from waiting for its VM to a signal or the VM's deletion."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

from irqchip_client._errors import Busy, InvalidArgument, IrqchipError, NotFound, SessionClosed, TimedOut, Unavailable
from irqchip_client._model import DeviceType, VmInfo
from irqchip_client._sync.client import Vm, connect
from irqchip_client._sync.session import Session
from irqchip_client.arm64 import gsi_or_line

from .device import Device
from .host import RemoteHost

SILENCE = 3.0  # seconds of waiting before a log line about it

log = logging.getLogger("irqchip_client.devices")


def run_device(device: Device, vm: str, *, target: str | None = None, start_timeout: float = 30.0) -> None:
    """Runs a device in this process, for the VM of this name, until SIGTERM, SIGINT or the VM's deletion.

    target         the daemon's address; the default is that of connect()
    start_timeout  how many seconds to wait for the daemon, the VM and its irqchip, initialised if it is a GIC

    If the VM was restored and holds a line source of this device's name, the device takes the line source over. A
    device that was restored before run_device() continues from that state. After run_device(), device.save() returns
    the state at the end.

    Raises SessionClosed if the daemon stops; AlreadyExists if the device's ports or addresses are claimed; NotFound,
    Unavailable or Busy after start_timeout; and any exception of the device, with a note that names the call.
    """
    if not isinstance(device, Device):
        hint = f": make one, {device.__name__}(...)" if isinstance(device, type) else ""
        raise InvalidArgument(errno.EINVAL, f"device is {device!r:.200}, and no Device{hint}")
    with _stopped_by_signals() as stop, connect(target) as client:
        began = time.monotonic()
        machine, info = _wait_for(lambda: client.vm(vm), start_timeout)
        device.place(info.architecture)
        with _session(machine, device.name) as session:
            if device.USES_MEMORY:
                wait_for_memory(session, began + start_timeout)
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
    """A Session; on a restored VM, with the line source of this name, if the VM holds one."""
    try:
        return vm.session(name, resume=True)
    except NotFound:
        return vm.session(name)


def wait_for_memory(session: Session, deadline: float) -> None:
    """Waits until a Session shares the guest's memory. NotFound after the deadline, of time.monotonic()."""
    while True:
        try:
            os.close(session.guest_memory().memfd)
            return
        except NotFound as error:
            if time.monotonic() > deadline:
                error.message += "; `irqchipctl run` shares it with --listen, --await or --target"
                raise
        time.sleep(0.05)


def describe(device: Device) -> str:
    """The device's regions and lines, for a log line."""
    regions = [f"{r.space.name} {r.start:#x}-{r.start + r.length - 1:#x}" for r in device.regions]
    return ", ".join(regions + [gsi_or_line(line.gsi) for line in device.lines])


def _wait_for(find: Callable[[], Vm], timeout: float) -> tuple[Vm, VmInfo]:
    """Waits until a VM exists and its irqchip takes lines. Returns the VM and its description."""
    began = time.monotonic()
    deadline, logged = began + timeout, False
    while True:
        vm = find()
        try:
            info = vm.info()
            if info.irqchip and not _awaits_init(info):
                return vm, info
            missing: IrqchipError = NotFound(errno.ENOENT, f"VM {vm.name!r} has no irqchip")
            if info.irqchip:
                missing = Busy(
                    errno.EBUSY, f"the GIC of VM {vm.name!r} is not initialised: set its attribute CTRL_INIT"
                )
        except (NotFound, Unavailable, TimedOut) as error:
            missing = error
        if time.monotonic() > deadline:
            if timeout >= 1:
                make = f"; `irqchipctl create {vm.name}` makes it" if missing.reason == "ENOENT" else ""
                missing = type(missing)(missing.errno, f"{missing.message}; waited for {timeout:g} s{make}")
            raise missing
        if not logged and time.monotonic() > began + SILENCE:
            logged = True
            log.info("waiting for VM %r: %s", vm.name, missing.message)
        time.sleep(0.05)


def _awaits_init(info: VmInfo) -> bool:
    """Whether the VM's maker has yet to initialise the GIC.

    A GICv3 refuses lines until its maker initialises it. A GICv2 initialises itself for the first line, which would be
    too early for its maker's attributes and vCPUs; CreateIrqchip alone leaves that to the GICv2.
    """
    if info.gic is None or info.gic.initialised:
        return False
    return info.gic.version == 3 or DeviceType.ARM_VGIC_V2 in info.devices


class _Stopped(BaseException):
    """SIGTERM or SIGINT."""


class _Stop:
    """Ends the main thread's work by a signal: at once, but within this context at the context's end.

    So a signal leaves no device in the middle of an access, and the device can be saved. A second signal does not wait.
    """

    def __init__(self) -> None:
        self._deferring = False
        self._asked = False

    def ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal's handler
        """The signals' handler."""
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
    """Ends its body without an error when a signal comes. Python runs handlers on the main thread alone."""
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

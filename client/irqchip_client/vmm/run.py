"""A whole machine: irqchipd's chips, this process's devices, and vCPUs that run a guest."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic

from irqchip_client import Chip, PinRoute
from irqchip_client._errors import IrqchipError, NotFound, Unavailable
from irqchip_client._sync.client import Client, Vm
from irqchip_client.devices.device import Device
from irqchip_client.devices.host import LocalHost
from irqchip_client.devices.virtio.places import MOST

from .adapter import Adapter, StartT
from .memory import GuestMemory


class Vcpus(Generic[StartT]):
    """A machine's vCPUs, each run by a thread. All but the first wait for INIT and SIPI."""

    def __init__(self, first: Adapter[StartT], others: Sequence[Adapter[StartT]]) -> None:
        self._first = first
        self._others = others
        self._failures: list[BaseException] = []

    def start(self, start: StartT) -> None:
        """Sets where the first vCPU begins."""
        self._first.start(start)

    def run(self) -> None:
        """Runs the guest until stop(). Raises the exception of the first vCPU that fails."""
        threads = [threading.Thread(target=self._run_other, args=(vcpu,), daemon=True) for vcpu in self._others]
        for thread in threads:
            thread.start()
        try:
            self._first.run()
        finally:
            self.stop()
            for thread in threads:
                thread.join()
        if self._failures:
            raise self._failures[0]

    def _run_other(self, vcpu: Adapter[StartT]) -> None:
        try:
            vcpu.run()
        except Exception as error:
            self._failures.append(error)
            self.stop()

    def stop(self) -> None:
        """Ends run(). From any thread, and from within an access."""
        for vcpu in (self._first, *self._others):
            vcpu.stop()


@contextmanager
def create_machine(client: Client, name: str = "", vcpus: int = 1, tsc_khz: int = 0) -> Iterator[Vm]:
    """A VM with an irqchip, a PIT and vCPUs. The end of the `with` or of this process deletes it.

    tsc_khz  the frequency of the vCPUs' TSCs, as in Client.create_vm()

    AlreadyExists if another VM has the name.

    Its GSIs are routed as in QEMU's PC: GSI 0, the PIT's, to the IOAPIC's pin 2, and not to pin 0 as by
    create_irqchip().
    """
    vm = client.create_vm(name, ephemeral=True, tsc_khz=tsc_khz)
    try:
        vm.create_irqchip()
        vm.set_routing(routes_of_a_pc())
        vm.create_pit()
        for vcpu in range(vcpus):
            vm.create_vcpu(vcpu)
        yield vm
    finally:
        with suppress(NotFound, Unavailable):  # another client deleted the VM, or the daemon has ended
            vm.delete()


def routes_of_a_pc() -> Iterator[PinRoute]:
    """The routes of a PC: see create_machine()."""
    for irq in range(16):
        yield PinRoute(irq, Chip.PIC_PRIMARY if irq < 8 else Chip.PIC_SECONDARY, irq % 8)
    for gsi in range(24):
        if gsi != 2:
            yield PinRoute(gsi, Chip.IOAPIC, gsi or 2)


def make_memory(size: int, start: int, *, shared: bool) -> GuestMemory:
    """A guest's memory: for shared_memory(), or for this process alone."""
    return GuestMemory.shareable(size, start=start, notes=MOST) if shared else GuestMemory(size, start=start)


@contextmanager
def shared_memory(vm: Vm, memory: GuestMemory) -> Iterator[None]:
    """Shares memory that is shareable with the processes that run the VM's devices. Over gRPC it does nothing."""
    if memory.memfd < 0:
        yield
        return
    with vm.session("memory") as session:
        try:
            session.share_memory(memory.memfd, memory.start, memory.size)
        except IrqchipError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
        yield


@contextmanager
def local_devices(vm: Vm, devices: Sequence[Device], memory: GuestMemory | None = None) -> Iterator[LocalHost]:
    """Runs devices in this process, for its vCPUs: with a Session for their lines, and another for the VM's resets."""
    with vm.session("devices") as session, vm.session("devices events") as events:
        host = LocalHost(session, devices, events, memory)
        try:
            host.start()
            yield host
        finally:
            host.stop()


@contextmanager
def time_limit(vcpus: Vcpus[Any], seconds: float | None) -> Iterator[threading.Event]:
    """Stops the vCPUs after `seconds`, unless that is None. The event is set once they were stopped."""
    over = threading.Event()

    def end() -> None:
        over.set()
        vcpus.stop()

    timer = threading.Timer(seconds or 0, end)
    timer.daemon = True
    if seconds is not None:
        timer.start()
    try:
        yield over
    finally:
        timer.cancel()

"""A whole machine: irqchipd's chips, this process's devices, and a guest that is run."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal, Protocol

from irqchip_client import Chip, PinRoute
from irqchip_client._errors import InvalidArgument, NotFound, Unavailable
from irqchip_client._sync.client import Client, Vm
from irqchip_client.devices.device import Device
from irqchip_client.devices.host import LocalHost

from .accesses import LocalDevices
from .memory import GuestMemory
from .start import Start

CpuKind = Literal["kvm", "unicorn"]


class Cpu(Protocol):
    """A vCPU's adapter: see irqchip_client.kvm and irqchip_client.unicorn."""

    def start(self, start: Start) -> None:
        """How it begins."""

    def run(self) -> None:
        """Runs the guest until stop(). Raises GuestError where it can't go on."""

    def stop(self) -> None:
        """Ends run(), from any thread and from within an access."""


class Cpus:
    """A machine's vCPUs, each run by a thread: a Cpu like each of them. All but the first wait for INIT and SIPI."""

    def __init__(self, first: Cpu, others: Sequence[Cpu]) -> None:
        self._first = first
        self._others = others
        self._failures: list[BaseException] = []

    def start(self, start: Start) -> None:
        """How the first begins."""
        self._first.start(start)

    def run(self) -> None:
        """See Cpu. Raises what the first of them to fail has raised."""
        threads = [threading.Thread(target=self._run_other, args=(cpu,), daemon=True) for cpu in self._others]
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

    def _run_other(self, cpu: Cpu) -> None:
        try:
            cpu.run()
        except Exception as error:
            self._failures.append(error)
            self.stop()

    def stop(self) -> None:
        """See Cpu."""
        for cpu in (self._first, *self._others):
            cpu.stop()


@contextmanager
def create_cpus(kind: CpuKind, memory: GuestMemory, vm: Vm, count: int, local: LocalDevices | None) -> Iterator[Cpus]:
    """Adapters of this kind, of vCPUs 0 on.

    ImportError without the library Unicorn, with which there is one vCPU alone: InvalidArgument; OSError where /dev/kvm
    can't be used.
    """
    with ExitStack() as stack:
        cpus: list[Any]  # which are context managers, too
        if kind == "kvm":
            from irqchip_client.kvm import KvmCpu, KvmVm

            kvm = stack.enter_context(KvmVm(memory))
            cpus = [stack.enter_context(KvmCpu(kvm, vm, vcpu, local=local)) for vcpu in range(count)]
        elif count > 1:
            raise InvalidArgument(errno.EINVAL, "with Unicorn a machine has one vCPU; KVM can have more")
        else:
            from irqchip_client.unicorn import UnicornCpu

            cpus = [stack.enter_context(UnicornCpu(memory, vm, 0, local=local))]
        yield Cpus(cpus[0], cpus[1:])


@contextmanager
def create_machine(client: Client, name: str = "", vcpus: int = 1) -> Iterator[Vm]:
    """A VM with an irqchip, a PIT and so many vCPUs, deleted in the end, also of a process that is killed.

    AlreadyExists where the name is taken.

    Its GSIs are a PC's, as QEMU's: GSI 0, the PIT's, is the IOAPIC's pin 2, and not pin 0 as after create_irqchip().
    """
    vm = client.create_vm(name, ephemeral=True)
    try:
        vm.create_irqchip()
        vm.set_routing(_routes_of_a_pc())
        vm.create_pit()
        for vcpu in range(vcpus):
            vm.create_vcpu(vcpu)
        yield vm
    finally:
        with suppress(NotFound, Unavailable):  # as somebody deleted it, or the daemon has gone
            vm.delete()


def _routes_of_a_pc() -> Iterator[PinRoute]:
    for irq in range(16):
        yield PinRoute(irq, Chip.PIC_PRIMARY if irq < 8 else Chip.PIC_SECONDARY, irq % 8)
    for gsi in range(24):
        if gsi != 2:
            yield PinRoute(gsi, Chip.IOAPIC, gsi or 2)


@contextmanager
def local_devices(vm: Vm, devices: Sequence[Device]) -> Iterator[LocalHost]:
    """Runs devices in this process, for vCPUs of this process, with a Session for their lines, and one that hears."""
    with vm.session("devices") as session, vm.session("devices events") as events:
        host = LocalHost(session, devices, events)
        try:
            host.start()
            yield host
        finally:
            host.stop()


@contextmanager
def time_limit(cpu: Cpu, seconds: float | None) -> Iterator[threading.Event]:
    """Stops a vCPU after so many seconds: the event says whether it did."""
    over = threading.Event()

    def end() -> None:
        over.set()
        cpu.stop()

    timer = threading.Timer(seconds or 0, end)
    timer.daemon = True
    if seconds is not None:
        timer.start()
    try:
        yield over
    finally:
        timer.cancel()

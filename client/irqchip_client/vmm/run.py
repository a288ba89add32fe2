"""A whole machine of one vCPU: irqchipd's chips, this process's devices, and a guest that is run."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal, Protocol

from irqchip_client._errors import NotFound, Unavailable
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


@contextmanager
def create_cpu(kind: CpuKind, memory: GuestMemory, vm: Vm, vcpu: int, local: LocalDevices | None) -> Iterator[Cpu]:
    """An adapter of this kind. ImportError without the library Unicorn; OSError where /dev/kvm can't be used."""
    with ExitStack() as stack:
        cpu: Any  # a context manager of itself
        if kind == "kvm":
            from irqchip_client.kvm import KvmCpu, KvmVm

            cpu = KvmCpu(stack.enter_context(KvmVm(memory)), vm, vcpu, local=local)
        else:
            from irqchip_client.unicorn import UnicornCpu

            cpu = UnicornCpu(memory, vm, vcpu, local=local)
        yield stack.enter_context(cpu)


@contextmanager
def create_machine(client: Client, name: str = "") -> Iterator[Vm]:
    """A VM with an irqchip, a PIT and vCPU 0, deleted in the end. AlreadyExists where the name is taken."""
    vm = client.create_vm(name)
    try:
        vm.create_irqchip()
        vm.create_pit()
        vm.create_vcpu(0)
        yield vm
    finally:
        with suppress(NotFound, Unavailable):  # as somebody deleted it, or the daemon has gone
            vm.delete()


@contextmanager
def local_devices(vm: Vm, devices: Sequence[Device]) -> Iterator[LocalHost]:
    """Runs devices in this process, for vCPUs of this process, with a Session for their lines."""
    with vm.session("devices") as session:
        host = LocalHost(session, devices)
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

"""The machines that `run` can make: a PC, and one for arm64."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import irqchip_client

if TYPE_CHECKING:
    from irqchip_client.devices import Device, LocalHost
    from irqchip_client.vmm.adapter import Adapter
    from irqchip_client.vmm.exit_stats import ExitStats
    from irqchip_client.vmm.memory import GuestMemory
    from irqchip_client.vmm.run import Vcpus
    from irqchip_client.vmm.start import Arm64Start, Start

LOCAL = ("serial", "exit", "fw_cfg", "lines", "power")
End = Callable[[int], None]  # ends the run, with an exit status


class Machine(Protocol):
    """A guest's machine.

    ram    where its RAM begins
    cpu    what executes it
    about  a likely reason for a guest that can't go on, behind the error's text
    """

    @property
    def ram(self) -> int: ...
    @property
    def cpu(self) -> str: ...
    @property
    def about(self) -> str: ...

    def load(self, memory: GuestMemory, append: str, initrd: bytes | None) -> Any:
        """Puts the kernel into memory. Returns how the first vCPU starts."""

    def describe(self, memory: GuestMemory, vm: irqchip_client.Vm, local: LocalHost) -> None:
        """Puts tables into memory that describe the VM and its devices, which are all there now."""

    def create(self, client: irqchip_client.Client, name: str) -> AbstractContextManager[irqchip_client.Vm]:
        """Creates the VM, which is deleted in the end."""

    def devices(self, end: End, memory_size: int) -> AbstractContextManager[list[Device]]:
        """The devices of this process."""

    def vcpus(
        self, memory: GuestMemory, vm: irqchip_client.Vm, local: LocalHost, end: End, exits: ExitStats | None
    ) -> AbstractContextManager[Vcpus[Any]]:
        """Adapters for the vCPUs from 0 on, which count the guest's exits if `exits` is given.

        ImportError without the library Unicorn; InvalidArgument for more than one vCPU with it; OSError where /dev/kvm
        can't be used.
        """


def choose_machine(
    arch: str | None, cpu: str | None, kernel: Path, vcpus: int, gic: int, without: tuple[str, ...]
) -> Machine:
    """The machine for a kernel. InvalidArgument for what it can't have."""
    from irqchip_client.vmm.arm64 import is_arm64

    image = kernel.read_bytes()
    if arch == "arm64" or (arch is None and is_arm64(image)):
        if cpu == "kvm":
            raise _refused("--cpu kvm is for x86: an arm64 guest runs on Unicorn; leave --cpu out")
        return _Arm64Machine(image, vcpus, gic, without)
    return _Pc(kernel, image, cpu, vcpus, without)


class _Pc:
    ram = 0

    def __init__(self, kernel: Path, image: bytes, cpu: str | None, vcpus: int, without: tuple[str, ...]) -> None:
        from irqchip_client.vmm.image import parse_image

        self.cpu = cpu or ("kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "unicorn")
        self._kernel = kernel
        self._image = parse_image(image)
        self._vcpus = vcpus
        self._without = without

    @property
    def about(self) -> str:
        if self._image.multiboot:
            return ""
        return f". {self._kernel} has no multiboot header, and was taken for a flat binary of 16-bit code: is it one?"

    def load(self, memory: GuestMemory, append: str, initrd: bytes | None) -> Start:
        from irqchip_client.vmm.image import load

        # As with QEMU and GRUB, the first word is the kernel's name, which kernels skip.
        line = f"{self._kernel} {append}".rstrip() if self._image.multiboot else append
        return load(memory, self._image, command_line=line, initrd=initrd)

    def describe(self, memory: GuestMemory, vm: irqchip_client.Vm, local: LocalHost) -> None:
        from irqchip_client.vmm.pc.board import read_board
        from irqchip_client.vmm.pc.tables import write_tables

        write_tables(memory, read_board(vm, (region for device in local.devices for region in device.regions)))

    def create(self, client: irqchip_client.Client, name: str) -> AbstractContextManager[irqchip_client.Vm]:
        from irqchip_client.vmm.run import create_machine

        if self.cpu != "kvm":
            return create_machine(client, name, self._vcpus)
        from irqchip_client.kvm import guest_tsc_khz

        return create_machine(client, name, self._vcpus, guest_tsc_khz())

    @contextmanager
    def devices(self, end: End, memory_size: int) -> Iterator[list[Device]]:
        from irqchip_client.devices import DebugExit, FwCfg, LinePorts, PowerManagement, Uart

        with ExitStack() as stack:
            devices: list[Device] = []
            if "serial" not in self._without:
                typed, output = stack.enter_context(_terminal(end))
                devices.append(Uart(output, typed, out2_gates=False, patient=True))  # as QEMU's
            if "exit" not in self._without:
                devices.append(DebugExit(end))
            if "fw_cfg" not in self._without:
                devices.append(FwCfg(self._vcpus, memory_size))
            if "lines" not in self._without:
                devices.append(LinePorts())
            if "power" not in self._without:
                # As with QEMU's -no-reboot, a reset ends the run.
                devices.append(PowerManagement(lambda: end(0), lambda: end(0)))
            yield devices

    @contextmanager
    def vcpus(
        self,
        memory: GuestMemory,
        vm: irqchip_client.Vm,
        local: LocalHost,
        end: End,  # noqa: ARG002 - a PC's guest has a device for it
        exits: ExitStats | None,
    ) -> Iterator[Vcpus[Start]]:
        from irqchip_client.vmm.run import Vcpus

        with ExitStack() as stack:
            adapters: list[Adapter[Start]]
            if self.cpu == "kvm":
                from irqchip_client.kvm import KvmVcpu, KvmVm

                kvm = stack.enter_context(KvmVm(memory))
                adapters = [
                    stack.enter_context(KvmVcpu(kvm, vm, vcpu, local=local, exits=exits)) for vcpu in range(self._vcpus)
                ]
            elif self._vcpus > 1:
                raise _refused("with Unicorn a machine has one vCPU; KVM can have more")
            else:
                from irqchip_client.unicorn import UnicornVcpu

                adapters = [stack.enter_context(UnicornVcpu(memory, vm, 0, local=local, exits=exits))]
            yield Vcpus(adapters[0], adapters[1:])


class _Arm64Machine:
    cpu = "unicorn"
    about = ""

    def __init__(self, image: bytes, vcpus: int, gic: int, without: tuple[str, ...]) -> None:
        from irqchip_client.vmm.arm64 import RAM

        if vcpus > 1:
            raise _refused("with Unicorn a machine has one vCPU")
        self.ram = RAM
        self._image = image
        self._gic = gic
        self._without = without

    def load(self, memory: GuestMemory, append: str, initrd: bytes | None) -> Arm64Start:
        from irqchip_client.vmm.arm64 import load_arm64

        return load_arm64(memory, self._image, command_line=append, initrd=initrd, gic=self._gic)

    def describe(self, memory: GuestMemory, vm: irqchip_client.Vm, local: LocalHost) -> None:
        """Does nothing: load() has made the device tree."""

    def create(self, client: irqchip_client.Client, name: str) -> AbstractContextManager[irqchip_client.Vm]:
        from irqchip_client.vmm.arm64 import create_arm64_machine

        return create_arm64_machine(client, name, gic=self._gic)

    @contextmanager
    def devices(self, end: End, memory_size: int) -> Iterator[list[Device]]:  # noqa: ARG002 - of a PC's fw_cfg
        from irqchip_client.devices import Uart
        from irqchip_client.vmm.arm64 import SERIAL, SERIAL_LINE

        if "serial" in self._without:
            yield []
            return
        with _terminal(end) as (typed, output):
            yield [Uart(output, typed, SERIAL, SERIAL_LINE, mmio=True, out2_gates=False, patient=True)]

    @contextmanager
    def vcpus(
        self, memory: GuestMemory, vm: irqchip_client.Vm, local: LocalHost, end: End, exits: ExitStats | None
    ) -> Iterator[Vcpus[Arm64Start]]:
        from irqchip_client.unicorn import Alone, UnicornArm64Vcpu
        from irqchip_client.vmm.run import Vcpus

        power = Alone(turned_off=lambda: end(0))
        with UnicornArm64Vcpu(memory, vm, 0, local=local, power=power, exits=exits) as vcpu:
            yield Vcpus(vcpu, [])


@contextmanager
def _terminal(end: End) -> Iterator[tuple[int | None, Any]]:
    """Where a serial port's characters come from, and where they go."""
    from irqchip_client.devices.terminal import terminal_input

    def nowhere(data: bytes) -> None:
        """The output where stdout is closed."""

    with terminal_input(lambda: end(0)) as typed:
        yield typed, nowhere if sys.stdout is None else sys.stdout.fileno()


def _refused(why: str) -> irqchip_client.InvalidArgument:
    return irqchip_client.InvalidArgument(errno.EINVAL, why)

"""The machines that `run` can make: a PC, and one for arm64."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import irqchip_client

if TYPE_CHECKING:
    from irqchip_client.devices import Device, LocalHost
    from irqchip_client.vmm.adapter import Adapter
    from irqchip_client.vmm.exit_stats import ExitStats
    from irqchip_client.vmm.memory import GuestMemory
    from irqchip_client.vmm.pc.board import Board
    from irqchip_client.vmm.run import Vcpus
    from irqchip_client.vmm.start import Arm64Start, Start

FLAT = "a flat binary of 16-bit code"
LOCAL = ("serial", "exit", "fw_cfg", "lines", "power", "crtc")
OPTIONAL = ("rtc",)  # devices of this process that --with adds
IDE_DISKS = 2  # the most that an IDE channel has
End = Callable[[int], None]  # ends the run, with an exit status


@dataclass(frozen=True, slots=True)
class Wanted:
    """The user's choices: a kernel or firmware, and its machine.

    without  the devices of LOCAL that the machine lacks
    added    the devices of OPTIONAL that it has
    files    fw_cfg's files, by name
    """

    arch: str | None
    cpu: str | None
    kernel: Path | None
    firmware: Path | None
    vcpus: int
    gic: int
    without: tuple[str, ...]
    added: tuple[str, ...]
    disks: tuple[Path, ...]
    files: Mapping[str, bytes]


class Machine(Protocol):
    """A guest's machine.

    ram    the first address of its RAM
    cpu    what executes its vCPUs
    notice a text that is printed before the guest runs
    about  a likely reason why the guest can't go on, to follow the error's text
    """

    @property
    def ram(self) -> int: ...
    @property
    def cpu(self) -> str: ...
    @property
    def notice(self) -> str: ...
    @property
    def about(self) -> str: ...

    def load(self, memory: GuestMemory, append: str, initrd: bytes | None) -> Any:
        """Puts the kernel or firmware into memory. Returns how the first vCPU starts; None: as after RESET."""

    def describe(self, memory: GuestMemory, vm: irqchip_client.Vm, local: LocalHost) -> None:
        """Makes the tables that describe the VM and its devices. All devices have started by then."""

    def create(self, client: irqchip_client.Client, name: str) -> AbstractContextManager[irqchip_client.Vm]:
        """Creates the VM, and deletes it at the end."""

    def devices(self, end: End, memory: GuestMemory) -> AbstractContextManager[list[Device]]:
        """The devices of this process. InvalidArgument for a file that fw_cfg can't have."""

    def vcpus(
        self, memory: GuestMemory, vm: irqchip_client.Vm, local: LocalHost, end: End, exits: ExitStats | None
    ) -> AbstractContextManager[Vcpus[Any]]:
        """Adapters for the vCPUs from 0 on, which count the guest's exits if `exits` is given.

        ImportError without the library Unicorn; InvalidArgument for more than one vCPU with it; OSError if /dev/kvm
        can't be used.
        """


def choose_machine(wanted: Wanted) -> Machine:
    """The machine for a kernel, or for firmware. InvalidArgument for an option that it can't have."""
    from irqchip_client.vmm.arm64 import is_arm64

    if wanted.firmware is not None:
        if wanted.arch == "arm64":
            raise _refused("--firmware is for x86: leave --arch out")
        return _PcWithFirmware(wanted, wanted.firmware)
    assert wanted.kernel is not None
    image = wanted.kernel.read_bytes()
    if wanted.arch == "arm64" or (wanted.arch is None and is_arm64(image)):
        return _Arm64Machine(wanted, image)
    return _PcWithKernel(wanted, wanted.kernel, image)


class _Pc:
    ram = 0

    def __init__(self, wanted: Wanted) -> None:
        if len(wanted.disks) > IDE_DISKS:
            raise _refused(f"an IDE channel has at most {IDE_DISKS} disks: give --disk {IDE_DISKS} times or less")
        self.cpu = wanted.cpu or ("kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "unicorn")
        self._vcpus = wanted.vcpus
        self._without = wanted.without
        self._added = wanted.added
        self._disks = wanted.disks
        self._files = wanted.files

    def create(self, client: irqchip_client.Client, name: str) -> AbstractContextManager[irqchip_client.Vm]:
        from irqchip_client.vmm.run import create_machine

        if self.cpu != "kvm":
            return create_machine(client, name, self._vcpus)
        from irqchip_client.kvm import guest_tsc_khz

        return create_machine(client, name, self._vcpus, guest_tsc_khz())

    @contextmanager
    def devices(self, end: End, memory: GuestMemory) -> Iterator[list[Device]]:
        from irqchip_client.devices import Crtc, DebugExit, FwCfg, Ide, LinePorts, PowerManagement, Rtc, Uart
        from irqchip_client.vmm.firmware import firmware_files

        with ExitStack() as stack:
            devices: list[Device] = []
            if "serial" not in self._without:
                typed, output = stack.enter_context(_terminal(end))
                devices.append(Uart(output, typed, out2_gates=False, patient=True))  # as QEMU's
            if "exit" not in self._without:
                devices.append(DebugExit(end))
            if "fw_cfg" not in self._without:
                files = {**firmware_files(memory), **self._files}
                devices.append(FwCfg(self._vcpus, memory.size, files, dma=True))
            if "rtc" in self._added:
                devices.append(Rtc())
            if "lines" not in self._without:
                devices.append(LinePorts())
            if "power" not in self._without:
                # As with QEMU's -no-reboot, a reset ends the run.
                devices.append(PowerManagement(lambda: end(0), lambda: end(0)))
            if "crtc" not in self._without:
                devices.append(Crtc())
            if self._disks:
                ide = Ide(self._disks[0], self._disks[1] if len(self._disks) > 1 else None)
                stack.callback(ide.close)
                devices.append(ide)
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


class _PcWithKernel(_Pc):
    def __init__(self, wanted: Wanted, kernel: Path, image: bytes) -> None:
        from irqchip_client.vmm.boot.flat import FlatImage
        from irqchip_client.vmm.image import parse_image

        super().__init__(wanted)
        self._kernel = kernel
        self._image = parse_image(image)
        self._is_flat = isinstance(self._image, FlatImage)

    @property
    def notice(self) -> str:
        if not self._is_flat:
            return ""
        return f"{self._kernel} is no Linux bzImage, no multiboot image and no ELF file for PVH: it is taken for {FLAT}"

    @property
    def about(self) -> str:
        return f". {self._kernel} was taken for {FLAT}: is it one?" if self._is_flat else ""

    def load(self, memory: GuestMemory, append: str, initrd: bytes | None) -> Start:
        from irqchip_client.vmm.image import load
        from irqchip_client.vmm.pc.memory_map import RSDP

        # As with QEMU and GRUB, the first word is the kernel's name, which kernels skip.
        line = f"{self._kernel} {append}".rstrip() if self._image.has_name_first else append
        # If power management is not in this process, describe() may write no ACPI tables: the kernel looks for them.
        rsdp = None if "power" in self._without else RSDP
        return load(memory, self._image, command_line=line, initrd=initrd, rsdp=rsdp)

    def describe(self, memory: GuestMemory, vm: irqchip_client.Vm, local: LocalHost) -> None:
        from irqchip_client.vmm.pc.tables import write_tables

        write_tables(memory, _board(vm, local))


class _PcWithFirmware(_Pc):
    notice = about = ""

    def __init__(self, wanted: Wanted, firmware: Path) -> None:
        super().__init__(wanted)
        self._image = firmware.read_bytes()

    def load(self, memory: GuestMemory, append: str, initrd: bytes | None) -> None:
        from irqchip_client.vmm.firmware import load_firmware

        if append or initrd is not None:
            raise _refused("firmware has no kernel's options: leave --append and --initrd out")
        load_firmware(memory, self._image)

    def describe(self, memory: GuestMemory, vm: irqchip_client.Vm, local: LocalHost) -> None:  # noqa: ARG002
        """Gives ACPI's tables to firmware, through fw_cfg. Firmware makes the other tables itself."""
        from irqchip_client.devices import FwCfg
        from irqchip_client.vmm.pc.table_loader import table_files

        board = _board(vm, local)
        for device in local.devices:
            if isinstance(device, FwCfg):
                device.add_files(table_files(board))


def _board(vm: irqchip_client.Vm, local: LocalHost) -> Board:
    """The machine that tables describe, now that all its devices have started."""
    from irqchip_client.vmm.pc.board import read_board

    return read_board(vm, (region for device in local.devices for region in device.regions))


class _Arm64Machine:
    cpu = "unicorn"
    notice = about = ""

    def __init__(self, wanted: Wanted, image: bytes) -> None:
        from irqchip_client.vmm.arm64 import RAM

        if wanted.cpu == "kvm":
            raise _refused("--cpu kvm is for x86: an arm64 guest runs on Unicorn; leave --cpu out")
        if wanted.disks:
            raise _refused("--disk is for x86: an arm64 machine has no IDE channel; leave --disk out")
        if wanted.added:
            raise _refused("--with is for x86: an arm64 machine has no such device; leave --with out")
        if wanted.files:
            raise _refused("--fw-cfg is for x86: an arm64 machine has no fw_cfg; leave --fw-cfg out")
        if wanted.vcpus > 1:
            raise _refused("with Unicorn a machine has one vCPU")
        self.ram = RAM
        self._image = image
        self._gic = wanted.gic
        self._without = wanted.without

    def load(self, memory: GuestMemory, append: str, initrd: bytes | None) -> Arm64Start:
        from irqchip_client.vmm.arm64 import load_arm64

        self._load = partial(load_arm64, memory, self._image, command_line=append, initrd=initrd, gic=self._gic)
        return self._load()

    def describe(self, memory: GuestMemory, vm: irqchip_client.Vm, local: LocalHost) -> None:  # noqa: ARG002 - a PC's
        """Loads everything again if there are virtio devices, so that the device tree has them."""
        from irqchip_client.vmm.arm64 import virtio_places

        if places := virtio_places(vm):
            self._load(virtio=places)

    def create(self, client: irqchip_client.Client, name: str) -> AbstractContextManager[irqchip_client.Vm]:
        from irqchip_client.vmm.arm64 import create_arm64_machine

        return create_arm64_machine(client, name, gic=self._gic)

    @contextmanager
    def devices(self, end: End, memory: GuestMemory) -> Iterator[list[Device]]:  # noqa: ARG002 - of a PC's fw_cfg
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
    """The source and the destination of a serial port's characters."""
    from irqchip_client.devices.terminal import terminal_input

    def nowhere(data: bytes) -> None:
        """The output if stdout is closed."""

    with terminal_input(lambda: end(0)) as typed:
        yield typed, nowhere if sys.stdout is None else sys.stdout.fileno()


def _refused(why: str) -> irqchip_client.InvalidArgument:
    return irqchip_client.InvalidArgument(errno.EINVAL, why)

"""A VMM with the kernel's own irqchip, to compare `irqchipctl run` with: the same vCPUs and devices.

    python -m tests.nested.in_kernel IMAGE VCPUS [INITRD]

Images of kvm-unit-tests run on it. It has a serial port, a debug exit, fw_cfg and ports that drive interrupt lines.
There are no tables of firmware.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from irqchip_client import Space
from irqchip_client.devices import DebugExit, Device, DeviceRegion, FwCfg, LinePorts, OutputLine, Timer, Uart
from irqchip_client.devices.ram import Ram
from irqchip_client.kvm import guest_tsc_khz
from irqchip_client.kvm.cpuid import Package, supported_cpuid, vcpu_cpuid
from irqchip_client.kvm.exits import READ
from irqchip_client.kvm.ioctls import MEMORY_REGION, QWORD, Exit, Request, Run, ioctl, set_tss_addr
from irqchip_client.kvm.registers import Registers
from irqchip_client.kvm.vm import IDENTITY_MAP, TSS
from irqchip_client.vmm.image import load, parse_image
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.run import routes_of_a_pc
from tests.conformance.kvm import Kvm, KvmVcpu, KvmVm, route_to_pin

MEMORY = 128 << 20
SERIAL_OUTPUT = 1  # a descriptor
CAN_NOT_GO_ON = 126


class KernelLines:
    """Runs devices that need nothing but lines, which are those of the kernel's irqchip."""

    def __init__(self, vm: KvmVm, devices: Iterable[Device]) -> None:
        self._vm = vm
        self._regions: list[DeviceRegion] = []
        self._lock = threading.Lock()
        for device in devices:
            self._regions += device.regions
            device.run_by(self)
            device.started()

    def read(self, port: int, size: int) -> int:
        """A vCPU's IN: all ones where there is no device."""
        region = self._at(port)
        if region is None:
            return (1 << 8 * size) - 1
        with self._lock:
            return region.do_read(port, size)

    def write(self, port: int, value: int, size: int) -> None:
        """A vCPU's OUT."""
        region = self._at(port)
        if region is not None:
            with self._lock:
                region.do_write(port, value, size)

    def _at(self, port: int) -> DeviceRegion | None:
        for region in self._regions:
            if region.space is Space.PIO and region.start <= port < region.start + region.length:
                return region
        return None

    def drive(self, line: OutputLine) -> None:
        self._vm.irq_line(line.gsi, line.level)

    def arm(self, timer: Timer) -> None:
        assert timer.due is None, "a device needs a timer"

    def watch(self, descriptor: int, ready: Callable[[], None] | None) -> None:
        assert ready is None, f"a device needs input from descriptor {descriptor}"

    def now(self) -> float:
        return time.monotonic()

    def memory(self) -> Ram:
        raise AssertionError("a device needs the guest's memory")


def create_vm(kvm: Kvm, memory: GuestMemory) -> KvmVm:
    """A VM of the kernel's with irqchip and PIT, and the routes of `irqchipctl run`."""
    vm = KvmVm(kvm)
    ioctl(vm.fd, Request.SET_IDENTITY_MAP_ADDR, QWORD.pack(IDENTITY_MAP))
    set_tss_addr(vm.fd, TSS)
    region = MEMORY_REGION.pack(0, 0, 0, memory.size, memory.host_address)
    ioctl(vm.fd, Request.SET_USER_MEMORY_REGION, region)
    vm.create_irqchip()
    vm.set_routing(route_to_pin(route.gsi, route.chip, route.pin) for route in routes_of_a_pc())
    vm.create_pit()
    return vm


def run(vcpu: KvmVcpu, devices: KernelLines) -> None:
    """Runs a vCPU until a device ends the process."""
    view = mmap.mmap(vcpu.fd, vcpu.vm.kvm.run_size)
    while True:
        # BlockingIOError: the vCPU has left its wait for INIT and SIPI.
        with suppress(InterruptedError, BlockingIOError):
            fcntl.ioctl(vcpu.fd, Request.RUN)
            match view[Run.EXIT_REASON]:
                case Exit.IO:
                    do_io(view, devices)
                case Exit.MMIO:
                    view[Run.MMIO_DATA : Run.MMIO_DATA + 8] = b"\xff" * 8
                case reason:
                    print(f"the guest can't go on: exit {reason}", flush=True)
                    os._exit(CAN_NOT_GO_ON)


def do_io(view: mmap.mmap, devices: KernelLines) -> None:
    """IN, OUT, INS, OUTS."""
    direction, size, port, count, first = Run.IO.unpack_from(view, Run.UNION)
    for at in range(first, first + count * size, size):
        if direction == READ:
            view[at : at + size] = devices.read(port, size).to_bytes(size, "little")
        else:
            devices.write(port, int.from_bytes(view[at : at + size], "little"), size)


def write_serial(data: bytes) -> None:
    """The serial port's output."""
    os.write(SERIAL_OUTPUT, data)


def main(image: str, vcpus: str, initrd: str | None = None) -> None:
    """Runs an image until the guest writes to the debug exit."""
    number, kvm = int(vcpus), Kvm()
    with GuestMemory(MEMORY) as memory:
        module = None if initrd is None else Path(initrd).read_bytes()
        start = load(memory, parse_image(Path(image).read_bytes()), command_line=image, initrd=module)
        vm = create_vm(kvm, memory)
        package, supported = Package(range(number), guest_tsc_khz()), supported_cpuid(kvm.fd)
        for vcpu in range(number):
            ioctl(vm.create_vcpu(vcpu).fd, Request.SET_CPUID2, vcpu_cpuid(supported, vcpu, package))
        Registers(vm.vcpus[0].fd).start(start)
        # Other vCPUs may be in the guest: this ends them, too.
        serial, debug_exit = Uart(write_serial, out2_gates=False), DebugExit(os._exit)
        devices = KernelLines(vm, [serial, debug_exit, FwCfg(number, MEMORY), LinePorts()])
        for vcpu in range(1, number):
            threading.Thread(target=run, args=(vm.vcpus[vcpu], devices), daemon=True).start()
        run(vm.vcpus[0], devices)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A kernel in 64-bit mode finds what Linux's boot protocol promises. On KVM, and on Unicorn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from irqchip_client import Client
from irqchip_client.kvm import KvmVcpu, KvmVm, why_not
from irqchip_client.vmm.image import load, parse_image
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.run import create_machine
from irqchip_client.vmm.x86 import X86Adapter

from .images import bzimage

SAY, STOP = 0xE9, 0xF4
GUEST = bytes.fromhex(
    "8cc8 e6e9"  # mov eax, cs; out 0xe9, al
    "8cd8 e6e9"  # mov eax, ds; out 0xe9, al
    "b818000000 8ed8 8ed0"  # mov eax, 0x18; mov ds, eax; mov ss, eax
    "8b8628020000 8a00 e6e9"  # mov eax, [rsi + 0x228]; mov al, [rax]; out 0xe9, al: the command line's first letter
    "b83000e0fe 8b00 e6e9"  # mov eax, 0xfee00030; mov eax, [rax]; out 0xe9, al: the local APIC's version
    "b800000080 8a00 e6e9"  # mov eax, 0x80000000; mov al, [rax]; out 0xe9, al: no RAM
    "e6f4 ebfe"  # out 0xf4, al; jmp $
)


class Ports:
    """The local devices: a port for output, and one that ends the run."""

    def __init__(self) -> None:
        self.said = bytearray()
        self.stop: Callable[[], None] = lambda: None

    def pio_read(self, port: int, size: int) -> int | None:  # noqa: ARG002
        return None

    def pio_write(self, port: int, value: int, size: int) -> bool:  # noqa: ARG002
        if port == SAY:
            self.said.append(value)
        elif port == STOP:
            self.stop()
        return port in (SAY, STOP)

    def mmio_read(self, address: int, size: int) -> int | None:  # noqa: ARG002
        return None

    def mmio_write(self, address: int, value: int, size: int) -> bool:  # noqa: ARG002
        return False


@pytest.mark.parametrize("cpu", ["kvm", "unicorn"])
def test_a_64_bit_kernel_has_segments_parameters_and_all_addresses(irqchip_client: Client, cpu: str) -> None:
    ports = Ports()
    with ExitStack() as stack:
        memory = stack.enter_context(GuestMemory(4 << 20))
        vm = stack.enter_context(create_machine(irqchip_client))
        start = load(memory, parse_image(bzimage(GUEST)), command_line="console=ttyS0")
        adapter: X86Adapter
        if cpu == "kvm":
            if (why := why_not()) is not None:
                pytest.skip(f"no KVM can be used here: {why}")
            kvm = stack.enter_context(KvmVm(memory))
            adapter = stack.enter_context(KvmVcpu(kvm, vm, 0, ports))
        else:
            unicorn = pytest.importorskip("irqchip_client.unicorn")
            adapter = stack.enter_context(unicorn.UnicornVcpu(memory, vm, 0, ports))
        ports.stop = adapter.stop
        adapter.start(start)
        adapter.run()
    assert ports.said == bytes([0x10, 0x18, ord("c"), 0x14, 0xFF])

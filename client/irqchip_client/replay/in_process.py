"""Traces on the chips alone, without a daemon: irqchipd's own VMs, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from irqchipd.chips.fault import FAULT
from irqchipd.chips.lapic_registers import SVR_ENABLED, LapicRegisters
from irqchipd.vm.clock import VirtualClock
from irqchipd.vm.errors import VmError
from irqchipd.vm.regions import Access
from irqchipd.vm.routing import MsiRoute, PinRoute
from irqchipd.vm.vcpu_state import MpState
from irqchipd.vm.x86.machine import X86Vm

from .arm64_in_process import Arm64Player
from .traces import Done, Mismatch, Trace, as_expected
from .x86 import LAPIC_REGISTERS, LAPIC_VECTORS, msr_answer, pit_answer


def replay_all(traces: Sequence[Trace], done: Done) -> None:
    """Runs traces, and calls `done` after each."""
    for trace in traces:
        done(trace, replay(trace))


def replay(trace: Trace) -> list[Mismatch]:
    """Runs a trace to its end, even after mismatches, and returns every operation with another answer."""
    if trace.gic is not None:
        return _replay_arm64(trace, trace.gic)
    execute = executors(new_vm(trace.vcpus))
    mismatches = []
    for number, (name, arguments, expected) in enumerate(trace.operations):
        try:
            actual = execute[name](*arguments)
        except VmError as error:
            actual = f"-{error.reason}"
        if not as_expected(expected, actual):
            mismatches.append(Mismatch(trace, number, actual))
    return mismatches


def _replay_arm64(trace: Trace, gic: int) -> list[Mismatch]:
    player = Arm64Player(gic)
    mismatches = []
    for number, (name, arguments, expected) in enumerate(trace.operations):
        actual = player.execute(name, arguments)
        if not as_expected(expected, actual):
            mismatches.append(Mismatch(trace, number, actual))
    return mismatches


def new_vm(vcpus: int) -> X86Vm:
    """The VM from which a trace starts. Time stands still: no answer depends on it."""
    vm = X86Vm("replay", clock=VirtualClock())
    vm.create_irqchip()
    for vcpu in range(vcpus):
        vm.create_vcpu(vcpu)
        vm.set_mp_state(vcpu, MpState.RUNNABLE)
    return vm


def _read(value: Access | int | None) -> int:
    assert not isinstance(value, Access), "the VM has no regions"
    return value or 0


def executors(vm: X86Vm) -> dict[str, Callable[..., Any]]:
    """Functions that execute each operation on a VM, and return the answer in the traces' form."""

    def pio_read(vcpu: int, port: int, size: int) -> int:
        return _read(vm.pio_read(vcpu, port, size))

    def pio_write(vcpu: int, port: int, size: int, value: int) -> None:
        vm.pio_write(vcpu, port, size, value)

    def mmio_read(vcpu: int, address: int, size: int) -> int:
        return _read(vm.mmio_read(vcpu, address, size))

    def mmio_write(vcpu: int, address: int, size: int, value: int) -> None:
        vm.mmio_write(vcpu, address, size, value)

    def irq_line(gsi: int, level: int) -> int:
        return vm.irq_line(gsi, level != 0)

    def signal_msi(address: int, data: int, flags: int) -> int | str:
        status = vm.signal_msi(address, data, flags)
        return "-EPERM" if status == -1 else status  # an ioctl that returns -1

    def set_gsi_routing(table: Sequence[Sequence[Any]]) -> int:
        vm.set_routing([(PinRoute if to == "irqchip" else MsiRoute)(gsi, *where) for gsi, to, *where in table])
        return 0

    def take_extint(vcpu: int) -> int | None:
        taken = vm.ack_interrupt(vcpu, lapic=False)
        return taken and taken[0]

    def ack_lapic(vcpu: int) -> int | None:
        registers = vm.get_lapic(vcpu)
        vector = accept(registers)
        if vector < 0:
            return None
        vm.set_lapic(vcpu, registers)  # as it was recorded, for KVM_SET_LAPIC's side effects
        return vector

    def get_irqchip(chip: int) -> str:
        return vm.get_irqchip(chip).pack().hex()

    def set_irqchip(chip: int, state: str) -> int:
        vm.set_irqchip(chip, bytes.fromhex(state))
        return 0

    def get_lapic(vcpu: int) -> dict[str, Any]:
        return _lapic_answer(vm.get_lapic(vcpu))

    def create_pit(flags: int) -> int:
        vm.create_pit(flags)
        return 0

    def get_pit() -> list[Any]:
        pit = vm.get_pit()
        return pit_answer(pit.channels, pit.flags)

    def msr_read(vcpu: int, msr: int) -> int | str | None:
        value = vm.msr_read(vcpu, msr)
        return msr_answer(value is not None, value == FAULT, value)

    def msr_write(vcpu: int, msr: int, value: int) -> int | str | None:
        written = vm.msr_write(vcpu, msr, value)
        return msr_answer(written is not None, written == FAULT, None)

    return {
        "pio_read": pio_read,
        "pio_write": pio_write,
        "mmio_read": mmio_read,
        "mmio_write": mmio_write,
        "irq_line": irq_line,
        "signal_msi": signal_msi,
        "set_gsi_routing": set_gsi_routing,
        "take_extint": take_extint,
        "ack_lapic": ack_lapic,
        "get_irqchip": get_irqchip,
        "set_irqchip": set_irqchip,
        "get_lapic": get_lapic,
        "create_pit": create_pit,
        "get_pit": get_pit,
        "msr_read": msr_read,
        "msr_write": msr_write,
    }


def accept(registers: LapicRegisters) -> int:
    """ack_lapic's acceptance rule, as it was recorded: a local APIC that software has disabled gives nothing."""
    return registers.take() if registers.svr & SVR_ENABLED else -1


def _lapic_answer(registers: LapicRegisters) -> dict[str, Any]:
    answer: dict[str, Any] = {name: getattr(registers, field) for name, field in LAPIC_REGISTERS.items()}
    for name in LAPIC_VECTORS:
        answer[name] = _vectors(getattr(registers, name))
    return answer


def _vectors(bits: int) -> list[int]:
    """The bits that are set, lowest first; there are few of them."""
    vectors = []
    while bits:
        lowest = bits & -bits
        vectors.append(lowest.bit_length() - 1)
        bits ^= lowest
    return vectors

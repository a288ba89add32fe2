"""A guest's calls of the firmware."""

from __future__ import annotations

import pytest

pytest.importorskip("unicorn", reason="needs Unicorn: pip install 'irqchipd[unicorn]'")

from irqchip_client.unicorn import Alone
from irqchip_client.unicorn.arm64.psci import Next, call
from irqchip_client.vmm.start import Arm64Start

SUCCESS, NOT_SUPPORTED, INVALID_PARAMETERS, DENIED, ALREADY_ON = 0, -1, -2, -3, -4


class Machine:
    """vCPU 0, which is on, and vCPU 1, which may be."""

    def __init__(self) -> None:
        self.on = {0}
        self.broken = False
        self.started: list[tuple[int, Arm64Start]] = []
        self.resets: list[bool] = []

    def is_on(self, affinity: int) -> bool | None:
        return affinity in self.on if affinity < 2 else None

    def turn_on(self, affinity: int, start: Arm64Start) -> bool:
        self.started.append((affinity, start))
        return not self.broken

    def turn_off(self, *, reset: bool) -> None:
        self.resets.append(reset)


def answer(machine: Machine, *arguments: int) -> int:
    """x0 after a call after which the vCPU goes on."""
    result, then = call([*arguments, 0, 0, 0][:4], machine)
    assert then is Next.GO_ON
    return result


def test_versions() -> None:
    assert answer(Machine(), 0x8400_0000) == 0x1_0001
    assert answer(Machine(), 0x8000_0000) == 0x1_0001


@pytest.mark.parametrize("function", [0x8400_0003, 0xC400_0003])
def test_cpu_on_starts_a_vcpu_with_its_context_in_x0(function: int) -> None:
    machine = Machine()
    assert answer(machine, function, 1, 0x4008_0000, 77) == SUCCESS
    assert machine.started == [(1, Arm64Start(0x4008_0000, x0=77))]


def test_the_32_bit_call_takes_32_bits() -> None:
    machine = Machine()
    assert answer(machine, 0x8400_0003, 1 << 32 | 1, 0xFFFF_FFFF_0000_1000, 1 << 40 | 5) == SUCCESS
    assert machine.started == [(1, Arm64Start(0x1000, x0=5))]


def test_cpu_on_refuses_a_vcpu_that_is_on_that_is_none_or_that_does_not_start() -> None:
    machine = Machine()
    assert answer(machine, 0xC400_0003, 0, 0x1000) == ALREADY_ON
    assert answer(machine, 0xC400_0003, 2, 0x1000) == INVALID_PARAMETERS
    assert machine.started == []
    machine.broken = True
    assert answer(machine, 0xC400_0003, 1, 0x1000) == DENIED


def test_affinity_info() -> None:
    machine = Machine()
    assert answer(machine, 0xC400_0004, 0) == 0
    assert answer(machine, 0xC400_0004, 1) == 1
    assert answer(machine, 0xC400_0004, 9) == INVALID_PARAMETERS
    assert answer(machine, 0xC400_0004, 0, 1) == INVALID_PARAMETERS  # a level above the vCPUs


def test_the_machine_is_turned_off_and_reset() -> None:
    machine = Machine()
    assert call([0x8400_0008, 0, 0, 0], machine)[1] is Next.MACHINE_OFF
    assert call([0x8400_0009, 0, 0, 0], machine)[1] is Next.MACHINE_OFF
    assert machine.resets == [False, True]


def test_a_vcpu_sleeps_and_is_turned_off() -> None:
    assert call([0xC400_0001, 0, 0, 0], Machine()) == (SUCCESS, Next.SLEEP)
    assert call([0x8400_0002, 0, 0, 0], Machine())[1] is Next.OFF


@pytest.mark.parametrize("function", [0x8400_0001, 0x8400_0002, 0xC400_0003, 0x8400_0008, 0x8400_000A, 0x8000_0000])
def test_features_of_functions_that_there_are(function: int) -> None:
    assert answer(Machine(), 0x8400_000A, function) == SUCCESS


@pytest.mark.parametrize("function", [0xC400_0002, 0xC400_0008, 0x8400_0005, 0x8400_0012, 0, 0xC200_0000])
def test_unknown_functions_are_not_supported(function: int) -> None:
    assert answer(Machine(), 0x8400_000A, function) == NOT_SUPPORTED
    assert answer(Machine(), function) == NOT_SUPPORTED


def test_a_vcpu_that_is_alone_turns_on_no_other() -> None:
    off: list[bool] = []
    alone = Alone(others=(1,), turned_off=lambda: off.append(True))
    assert call([0xC400_0003, 1, 0x1000, 0], alone)[0] == ALREADY_ON
    assert call([0xC400_0003, 2, 0x1000, 0], alone)[0] == INVALID_PARAMETERS
    call([0x8400_0008, 0, 0, 0], alone)
    assert off == [True]

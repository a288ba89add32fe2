"""Acknowledgement and resampling, and the IOAPIC's pacing, on the kernel of this machine and on irqchipd."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing

import pytest

from irqchipd.chips.i8259 import Port
from irqchipd.chips.ioapic import DEFAULT_BASE as IOAPIC_BASE
from irqchipd.chips.ioapic import DELAYED_EOI, MAX_SUCCESSIVE_EOIS
from irqchipd.chips.lapic_registers import DEFAULT_BASE as LAPIC_BASE
from irqchipd.chips.lapic_registers import Reg
from tests.conformance.compare import Comparison
from tests.conformance.daemon_machine import DaemonMachine
from tests.conformance.kernel_machine import KernelMachine
from tests.conformance.kvm import Kvm
from tests.conformance.machines import Machine, Op

GSI, OTHER_GSI, RTC_GSI, SECONDARY_GSI = 5, 6, 8, 10
LEVEL, MASKED, VECTOR = 1 << 15, 1 << 16, 0x31
NON_SPECIFIC_EOI, SPECIFIC_EOI, POLL = 0x20, 0x60, 0x0C


def agree(live: Comparison, *ops: Op) -> None:
    """Fail with the fewest operations that show a difference."""
    if difference := live.compare(ops):
        pytest.fail(str(live.minimise(difference)), pytrace=False)


def out(port: int, *values: int) -> list[Op]:
    return [["pio_write", 0, port, 1, value] for value in values]


def write_entry(pin: int, low: int) -> list[Op]:
    return [["mmio_write", 0, IOAPIC_BASE, 4, 0x10 + 2 * pin], ["mmio_write", 0, IOAPIC_BASE + 0x10, 4, low]]


def write_lapic(register: int, value: int) -> Op:
    return ["mmio_write", 0, LAPIC_BASE + register, 4, value]


EOI = write_lapic(Reg.EOI, 0)
CHIPS: list[Op] = [["get_irqchip", chip] for chip in range(3)]
SEE: list[Op] = [["resampled", 0], *CHIPS, ["get_lapic_page", 0]]


def pics(*, level: bool, icw4: int = 1) -> list[Op]:
    """Both PICs with every line unmasked, and a resampler of GSI 5."""
    return [
        ["create_irqchip"],
        ["create_vcpu", 0],
        *out(Port.PRIMARY_COMMAND, 0x11),
        *out(Port.PRIMARY_DATA, 0x20, 4, icw4, 0),
        *out(Port.SECONDARY_COMMAND, 0x11),
        *out(Port.SECONDARY_DATA, 0x70, 2, icw4, 0),
        *(out(Port.PRIMARY_ELCR, 0x60) + out(Port.SECONDARY_ELCR, 0x04) if level else []),
        ["resampler", GSI],
    ]


def ioapic(low: int) -> list[Op]:
    """Pin 5 with a redirection entry, masked PICs, and a resampler of GSI 5."""
    return [
        ["create_irqchip"],
        ["create_vcpu", 0],
        *out(Port.PRIMARY_DATA, 0xFF),
        write_lapic(Reg.SVR, 0x1FF),
        *write_entry(GSI, low),
        ["resampler", GSI],
    ]


ASSERT: Op = ["assert_gsi", 0]
TAKE: Op = ["take", 0]
# The accesses that may acknowledge GSI 5 at the PIC.
AT_THE_PIC: dict[str, list[Op]] = {
    "EOI": [TAKE, *out(Port.PRIMARY_COMMAND, NON_SPECIFIC_EOI)],
    "specific EOI": [TAKE, *out(Port.PRIMARY_COMMAND, SPECIFIC_EOI | GSI)],
    "rotating EOI": [TAKE, *out(Port.PRIMARY_COMMAND, 0xA0)],
    "EOI of nothing": out(Port.PRIMARY_COMMAND, NON_SPECIFIC_EOI),
    "specific EOI of an idle line": out(Port.PRIMARY_COMMAND, SPECIFIC_EOI | GSI),
    "specific EOI of another line": out(Port.PRIMARY_COMMAND, SPECIFIC_EOI | OTHER_GSI),
    "poll": [*out(Port.PRIMARY_COMMAND, POLL), ["pio_read", 0, Port.PRIMARY_COMMAND, 1]],
    "ICW1": out(Port.PRIMARY_COMMAND, 0x11),
    "ICW1 in service": [TAKE, *out(Port.PRIMARY_COMMAND, 0x11)],
    "ICW1, and nobody takes the PIC's interrupts": [
        write_lapic(Reg.LVT_LINT0, 0x1_0700),
        *out(Port.PRIMARY_COMMAND, 0x11),
    ],
    "mask and unmask": out(Port.PRIMARY_DATA, 0xFF, 0),
    "a change of ELCR": out(Port.PRIMARY_ELCR, 0xFF, 0),
    "reading": [["pio_read", 0, port, 1] for port in (Port.PRIMARY_COMMAND, Port.PRIMARY_DATA, Port.PRIMARY_ELCR)],
}


@pytest.mark.parametrize("asserted", [True, False])
@pytest.mark.parametrize("level", [True, False])
@pytest.mark.parametrize("how", AT_THE_PIC)
def test_the_pic_acknowledges(live: Comparison, how: str, level: bool, asserted: bool) -> None:
    rise = [ASSERT] if asserted else [["irq_line", GSI, 1]]
    agree(live, *pics(level=level), *rise, *SEE, *AT_THE_PIC[how], *SEE, ASSERT, *SEE)


@pytest.mark.parametrize("level", [True, False])
def test_automatic_eoi_acknowledges_when_the_interrupt_is_taken(live: Comparison, level: bool) -> None:
    agree(live, *pics(level=level, icw4=3), ASSERT, *SEE, TAKE, *SEE, ASSERT, ASSERT, TAKE, *SEE)


@pytest.mark.parametrize("level", [True, False])
@pytest.mark.parametrize(
    "how",
    [
        [TAKE, *out(Port.SECONDARY_COMMAND, NON_SPECIFIC_EOI)],
        [*out(Port.SECONDARY_COMMAND, POLL), ["pio_read", 0, Port.SECONDARY_COMMAND, 1]],
        out(Port.SECONDARY_COMMAND, 0x11),
        out(Port.PRIMARY_COMMAND, 0x11),
    ],
    ids=["EOI", "poll", "ICW1", "ICW1 of the primary"],
)
def test_either_pic_acknowledges_its_own(live: Comparison, how: list[Op], level: bool) -> None:
    """The primary's cascade is GSI 2's."""
    see: list[Op] = [["resampled", 0], ["resampled", 1], ["resampled", 2], *CHIPS]
    ops: list[Op] = [*pics(level=level), ["resampler", SECONDARY_GSI], ["resampler", 2], ["assert_gsi", 1], *see]
    agree(live, *ops, *how, *see, *out(Port.PRIMARY_COMMAND, NON_SPECIFIC_EOI), *see)


ACCEPT: Op = ["ack_lapic", 0]
AT_THE_IOAPIC: dict[str, list[Op]] = {
    "EOI": [ACCEPT, EOI],
    "EOI of nothing": [EOI],
    "EOI of an MSI": [["signal_msi", LAPIC_BASE, VECTOR, 0], ACCEPT, EOI],
    "EOI of another vector": [["signal_msi", LAPIC_BASE, VECTOR + 1, 0], ACCEPT, EOI],
    "EOI when masked meanwhile": [ACCEPT, *write_entry(GSI, MASKED | LEVEL | VECTOR), EOI],
    "EOI when edge meanwhile": [ACCEPT, *write_entry(GSI, VECTOR), EOI],
    "EOI when another vector meanwhile": [ACCEPT, *write_entry(GSI, LEVEL | VECTOR + 1), EOI],
    "EOI at the PIC": out(Port.PRIMARY_COMMAND, SPECIFIC_EOI | GSI),
    "unmask": [*write_entry(GSI, LEVEL | VECTOR)],
    "mask and unmask": [*write_entry(GSI, MASKED | LEVEL | VECTOR), *write_entry(GSI, LEVEL | VECTOR)],
    "edge and unmask": [*write_entry(GSI, VECTOR)],
    "a restored state": [["set_irqchip", 2, "00" * 216]],
}


@pytest.mark.parametrize("rises", [["assert_gsi"], ["irq_line"], ["irq_line", "assert_gsi"]], ids=" and ".join)
@pytest.mark.parametrize(
    "low", [LEVEL, 0, MASKED | LEVEL, MASKED], ids=["level", "edge", "masked level", "masked edge"]
)
@pytest.mark.parametrize("how", AT_THE_IOAPIC)
def test_the_ioapic_acknowledges(live: Comparison, how: str, low: int, rises: Sequence[str]) -> None:
    rise = [ASSERT if name == "assert_gsi" else ["irq_line", GSI, 1] for name in rises]
    ops = [*ioapic(low | VECTOR), *rise, *SEE, *AT_THE_IOAPIC[how], *SEE]
    agree(live, *ops, ASSERT, *SEE, ["irq_line", GSI, 0], *SEE, ACCEPT, EOI, *SEE)


def test_both_chips_acknowledge(live: Comparison) -> None:
    ops = [*pics(level=True), write_lapic(Reg.SVR, 0x1FF), *write_entry(GSI, LEVEL | VECTOR)]
    agree(live, *ops, ASSERT, ACCEPT, EOI, *SEE, ASSERT, TAKE, *out(Port.PRIMARY_COMMAND, 0x20), *SEE)


def test_every_resampler_of_a_gsi_is_notified(live: Comparison) -> None:
    see: list[Op] = [["resampled", 0], ["resampled", 1], *CHIPS]
    ops = [*ioapic(LEVEL | VECTOR), ["resampler", GSI], ASSERT, ACCEPT, EOI, *see, ["assert_gsi", 1], *see]
    agree(live, *ops, ["drop", 0], *see, ["drop", 1], *see[1:], ["irq_line", GSI, 1], *see[1:])


def test_an_asserted_line_falls_when_its_last_resampler_ends(live: Comparison) -> None:
    ops = [*ioapic(LEVEL | VECTOR), ["resampler", GSI], ASSERT, ["drop", 0], *CHIPS]
    agree(live, *ops, ["irq_line", GSI, 1], ["drop", 1], *CHIPS, ["irq_line", GSI, 0], *CHIPS)


@pytest.mark.parametrize("resampled", [False, True])
def test_a_tick_of_the_rtc_coalesces_until_it_is_ended(live: Comparison, resampled: bool) -> None:
    """Ticks that a resampler asserts are not tracked."""
    rise: Op = ["assert_gsi", 1] if resampled else ["irq_line", RTC_GSI, 1]
    tick = [
        rise,
        ["irq_line", RTC_GSI, 1],
        ["irq_line", RTC_GSI, 0],
        ["irq_line", RTC_GSI, 1],
        ["irq_line", RTC_GSI, 0],
    ]
    ops = [*ioapic(MASKED), *write_entry(RTC_GSI, VECTOR), *([["resampler", RTC_GSI]] if resampled else []), *tick]
    agree(live, *ops, ACCEPT, *tick, EOI, *tick, *SEE, ACCEPT, EOI, *tick, *SEE)


# The storm.


def _take_all(machine: Machine) -> int:
    taken = 0
    while machine.perform(["take", 0]) is not None:
        taken += 1
    return taken


def test_too_many_eois_of_a_line_in_a_row_delay_its_next_interrupt(kvm: Kvm) -> None:
    for make in (lambda: KernelMachine(kvm), DaemonMachine):
        # On a busy machine the delay may be over before this process looks, but not each time.
        assert any(_is_delayed(make()) for _ in range(10))


def _is_delayed(machine: KernelMachine | DaemonMachine) -> bool:
    lower = MAX_SUCCESSIVE_EOIS - 1000
    with closing(machine):
        for this in [*ioapic(LEVEL | VECTOR), ["drop", 0], ["irq_line", GSI, 1]]:
            machine.perform(this)
        # An EOI while the line is low restarts the count.
        assert [machine.perform(TAKE) for _ in range(lower)] == lower * [VECTOR]
        assert machine.perform(["irq_line", GSI, 0]) == 1
        assert [machine.perform(TAKE), machine.perform(TAKE)] == [VECTOR, None]
        machine.perform(["irq_line", GSI, 1])
        assert _take_all(machine) == MAX_SUCCESSIVE_EOIS
        stopped = time.monotonic_ns()
        waiting = machine.perform(["get_irqchip", 2])
        if isinstance(machine, DaemonMachine):
            machine.advance_to(DELAYED_EOI - 1)
            assert machine.perform(["get_irqchip", 2]) == waiting
            machine.advance_to(DELAYED_EOI)
        else:
            # KVM: ioapic.c kvm_ioapic_update_eoi_one; after HZ / 100 ticks, the first of which has already begun.
            while machine.perform(["get_irqchip", 2]) == waiting:
                if time.monotonic_ns() - stopped > 100 * DELAYED_EOI:
                    return False
            if time.monotonic_ns() - stopped <= DELAYED_EOI // 4:
                return False
        assert machine.perform(TAKE) == VECTOR
        return True

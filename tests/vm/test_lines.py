"""Interrupt lines: the status of driving a GSI, and the OR over its sources."""

from __future__ import annotations

import pytest

from irqchipd.vm.machine import SourceInfo
from irqchipd.vm.routing import MsiRoute, PinRoute
from irqchipd.vm.sources import LineSource, numbers_of
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.routing import ChipId
from tests.builds import needs_sources
from tests.vm.pc import LEVEL, PRIMARY, REMOTE_IRR, Pc, refused

UNROUTED = 100


# The status is a sum over the chips; a chip's -1 counts only if all chips return -1.


def test_at_reset_the_pic_takes_an_edge_and_the_ioapic_is_masked() -> None:
    assert Pc().line(1, 1, 1, 0, 0, 1, 0, 1) == [1, 1, 2, 2, 0, 2, 0]


def test_masked_on_both_chips_an_edge_is_ignored_and_then_coalesced() -> None:
    pc = Pc()
    pc.mask_pics()
    assert pc.line(5, 1, 1, 0, 1) == [-1, 0, 1, -1]


def test_a_level_on_the_pic_is_coalesced_while_it_is_high() -> None:
    pc = Pc()
    pc.out(0x4D0, 1 << 5)
    assert pc.line(5, 1, 1, 0, 1) == [1, 0, 2, 1]


@pytest.mark.parametrize(
    ("entry", "levels", "statuses"),
    [
        (1 << 16 | 0x31, (1, 1, 0, 1), [-1, 0, 1, -1]),
        (0x31, (1, 1, 0, 1, 0, 1), [1, 0, 1, 1, 1, 1]),
        (LEVEL | 0x31, (1, 1, 0, 1), [1, -1, 1, -1]),
    ],
    ids=["edge masked", "edge", "level"],
)
def test_a_gsi_of_the_ioapic_alone(entry: int, levels: tuple[int, ...], statuses: list[int]) -> None:
    pc = Pc()
    pc.program(16, entry)
    assert pc.line(16, *levels) == statuses


def test_both_chips_take_an_edge_and_both_count() -> None:
    pc = Pc()
    pc.initialise_pics()
    pc.program(5, 0x31)
    assert pc.line(5, 1) == [2]
    assert pc.take() == PRIMARY + 5
    assert pc.take() == 0x31


@pytest.mark.parametrize(("destination", "enabled"), [(9, True), (0, False)], ids=["no such CPU", "disabled"])
def test_a_level_that_no_cpu_accepts_stays_pending(destination: int, enabled: bool) -> None:
    pc = Pc()
    if not enabled:
        pc.lapic_write(0, 0xF0, 0x0FF)
    pc.program(16, destination << 56 | LEVEL | 0x31)
    assert pc.line(16, 1) == [0]
    assert not pc.entry(16) & REMOTE_IRR
    pc.lapic_write(0, 0xF0, 0x1FF)
    pc.program(16, LEVEL | 0x31)
    assert pc.take() == 0x31


@pytest.mark.parametrize("gsi", [24, UNROUTED, 4096, 1 << 31])
def test_a_gsi_without_a_route_answers_minus_1_at_either_level(gsi: int) -> None:
    pc = Pc()
    before = pc.state()[:2]
    assert pc.line(gsi, 1, 0, 1) == [-1, -1, -1]
    assert pc.state()[:2] == before


@needs_sources
@pytest.mark.parametrize("level", [True, 2, -1])
def test_any_level_but_zero_is_one(level: int) -> None:
    pc = Pc()
    pc.program(16, LEVEL | 0x31)
    pc.vm.irq_line(16, level)  # type: ignore[arg-type]
    assert pc.take() == 0x31


# GSI 8, whose ticks are tracked.


def test_a_tick_is_coalesced_until_its_eoi() -> None:
    pc = Pc()
    pc.vm.set_routing([PinRoute(8, ChipId.IOAPIC, 8)])
    pc.program(8, 0x38)
    assert pc.line(8, 1, 0, 1, 0) == [1, 1, 0, 1]
    assert pc.take() == 0x38
    assert pc.line(8, 1, 0) == [0, 1]
    pc.eoi()
    assert pc.line(8, 1) == [1]
    assert pc.take() == 0x38


# Line sources.


@pytest.fixture
def pc() -> Pc:
    """A PC whose pin 16 is level-triggered."""
    pc = Pc()
    pc.program(16, LEVEL | 0x31)
    return pc


def is_high(vm: X86Vm, pin: int) -> bool:
    """Whether a level-triggered pin of the IOAPIC is high: it requests an interrupt while it is high."""
    return bool(vm.get_irqchip(ChipId.IOAPIC).irr >> pin & 1)


def test_a_pin_is_high_while_any_source_drives_it(pc: Pc) -> None:
    one, two = pc.vm.open_source("one"), pc.vm.open_source("two")
    levels = []
    for source, level in ((one, 1), (two, 1), (None, 1), (one, 0), (None, 0), (two, 0)):
        pc.line(16, level, source=source)
        levels.append(is_high(pc.vm, 16))
    assert levels == [True, True, True, True, True, False]


def test_lowering_a_line_that_another_source_holds_raises_no_new_interrupt(pc: Pc) -> None:
    other = pc.vm.open_source("other")
    pc.line(16, 1)
    pc.line(16, 1, source=other)
    assert pc.line(16, 0) == [-1]  # the pin is driven high again, under remote IRR
    assert pc.take() == 0x31
    assert pc.take() is None


def test_two_gsis_that_share_a_pin_share_each_sources_level(pc: Pc) -> None:
    pc.vm.set_routing([PinRoute(40, ChipId.IOAPIC, 16), PinRoute(41, ChipId.IOAPIC, 16)])
    pc.line(40, 1)
    pc.line(41, 1)
    pc.line(40, 0)  # KVM keeps one bit per source and pin
    assert not is_high(pc.vm, 16)


def test_a_closed_source_drops_what_it_drove_and_nothing_else(pc: Pc) -> None:
    pc.program(17, LEVEL | 0x32)
    one, two = pc.vm.open_source("one"), pc.vm.open_source("two")
    pc.line(16, 1, source=one)
    pc.line(16, 1, source=two)
    pc.line(17, 1, source=one)
    pc.vm.close_source(one)
    assert one.asserted == 0
    assert (is_high(pc.vm, 16), is_high(pc.vm, 17)) == (True, False)
    pc.vm.close_source(two)
    assert not is_high(pc.vm, 16)


def test_a_closed_source_drops_levels_on_the_pics_too() -> None:
    pc = Pc()
    pc.initialise_pics()
    pc.out(0x4D0, 1 << 5)
    source = pc.vm.open_source("device")
    pc.line(5, 1, source=source)
    pc.vm.close_source(source)
    assert pc.take() is None


def test_a_closed_source_drops_pins_without_a_route(pc: Pc) -> None:
    source = pc.vm.open_source("device")
    pc.line(16, 1, source=source)
    pc.vm.set_routing([PinRoute(16, ChipId.IOAPIC, 20)])
    assert is_high(pc.vm, 16)  # replacing the routes lowers nothing
    pc.vm.close_source(source)
    assert not is_high(pc.vm, 16)


def test_closing_a_source_twice_does_not_close_the_next_of_its_number(pc: Pc) -> None:
    first = pc.vm.open_source("first")
    pc.vm.close_source(first)
    second = pc.vm.open_source("second")
    assert second.number == first.number
    pc.line(16, 1, source=second)
    pc.vm.close_source(first)
    assert is_high(pc.vm, 16)
    assert [source.client for source in pc.vm.describe().sources] == ["second"]


def test_a_source_that_was_closed_can_drive_nothing(pc: Pc) -> None:
    source = pc.vm.open_source("late")
    pc.vm.close_source(source)
    with refused("ENOENT"):
        pc.line(16, 1, source=source)
    assert source.asserted == 0
    assert not is_high(pc.vm, 16)


def test_sources_are_listed_with_what_they_drive(pc: Pc) -> None:
    one, two = pc.vm.open_source("one"), pc.vm.open_source("two")
    pc.line(17, 1, source=one)
    pc.line(16, 1, source=one)
    pc.line(20, 1, 0, source=two)
    two.dropped_events = 3
    assert pc.vm.describe().sources == [
        SourceInfo("one", 1, [16, 17], 0, detached=False),
        SourceInfo("two", 2, [], 3, detached=False),
    ]


def test_what_the_shared_source_drives_is_listed_too(pc: Pc) -> None:
    other = pc.vm.open_source("other")
    pc.line(20, 1)
    pc.line(3, 1)
    pc.line(4, 1, 0)
    pc.line(5, 1, source=other)
    assert pc.vm.describe().asserted == [3, 20]


def test_a_source_drives_at_most_all_gsis(pc: Pc) -> None:
    source = pc.vm.open_source("fuzzer")
    for gsi in (UNROUTED, 4095, 4096, 1 << 31):
        pc.line(gsi, 1, source=source)
    assert numbers_of(source.asserted) == [UNROUTED, 4095]


def test_a_line_routed_to_an_msi_sends_it_on_each_rise_of_each_source() -> None:
    pc = Pc()
    pc.vm.set_routing([MsiRoute(30, 0xFEE0_0000, 0x41)])
    other: LineSource = pc.vm.open_source("other")
    assert pc.line(30, 1, 1, 0) == [1, 1, -1]
    assert pc.serve_all() == [0x41]
    pc.line(30, 1, source=other)
    assert pc.serve_all() == [0x41]
    pc.vm.close_source(other)
    assert pc.serve_all() == []

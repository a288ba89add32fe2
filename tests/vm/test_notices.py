"""Events about GSIs: an interrupt was acknowledged, a pin was masked; and lines that are held until acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from irqchipd.chips.ioapic import IoapicState
from irqchipd.chips.lapic_registers import Reg
from irqchipd.observe.observer import Observer
from irqchipd.vm.events import Event, GsiAcknowledged, GsiMasked, GsiResampled, InterruptPending
from irqchipd.vm.routing import MsiRoute, PinRoute
from irqchipd.vm.sources import RESAMPLERS, LineSource
from irqchipd.vm.x86.machine import X86Vm
from irqchipd.vm.x86.routing import ChipId, default_routes
from tests.vm.pc import EOI, LEVEL, MASKED, PRIMARY, REMOTE_IRR, SECONDARY, Ear, Pc, refused, to

ALL = tuple(range(24))
ICW1, ICW1_WITH_ICW4 = 0x10, 0x11
POLL, SPECIFIC_EOI, ROTATE_ON_EOI, ROTATE_ON_SPECIFIC_EOI = 0x0C, 0x60, 0xA0, 0xE0
AUTO_EOI = 0x03  # ICW4


@pytest.fixture
def pc() -> Pc:
    pc = Pc(2)
    pc.start(1)
    pc.initialise_pics()
    return pc


@pytest.fixture
def ear(pc: Pc) -> Ear:
    return Ear(pc.vm, gsis=ALL)


def acks(*gsis: int) -> list[Event]:
    return [GsiAcknowledged(gsi) for gsi in gsis]


def masks(masked: bool, *gsis: int) -> list[Event]:
    return [GsiMasked(gsi, masked) for gsi in gsis]


def resampled(*gsis: int) -> list[Event]:
    return [GsiResampled(gsi, 1) for gsi in gsis]


def ioapic_irr(pc: Pc) -> int:
    state = pc.vm.get_irqchip(ChipId.IOAPIC)
    assert isinstance(state, IoapicState)
    return state.irr


# Acknowledgements: the IOAPIC's.


@pytest.mark.parametrize("trigger", [0, LEVEL], ids=["edge", "level"])
def test_an_eoi_of_the_local_apic_acknowledges_the_pin(pc: Pc, ear: Ear, trigger: int) -> None:
    pc.program(16, trigger | to(1) | 0x31)
    ear.heard()
    pc.line(16, 1, 0)
    assert pc.take(1) == 0x31
    assert ear.heard() == []
    pc.eoi(1)
    assert ear.heard() == acks(16)
    pc.eoi(1)
    assert ear.heard() == []


@pytest.mark.parametrize("trigger", [0, LEVEL], ids=["edge", "level"])
def test_all_pins_that_share_a_vector_are_acknowledged(pc: Pc, ear: Ear, trigger: int) -> None:
    for pin in (16, 17, 20):
        pc.program(pin, trigger | 0x31)
    ear.heard()
    pc.line(17, 1, 0)
    assert pc.serve_all() == [0x31]
    assert ear.heard() == acks(16, 17, 20)


def test_an_edge_without_a_listener_is_not_reported_to_the_ioapic(pc: Pc) -> None:
    """A listener that subscribes while the edge is in service makes the CPU rescan, and then report the edge."""
    pc.program(16, 0x31)
    pc.line(16, 1, 0)
    assert pc.take() == 0x31
    ear = Ear(pc.vm, gsis=[16])
    pc.eoi()
    assert ear.heard() == acks(16)
    pc.vm.unsubscribe([], ear.append, [16])
    pc.line(16, 1, 0)
    assert pc.serve_all() == [0x31]
    assert ear.heard() == []


def test_an_eoi_that_leaves_the_line_high_acknowledges_each_time(pc: Pc, ear: Ear) -> None:
    pc.program(16, LEVEL | 0x31)
    ear.heard()
    pc.line(16, 1)
    for _ in range(3):
        assert pc.take() == 0x31
        pc.eoi()
    assert ear.heard() == acks(16, 16, 16)


def test_the_entry_s_vector_at_the_eoi_decides(pc: Pc, ear: Ear) -> None:
    pc.program(16, LEVEL | 0x31)
    pc.program(17, LEVEL | 0x41)
    pc.line(16, 1, 0)
    assert pc.take() == 0x31
    pc.program(16, LEVEL | 0x51)
    pc.program(17, LEVEL | 0x31)
    ear.heard()
    pc.eoi()
    assert ear.heard() == acks(17)


def test_an_msi_acknowledges_nothing(pc: Pc, ear: Ear) -> None:
    pc.msi(0, 0x31)
    assert pc.serve_all() == [0x31]
    assert ear.heard() == []


# The PIC's.


@pytest.mark.parametrize("command", [EOI, ROTATE_ON_EOI], ids=["EOI", "rotate"])
@pytest.mark.parametrize(("gsi", "vector"), [(1, PRIMARY + 1), (4, PRIMARY + 4), (12, SECONDARY + 4)])
def test_an_eoi_of_the_pic_acknowledges_the_line(pc: Pc, ear: Ear, gsi: int, vector: int, command: int) -> None:
    pc.line(gsi, 1)
    assert pc.take() == vector
    assert ear.heard() == []
    if gsi >= 8:
        pc.out(0xA0, command)
        assert ear.heard() == acks(gsi)
        gsi = 2  # the cascade
    pc.out(0x20, command)
    assert ear.heard() == acks(gsi)
    pc.out(0x20, command)  # nothing is in service
    assert ear.heard() == []


@pytest.mark.parametrize("command", [SPECIFIC_EOI, ROTATE_ON_SPECIFIC_EOI], ids=["specific", "rotate"])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in service"])
@pytest.mark.parametrize("gsi", [3, 11])
def test_a_specific_eoi_acknowledges_its_line_in_service_or_not(
    pc: Pc, ear: Ear, gsi: int, busy: bool, command: int
) -> None:
    if busy:
        pc.line(gsi, 1)
        assert pc.take() is not None
    pc.out(0x20 if gsi < 8 else 0xA0, command | gsi & 7)
    assert ear.heard() == acks(gsi)


def test_with_automatic_eoi_taking_it_acknowledges() -> None:
    pc = Pc()
    pc.initialise_pics(icw4=AUTO_EOI)
    ear = Ear(pc.vm, gsis=ALL)
    pc.line(4, 1)
    assert ear.heard() == []
    assert pc.take() == PRIMARY + 4
    assert ear.heard() == acks(4)
    pc.line(12, 1)
    assert pc.take() == SECONDARY + 4
    assert sorted(ear.heard(), key=str) == acks(12, 2)


@pytest.mark.parametrize("port", [0, 1])
def test_a_poll_acknowledges(pc: Pc, ear: Ear, port: int) -> None:
    pc.line(4, 1)
    pc.out(0x20, POLL)
    assert ear.heard() == []
    assert pc.vm.pio_read(0, 0x20 + port, 1) == 0x84
    assert ear.heard() == acks(4)
    pc.out(0x20, POLL)
    assert pc.vm.pio_read(0, 0x20 + port, 1) == 0x07
    assert ear.heard() == []
    pc.line(12, 1)
    pc.out(0xA0, POLL)
    assert pc.vm.pio_read(0, 0xA0 + port, 1) == 0x84
    assert ear.heard() == acks(12)


def test_a_poll_of_the_primary_acknowledges_the_cascade(pc: Pc, ear: Ear) -> None:
    pc.line(12, 1)
    pc.out(0x20, POLL)
    assert pc.vm.pio_read(0, 0x20, 1) == 0x82
    assert ear.heard() == acks(2)


@pytest.mark.parametrize("icw1", [ICW1, ICW1_WITH_ICW4])
def test_icw1_acknowledges_the_edges_that_it_discards(pc: Pc, ear: Ear, icw1: int) -> None:
    pc.out(0x4D0, 0x20)
    pc.line(1, 1)
    pc.line(4, 1, 0)
    pc.line(5, 1)  # level-triggered
    pc.line(6, 1, 0)
    pc.line(9, 1, 0)  # a line of the other chip, which makes the cascade an edge
    pc.out(0x21, 0x40)  # masked or not
    ear.heard()
    pc.out(0x20, icw1)
    assert ear.heard() == acks(1, 2, 4, 6)
    pc.out(0xA0, icw1)
    assert ear.heard() == acks(9)


def test_icw1_acknowledges_nothing_where_no_vcpu_takes_pic_interrupts(pc: Pc, ear: Ear) -> None:
    pc.lapic_write(0, Reg.LVT_LINT0, MASKED | 0x700)
    pc.line(4, 1)
    pc.out(0x20, ICW1_WITH_ICW4)
    assert ear.heard() == []


def test_listeners_are_notified_in_order_and_of_their_gsis_alone(pc: Pc) -> None:
    told: list[tuple[int, Event]] = []
    listeners: list[Callable[[Event], None]] = [lambda event, n=n: told.append((n, event)) for n in range(3)]  # type: ignore[misc]
    for listener, gsis in zip(listeners, ([4], [4, 5], [5]), strict=True):
        pc.vm.subscribe([], listener, gsis)
    for gsi in (4, 5):
        pc.out(0x20, SPECIFIC_EOI | gsi)
    assert told == [(0, GsiAcknowledged(4)), (1, GsiAcknowledged(4)), (1, GsiAcknowledged(5)), (2, GsiAcknowledged(5))]
    pc.vm.unsubscribe([], listeners[1], [4, 5])
    told.clear()
    for gsi in (4, 5):
        pc.out(0x20, SPECIFIC_EOI | gsi)
    assert told == [(0, GsiAcknowledged(4)), (2, GsiAcknowledged(5))]


def test_a_listeners_operation_comes_after_the_one_that_notified_it(pc: Pc) -> None:
    told: list[Event] = []

    def listener(event: Event) -> None:
        told.append(event)
        if len(told) == 1:
            pc.out(0x20, SPECIFIC_EOI | 5)

    pc.vm.subscribe([], listener, [4, 5])
    pc.out(0x20, SPECIFIC_EOI | 4)
    assert told == acks(4, 5)


# Masks.


def test_ocw1_reports_each_line_whose_mask_it_changes(pc: Pc, ear: Ear) -> None:
    pc.out(0x21, 0x81)
    assert ear.heard() == masks(True, 0, 7)
    pc.out(0x21, 0x81)
    assert ear.heard() == []
    pc.out(0x21, 0x11)
    assert ear.heard() == [GsiMasked(4, True), GsiMasked(7, False)]
    pc.out(0xA1, 0x02)
    assert ear.heard() == masks(True, 9)


def test_an_initialisation_reports_no_mask(pc: Pc, ear: Ear) -> None:
    pc.mask_pics()
    ear.heard()
    pc.initialise_pics()
    assert ear.heard() == []
    pc.out(0x21, 0x01)
    assert ear.heard() == masks(True, 0)


def test_the_ioapic_reports_changes_of_its_mask_bits(pc: Pc, ear: Ear) -> None:
    pc.program(16, 0x31)
    assert ear.heard() == masks(False, 16)
    pc.program(16, 0x41)
    assert ear.heard() == []
    pc.program(16, MASKED | 0x41)
    assert ear.heard() == masks(True, 16)


def test_a_restored_state_reports_no_mask(pc: Pc, ear: Ear) -> None:
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1)
    states = [(chip, pc.vm.get_irqchip(chip)) for chip in ChipId]
    pc.mask_pics()
    pc.program(16, MASKED)
    ear.heard()
    for chip, state in states:
        pc.vm.set_irqchip(chip, state)
    pc.vm.reset()
    assert ear.heard() == []


# Pins and their GSIs.


def test_a_pin_reports_the_gsi_routed_to_it_last(pc: Pc, ear: Ear) -> None:
    pc.vm.set_routing([PinRoute(3, ChipId.IOAPIC, 20), PinRoute(9, ChipId.IOAPIC, 20), PinRoute(9, 0, 5)])
    pc.program(20, LEVEL | 0x31)
    assert ear.heard() == masks(False, 9)
    pc.line(3, 1, 0)
    assert pc.serve_all() == [0x31]
    assert ear.heard() == acks(9)
    pc.out(0x20, SPECIFIC_EOI | 5)
    assert ear.heard() == acks(9)
    pc.vm.set_routing([PinRoute(9, ChipId.IOAPIC, 20), PinRoute(3, ChipId.IOAPIC, 20)])
    pc.line(9, 1, 0)
    assert pc.serve_all() == [0x31]
    assert ear.heard() == acks(3)


def test_a_pin_without_a_gsi_reports_nothing(pc: Pc, ear: Ear) -> None:
    pc.program(16, LEVEL | 0x31)
    pc.line(16, 1, 0)
    assert pc.take() == 0x31
    pc.vm.set_routing([MsiRoute(16, 0xFEE0_0000, 0x51)])
    ear.heard()
    pc.eoi()
    pc.program(16, MASKED)
    pc.out(0x20, SPECIFIC_EOI | 4)
    pc.out(0x21, 0xFF)
    assert ear.heard() == []


def test_the_routes_at_the_eoi_decide_which_gsi_is_acknowledged(pc: Pc, ear: Ear) -> None:
    pc.program(16, LEVEL | 0x31)
    ear.heard()
    pc.line(16, 1, 0)
    assert pc.take() == 0x31
    pc.vm.set_routing([PinRoute(7, ChipId.IOAPIC, 16)])
    pc.eoi()
    assert ear.heard() == acks(7)


# Lines that are held until they are acknowledged.


class Device:
    """A line source that resamples GSIs."""

    def __init__(self, pc: Pc, *gsis: int, client: str = "device") -> None:
        self.vm = pc.vm
        self.events: list[Event] = []
        self.source: LineSource = pc.vm.open_source(client, resampled=gsis, listener=self.events.append)

    def raise_line(self, gsi: int) -> int:
        return self.vm.irq_line(gsi, True, self.source)

    def heard(self) -> list[Event]:
        events = list(self.events)
        self.events.clear()
        return events

    def leave(self) -> None:
        self.vm.close_source(self.source)


class Falls(Observer):
    """Records how the source of all resamplers drives lines."""

    def __init__(self, vm: X86Vm) -> None:
        self.levels: list[tuple[int, int]] = []
        vm.attach(self)

    def kvm_set_irq(self, gsi: int, level: int, source: int) -> None:
        if source == RESAMPLERS:
            self.levels.append((gsi, level))


def test_a_level_is_held_until_it_is_acknowledged_and_falls_once(pc: Pc) -> None:
    device, falls = Device(pc, 16), Falls(pc.vm)
    pc.program(16, LEVEL | 0x31)
    assert device.raise_line(16) == 1
    assert ioapic_irr(pc) == 1 << 16
    assert pc.take() == 0x31
    assert device.heard() == []
    pc.eoi()
    assert device.heard() == resampled(16)
    assert falls.levels == [(16, 1), (16, 0)]
    assert ioapic_irr(pc) == 0
    assert not pc.entry(16) & REMOTE_IRR
    assert pc.take() is None  # it fell before the IOAPIC looked at it again
    assert device.raise_line(16) == 1
    assert pc.serve_all() == [0x31]
    assert device.heard() == resampled(16)


def test_each_resampler_is_notified_and_may_raise_the_line_again(pc: Pc) -> None:
    devices = [Device(pc, 16), Device(pc, 16, 17), Device(pc, 17)]
    other = Ear(pc.vm, gsis=[16])
    falls = Falls(pc.vm)
    pc.program(16, LEVEL | 0x31)
    other.heard()
    for device in devices[:2]:
        device.raise_line(16)
    assert pc.take() == 0x31
    pc.eoi()
    assert [device.heard() for device in devices] == [resampled(16), resampled(16), []]
    assert other.heard() == acks(16)
    assert falls.levels == [(16, 1), (16, 1), (16, 0)]
    devices[1].raise_line(16)
    assert pc.serve_all() == [0x31]


def test_an_acknowledgement_of_a_low_line_is_reported_too(pc: Pc) -> None:
    """The kernel, too, signals a resamplefd at each acknowledgement."""
    device = Device(pc, 4)
    pc.out(0x20, SPECIFIC_EOI | 4)
    assert device.heard() == resampled(4)


@pytest.mark.parametrize("gsi", [4, 12])
def test_a_line_of_the_pic_falls_too(pc: Pc, gsi: int) -> None:
    pc.out(0x4D0, 0x10)
    pc.out(0x4D1, 0x10)
    device = Device(pc, gsi)
    device.raise_line(gsi)
    assert pc.take() == (PRIMARY + 4 if gsi == 4 else SECONDARY + 4)
    if gsi == 12:
        pc.out(0xA0, EOI)
    pc.out(0x20, EOI)
    assert device.heard() == resampled(gsi)
    assert pc.take() is None
    device.raise_line(gsi)
    assert pc.take() is not None


def test_it_falls_at_both_chips_whichever_acknowledged_it(pc: Pc) -> None:
    pc.out(0x4D0, 0x10)
    device = Device(pc, 4)
    pc.program(4, LEVEL | to(1) | 0x34)
    assert device.raise_line(4) == 2
    assert pc.takers() == {0: PRIMARY + 4, 1: 0x34}
    pc.eoi(1)
    assert device.heard() == resampled(4)
    assert pc.take(1) is None
    pc.out(0x20, EOI)
    assert device.heard() == resampled(4)
    assert pc.takers() == {}


@pytest.mark.parametrize("how", ["automatic EOI", "poll", "ICW1"])
def test_every_kind_of_acknowledgement_lowers_it(how: str) -> None:
    pc = Pc()
    pc.initialise_pics(icw4=AUTO_EOI if how == "automatic EOI" else 1)
    device, falls = Device(pc, 4), Falls(pc.vm)
    device.raise_line(4)
    match how:
        case "automatic EOI":
            assert pc.take() == PRIMARY + 4
        case "poll":
            pc.out(0x20, POLL)
            assert pc.vm.pio_read(0, 0x20, 1) == 0x84
        case _:
            pc.out(0x20, ICW1_WITH_ICW4)
    assert device.heard() == resampled(4)
    assert falls.levels == [(4, 1), (4, 0)]


def test_an_edge_pin_s_line_falls_and_can_rise_again(pc: Pc) -> None:
    device = Device(pc, 16)
    pc.program(16, 0x31)
    for _ in range(3):
        assert device.raise_line(16) == 1
        assert device.raise_line(16) == 0  # still high
        assert pc.serve_all() == [0x31]
        assert device.heard() == resampled(16)


def test_it_stays_high_while_another_source_holds_it(pc: Pc) -> None:
    device = Device(pc, 16)
    pc.program(16, LEVEL | 0x31)
    device.raise_line(16)
    pc.line(16, 1)
    for _ in range(3):
        assert pc.take() == 0x31
        pc.eoi()
        assert device.heard() == resampled(16)
    pc.line(16, 0)
    assert pc.serve_all() == [0x31]
    assert pc.take() is None


def test_a_resampler_drives_its_other_gsis_normally(pc: Pc) -> None:
    device = Device(pc, 16)
    pc.program(17, LEVEL | 0x41)
    assert pc.line(17, 1, 0, source=device.source) == [1, 1]
    assert [source.asserted for source in pc.vm.describe().sources] == [[]]


def test_a_resampled_line_cannot_be_lowered_by_its_source(pc: Pc) -> None:
    device = Device(pc, 16)
    pc.program(16, LEVEL | 0x31)
    device.raise_line(16)
    with refused("EINVAL"):
        pc.vm.irq_line(16, False, device.source)
    assert pc.take() == 0x31
    pc.line(16, 0)  # another source
    assert ioapic_irr(pc) == 1 << 16


def test_the_last_resampler_that_ends_drops_the_line(pc: Pc) -> None:
    devices = [Device(pc, 16), Device(pc, 16)]
    pc.program(16, MASKED | LEVEL | 0x31)
    devices[0].raise_line(16)
    devices[0].leave()
    assert ioapic_irr(pc) == 1 << 16
    devices[1].leave()
    assert ioapic_irr(pc) == 0
    assert [device.heard() for device in devices] == [[], []]


def test_a_resampler_that_ended_is_not_notified(pc: Pc) -> None:
    devices = [Device(pc, 16), Device(pc, 16)]
    pc.program(16, LEVEL | 0x31)
    devices[0].raise_line(16)
    devices[0].leave()
    assert pc.serve_all() == [0x31]
    assert [device.heard() for device in devices] == [[], resampled(16)]


def test_unmasking_a_pending_level_resamples_instead_of_delivering(pc: Pc) -> None:
    devices = [Device(pc, 16), Device(pc, 16)]
    listener = Ear(pc.vm, [0])
    pc.program(16, MASKED | LEVEL | 0x31)
    assert devices[0].raise_line(16) == -1
    pc.program(16, LEVEL | 0x31)
    assert [device.heard() for device in devices] == [resampled(16)] * 2
    assert listener.heard() == []
    assert pc.take() is None
    assert ioapic_irr(pc) == 0
    assert devices[0].raise_line(16) == 1
    assert listener.heard() == [InterruptPending(0)]
    assert pc.serve_all() == [0x31]


def test_unmasking_without_a_resampler_delivers(pc: Pc) -> None:
    device = Device(pc, 17)
    pc.program(16, MASKED | LEVEL | 0x31)
    pc.line(16, 1)
    pc.program(16, LEVEL | 0x31)
    assert device.heard() == []
    assert pc.take() == 0x31


def test_unmasking_an_edge_does_not_resample(pc: Pc) -> None:
    device = Device(pc, 16)
    pc.program(16, MASKED | 0x31)
    device.raise_line(16)
    pc.program(16, 0x31)
    assert device.heard() == []
    assert pc.take() is None


def test_of_two_gsis_that_share_a_pin_the_last_one_is_acknowledged(pc: Pc) -> None:
    devices = [Device(pc, 3), Device(pc, 9)]
    pc.vm.set_routing([PinRoute(3, ChipId.IOAPIC, 20), PinRoute(9, ChipId.IOAPIC, 20)])
    pc.program(20, LEVEL | 0x31)
    devices[0].raise_line(3)
    assert pc.serve_all() == [0x31]
    assert [device.heard() for device in devices] == [[], resampled(9)]
    assert ioapic_irr(pc) == 0  # they share the pin's level, too
    pc.vm.set_routing([PinRoute(9, ChipId.IOAPIC, 20), PinRoute(3, ChipId.IOAPIC, 20)])
    devices[1].raise_line(9)
    assert pc.serve_all() == [0x31]
    assert [device.heard() for device in devices] == [resampled(3), []]


def test_a_rerouted_line_stays_high_at_its_old_pin(pc: Pc) -> None:
    """The kernel, too, leaves a pin high when a new routing table no longer leads to it."""
    device = Device(pc, 16)
    pc.program(16, LEVEL | 0x31)
    pc.program(20, LEVEL | 0x41)
    device.raise_line(16)
    assert pc.take() == 0x31
    pc.vm.set_routing([PinRoute(16, ChipId.IOAPIC, 20)])
    pc.eoi()  # for pin 16, to which no GSI leads
    assert device.heard() == []
    assert pc.take() == 0x31
    assert device.raise_line(16) == 1
    assert pc.take() == 0x41
    pc.eoi()
    assert device.heard() == resampled(16)
    pc.vm.set_routing(default_routes())
    pc.eoi()
    assert device.heard() == resampled(16)
    assert pc.take() is None


def test_an_edge_pin_with_a_newly_routed_resampled_gsi_is_acknowledged(pc: Pc) -> None:
    device = Device(pc, 5)
    pc.program(20, 0x41)
    pc.vm.set_routing([PinRoute(5, ChipId.IOAPIC, 20)])
    pc.lapic_write(0, Reg.LDR, 1 << 24)  # makes the vCPU rescan which EOIs to report
    device.raise_line(5)
    assert pc.serve_all() == [0x41]
    assert device.heard() == resampled(5)


def no_pic() -> Sequence[X86Vm]:
    bare, split = X86Vm("bare"), X86Vm("split")
    split.enable_cap(121, args=[24])
    return bare, split


def test_resampling_needs_the_pic_and_the_ioapic() -> None:
    for vm in no_pic():
        with refused("EINVAL"):
            vm.open_source("device", resampled=[4])
        assert vm.describe().sources == []
        assert vm.open_source("device").number == 1


def test_a_gsi_without_a_route_can_be_resampled_and_leads_nowhere(pc: Pc) -> None:
    device = Device(pc, 100, 100)
    assert device.raise_line(100) == -1
    device.leave()
    Device(pc, 100).leave()


def test_a_resamplers_rtc_tick_is_not_tracked(pc: Pc) -> None:
    """A resampler ignores the status, so it would not learn that the previous tick has not been ended."""
    device = Device(pc, 8)
    pc.program(8, LEVEL | 0x38)
    pc.vm.set_routing([PinRoute(8, ChipId.IOAPIC, 8)])
    assert device.raise_line(8) == 1
    assert pc.take() == 0x38
    assert pc.line(8, 1) == [-1]  # and not 0
    pc.line(8, 0)
    pc.eoi()
    assert device.heard() == resampled(8)

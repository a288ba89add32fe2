"""The bus between message sources and local APICs: a message's destinations, and which of them accept it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from irqchipd.chips.lapic import Lapic, Msr
from irqchipd.chips.lapic_registers import DFR_CLUSTER, DFR_FLAT, LapicRegisters, Quirk
from irqchipd.chips.message import BROADCAST, X2APIC_BROADCAST, DeliveryMode, Message, Shorthand
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.clock import Deadlines, VirtualClock
from irqchipd.vm.x86.apicbus import MAX_REMEMBERED, ApicBus

FIXED, LOWEST = DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY


class Wires:
    """The wires of one local APIC: they report its changes of address to the bus, and record its CPU's signals."""

    def __init__(self, bus: ApicBus) -> None:
        self.bus = bus
        self.signals: list[int] = []

    def send_ipi(self, icr: int, message: Message) -> None:
        raise NotImplementedError

    def end_of_interrupt(self, vector: int, level_triggered: bool) -> None:
        raise NotImplementedError

    def addressing_changed(self) -> None:
        self.bus.invalidate()

    def scan_needed(self) -> None:
        pass

    def priorities_changed(self) -> None:
        pass

    def local_interrupt(self, message: Message) -> None:
        raise NotImplementedError

    def now(self) -> int:
        return 0

    def set_timer(self, expires: int | None) -> None:
        pass

    lazy = False
    quirks = Quirk.LINT0_REENABLED | Quirk.LAPIC_MMIO_HOLE

    def timer_expired(self) -> int:
        raise NotImplementedError

    def signal(self, delivery_mode: int, vector: int) -> None:  # noqa: ARG002
        self.signals.append(delivery_mode)


class Bus:
    """A bus with local APICs: CPU n has physical ID n, or the given one, and the given logical ID."""

    def __init__(self, logical_ids: Sequence[int], dfr: int = DFR_FLAT, *, apic_ids: Sequence[int] = ()) -> None:
        self.bus = ApicBus(Agenda("bus", VirtualClock(), Deadlines()))
        self.wires = [Wires(self.bus) for _ in logical_ids]
        for cpu, logical_id in enumerate(logical_ids):
            apic_id = apic_ids[cpu] if apic_ids else cpu
            self.bus.add(Lapic.at_reset(self.wires[cpu], apic_id))
            self.set(cpu, ldr=logical_id << 24, dfr=dfr, apic_id=apic_id)

    def set(self, cpu: int, *, ldr: int = 0, dfr: int = DFR_FLAT, apic_id: int | None = None, svr: int = 0x1FF) -> None:
        physical = cpu if apic_id is None else apic_id
        self.bus.lapics[cpu].restore(LapicRegisters(id=physical << 24, ldr=ldr, dfr=dfr, svr=svr))

    def disable(self, cpu: int) -> None:
        self.bus.lapics[cpu].write(0xFEE0_00F0, 4, 0x0FF)

    def switch(self, cpu: int, *bases: int) -> None:
        for base in bases:
            assert self.bus.lapics[cpu].write_msr(Msr.APIC_BASE, base) == 0

    def send(
        self,
        destination: int,
        *,
        logical: bool = False,
        mode: int = FIXED,
        vector: int = 0x40,
        hint: bool = False,
        shorthand: int = Shorthand.NONE,
        source: int | None = None,
    ) -> tuple[int, list[int]]:
        """Deliver a message; returns its status, and the CPUs that received the vector."""
        lapics = self.bus.lapics
        message = Message(
            vector,
            mode,
            destination,
            logical=logical,
            level_triggered=False,
            shorthand=shorthand,
            redirection_hint=hint,
        )
        status = self.bus.deliver(message, sender=source)
        got = [cpu for cpu, lapic in enumerate(lapics) if lapic.irr >> vector & 1]
        for lapic in lapics:
            lapic.irr = 0
        return status, got


FLAT_IDS = [0x01, 0x02, 0x04, 0x80]
CLUSTER_IDS = [0x11, 0x12, 0x21, 0x28]


# Physical destinations.


def test_a_physical_destination_names_one_cpu() -> None:
    bus = Bus(FLAT_IDS)
    assert [bus.send(cpu) for cpu in range(5)] == [(1, [0]), (1, [1]), (1, [2]), (1, [3]), (0, [])]


def test_a_physical_broadcast_goes_to_all_that_are_enabled() -> None:
    bus = Bus(FLAT_IDS)
    assert bus.send(BROADCAST) == (4, [0, 1, 2, 3])
    bus.disable(2)
    assert bus.send(BROADCAST) == (3, [0, 1, 3])


def test_an_unmatched_destination_is_0_with_the_map_and_minus_1_without() -> None:
    bus = Bus(FLAT_IDS)
    assert bus.send(9) == (0, [])
    bus.set(3, apic_id=2)  # two equal IDs switch the map off
    assert bus.send(9) == (-1, [])


def test_a_disabled_destination_is_0_either_way() -> None:
    bus = Bus(FLAT_IDS)
    bus.disable(1)
    assert bus.send(1) == (0, [])
    bus.set(3, apic_id=2)
    assert bus.send(1) == (0, [])


def test_two_cpus_of_one_physical_id_both_get_its_messages() -> None:
    bus = Bus(FLAT_IDS)
    bus.set(3, apic_id=1)
    assert bus.send(1) == (2, [1, 3])


def test_a_physical_id_can_be_changed() -> None:
    bus = Bus(FLAT_IDS)
    bus.set(1, apic_id=0x77)
    assert bus.send(1) == (0, [])
    assert bus.send(0x77) == (1, [1])


def test_a_new_apic_is_not_in_the_map_until_the_map_is_rebuilt() -> None:
    bus = Bus(FLAT_IDS)
    bus.wires.append(Wires(bus.bus))
    bus.bus.add(Lapic.at_reset(bus.wires[4], 4))
    assert bus.send(4, mode=DeliveryMode.NMI) == (0, [])
    assert bus.send(1) == (1, [1])
    assert bus.send(BROADCAST, mode=DeliveryMode.NMI) == (5, [])  # every CPU is checked, the new one too
    bus.disable(0)
    assert bus.send(4, mode=DeliveryMode.NMI) == (1, [])
    assert bus.wires[4].signals == [DeliveryMode.NMI] * 2


def test_without_apics_a_message_is_minus_1() -> None:
    assert Bus([]).send(0) == (-1, [])


# Logical destinations.


@pytest.mark.parametrize(
    ("ids", "dfr", "destination", "answer"),
    [
        (FLAT_IDS, DFR_FLAT, 0x02, (1, [1])),
        (FLAT_IDS, DFR_FLAT, 0x87, (4, [0, 1, 2, 3])),
        (FLAT_IDS, DFR_FLAT, 0x82, (2, [1, 3])),
        (FLAT_IDS, DFR_FLAT, 0x18, (0, [])),
        (FLAT_IDS, DFR_FLAT, 0x00, (0, [])),
        (FLAT_IDS, DFR_FLAT, 0xFF, (4, [0, 1, 2, 3])),
        (CLUSTER_IDS, DFR_CLUSTER, 0x11, (1, [0])),
        (CLUSTER_IDS, DFR_CLUSTER, 0x13, (2, [0, 1])),
        (CLUSTER_IDS, DFR_CLUSTER, 0x2F, (2, [2, 3])),
        (CLUSTER_IDS, DFR_CLUSTER, 0x3F, (0, [])),
        (CLUSTER_IDS, DFR_CLUSTER, 0xFF, (4, [0, 1, 2, 3])),
        # IDs of several bits: every CPU is checked.
        ([0x03, 0x06, 0x80], DFR_FLAT, 0x02, (2, [0, 1])),
        ([0x03, 0x06, 0x80], DFR_FLAT, 0x40, (-1, [])),
        ([0x13, 0x11, 0x21], DFR_CLUSTER, 0x11, (2, [0, 1])),
        ([0x13, 0x11, 0x21], DFR_CLUSTER, 0x12, (1, [0])),
        ([0x13, 0x11, 0x21], DFR_CLUSTER, 0x14, (-1, [])),
        ([0x13, 0x11, 0x21], DFR_CLUSTER, 0x31, (-1, [])),
        # Two CPUs with the same bit.
        ([0x01, 0x01, 0x02], DFR_FLAT, 0x01, (2, [0, 1])),
        # No CPU has a logical ID.
        ([0, 0], DFR_FLAT, 0x01, (0, [])),
        # An ID without a bit in its cluster matches no CPU.
        ([0x10, 0x11], DFR_CLUSTER, 0x1F, (1, [1])),
    ],
)
def test_a_logical_destination(ids: list[int], dfr: int, destination: int, answer: tuple[int, list[int]]) -> None:
    assert Bus(ids, dfr).send(destination, logical=True) == answer


def test_with_both_models_at_once_every_cpu_is_checked_in_its_own() -> None:
    bus = Bus([0x01, 0x02])
    bus.set(1, ldr=0x12 << 24, dfr=DFR_CLUSTER)
    assert bus.send(0x13, logical=True) == (2, [0, 1])
    assert bus.send(0x03, logical=True) == (1, [0])
    assert bus.send(0x20, logical=True) == (-1, [])


def test_a_format_that_is_neither_model_works_in_the_map_as_a_cluster_and_matches_nothing_alone() -> None:
    bus = Bus([0x11, 0x12], dfr=0x5FFF_FFFF)
    assert bus.send(0x13, logical=True) == (2, [0, 1])
    bus.set(1, ldr=0x11 << 24, dfr=0x5FFF_FFFF)
    assert bus.send(0x11, logical=True) == (-1, [])


def test_disabled_cpus_have_no_place_in_the_map() -> None:
    bus = Bus([0x01, 0x01])
    bus.disable(1)
    assert bus.send(0x01, logical=True) == (1, [0])
    assert bus.send(0x02, logical=True) == (0, [])  # the map can be used


# Lowest priority: the vector's number chooses, not the task priority.


@pytest.mark.parametrize(("mode", "hint"), [(LOWEST, False), (FIXED, True)], ids=["mode", "hint"])
@pytest.mark.parametrize(("vector", "cpu"), [(0x40, 2), (0x41, 3), (0x42, 1), (0x43, 2)])
def test_lowest_priority_goes_by_the_vector_modulo_the_destinations(
    mode: int, hint: bool, vector: int, cpu: int
) -> None:
    bus = Bus(FLAT_IDS)
    bus.bus.lapics[cpu].tpr = 0xF0
    assert bus.send(0x86, logical=True, mode=mode, hint=hint, vector=vector) == (1, [cpu])


def test_lowest_priority_can_choose_a_bit_without_a_cpu() -> None:
    bus = Bus(FLAT_IDS)
    assert bus.send(0x30, logical=True, mode=LOWEST) == (0, [])
    assert bus.send(0x0C, logical=True, mode=LOWEST, vector=0x40) == (1, [2])
    assert bus.send(0x0C, logical=True, mode=LOWEST, vector=0x41) == (0, [])
    bus.disable(2)
    assert bus.send(0x0C, logical=True, mode=LOWEST, vector=0x40) == (0, [])


def test_without_the_map_lowest_priority_chooses_among_the_enabled() -> None:
    bus = Bus([0x01, 0x01, 0x01])
    assert [bus.send(0x01, logical=True, mode=LOWEST, vector=vector)[1] for vector in (0x41, 0x42, 0x43)] == [
        [2],
        [0],
        [1],
    ]
    bus.disable(1)  # the others still share the bit
    assert [bus.send(0x01, logical=True, mode=LOWEST, vector=vector)[1] for vector in (0x41, 0x42)] == [[2], [0]]
    assert bus.send(0x02, logical=True, mode=LOWEST) == (-1, [])


def test_a_physical_broadcast_of_lowest_priority_goes_to_all() -> None:
    assert Bus(FLAT_IDS).send(BROADCAST, mode=LOWEST) == (4, [0, 1, 2, 3])


def test_a_logical_broadcast_of_lowest_priority_goes_to_one() -> None:
    assert Bus(FLAT_IDS).send(BROADCAST, logical=True, mode=LOWEST, vector=0x42) == (1, [2])


def test_a_physical_broadcast_with_an_msis_hint_goes_to_one() -> None:
    assert Bus(FLAT_IDS).send(BROADCAST, hint=True, vector=0x43) == (1, [3])


@pytest.mark.parametrize("mode", [DeliveryMode.SMI, DeliveryMode.NMI, DeliveryMode.STARTUP, DeliveryMode.EXTINT])
def test_a_physical_broadcast_with_an_msis_hint_is_a_fixed_interrupt_whatever_its_mode(mode: int) -> None:
    # KVM: lapic.c kvm_irq_delivery_to_apic sets the mode to fixed, and the hint still chooses one.
    bus = Bus(FLAT_IDS)
    assert bus.send(BROADCAST, hint=True, mode=mode, vector=0x41) == (1, [1])
    assert [wires.signals for wires in bus.wires] == [[]] * 4


def test_a_hint_to_a_single_destination_keeps_the_mode() -> None:
    bus = Bus(FLAT_IDS)
    assert bus.send(2, hint=True, mode=DeliveryMode.NMI) == (1, [])
    assert bus.wires[2].signals == [DeliveryMode.NMI]


def test_lowest_priority_to_one_physical_destination_needs_no_choice() -> None:
    assert Bus(FLAT_IDS).send(3, mode=LOWEST, vector=0x41) == (1, [3])


# Shorthands.


@pytest.mark.parametrize(
    ("shorthand", "answer"),
    [
        (Shorthand.SELF, (1, [1])),
        (Shorthand.ALL_INCLUDING_SELF, (4, [0, 1, 2, 3])),
        (Shorthand.ALL_EXCLUDING_SELF, (3, [0, 2, 3])),
    ],
)
def test_a_shorthand_goes_before_the_destination(shorthand: int, answer: tuple[int, list[int]]) -> None:
    assert Bus(FLAT_IDS).send(2, shorthand=shorthand, source=1) == answer


def test_all_but_self_of_a_single_cpu_reaches_no_cpu() -> None:
    assert Bus([0x01]).send(0, shorthand=Shorthand.ALL_EXCLUDING_SELF, source=0) == (-1, [])


@pytest.mark.parametrize(
    ("shorthand", "destination", "answer"),
    [
        (Shorthand.ALL_INCLUDING_SELF, 0, (1, [2])),
        (Shorthand.ALL_EXCLUDING_SELF, 0, (1, [0])),
        (Shorthand.ALL_EXCLUDING_SELF, BROADCAST, (3, [0, 2, 3])),
        (Shorthand.SELF, 0, (1, [1])),
    ],
)
def test_lowest_priority_with_a_shorthand_chooses_unless_the_destination_is_a_broadcast(
    shorthand: int, destination: int, answer: tuple[int, list[int]]
) -> None:
    assert Bus(FLAT_IDS).send(destination, mode=LOWEST, shorthand=shorthand, source=1, vector=0x42) == answer


# The IOAPIC's questions to the bus.


def test_accepting_cpus_are_recorded_for_interrupts_alone() -> None:
    bus = Bus(FLAT_IDS)
    bus.disable(0)
    accepted: dict[int, int] = {}
    bus.bus.deliver(Message(0x51, FIXED, 0x07, logical=True, level_triggered=False), accepted)
    assert accepted == {1: 0x51, 2: 0x51}
    bus.bus.deliver(Message(0x61, DeliveryMode.NMI, 3, logical=False, level_triggered=False), accepted)
    assert accepted == {1: 0x51, 2: 0x51}
    bus.bus.deliver(Message(0x61, LOWEST, 3, logical=False, level_triggered=False), accepted)
    assert accepted == {1: 0x51, 2: 0x51, 3: 0x61}


def test_matching_checks_every_cpu_and_addressed_uses_the_map() -> None:
    bus = Bus(FLAT_IDS)
    bus.disable(1)
    assert bus.bus.matching(0x06, logical=True) == 0b0110
    assert bus.bus.addressed(0x06, logical=True) == 0b0100
    assert bus.bus.matching(2, logical=False) == bus.bus.addressed(2, logical=False) == 0b0100
    assert bus.bus.addressed(BROADCAST, logical=True) == 0b1111


def test_cached_destinations_are_dropped_when_an_apic_changes_its_address() -> None:
    bus = Bus(FLAT_IDS)
    entry = 1 << 56
    remembered = (bus.bus.matching_entry, bus.bus.addressed_by_entry)
    assert [cpus[entry] for cpus in remembered] == [0b0010, 0b0010]
    bus.set(1, apic_id=7)
    assert [cpus[entry] for cpus in remembered] == [0, 0]
    bus.set(2, apic_id=1)
    assert [cpus[entry] for cpus in remembered] == [0b0100, 0b0100]
    broadcast = BROADCAST << 56
    assert [cpus[broadcast] for cpus in remembered] == [0b0_1111, 0b0_1111]
    bus.bus.add(Lapic.at_reset(Wires(bus.bus), 4))
    assert [cpus[broadcast] for cpus in remembered] == [0b1_1111, 0b1_1111]


# x2APICs: a destination has 32 bits, and 32 ones are the broadcast.

XAPIC, X2APIC, OFF = 0xFEE0_0800, 0xFEE0_0C00, 0xFEE0_0000
IDS = [0x00, 0x01, 0x10, 0x11, 0x1F, 0xFE]


def x2apics(ids: Sequence[int] = IDS) -> Bus:
    bus = Bus([0] * len(ids), apic_ids=ids)
    for cpu in range(len(ids)):
        bus.switch(cpu, X2APIC)
    return bus


@pytest.mark.parametrize("source", [None, 0], ids=["MSI", "IPI"])
@pytest.mark.parametrize(
    ("destination", "answer"),
    [(0x01, (1, [1])), (0x1F, (1, [4])), (0xFE, (1, [5])), (0x02, (0, [])), (0x101, (0, [])), (0x0100_0000, (0, []))],
)
def test_a_physical_destination_names_one_x2apic_by_all_its_bits(
    destination: int, answer: tuple[int, list[int]], source: int | None
) -> None:
    assert x2apics().send(destination, source=source) == answer


def test_an_x2apics_xapic_id_is_ignored() -> None:
    bus = Bus([0, 0])
    bus.set(1, apic_id=0x77)
    bus.switch(1, X2APIC)
    assert bus.send(0x77) == (0, [])
    assert bus.send(1) == (1, [1])


@pytest.mark.parametrize("logical", [False, True], ids=["physical", "logical"])
def test_an_x2apics_broadcast_has_32_ones(logical: bool) -> None:
    assert x2apics().send(X2APIC_BROADCAST, logical=logical, source=0) == (6, [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("logical", [False, True], ids=["physical", "logical"])
def test_eight_ones_are_a_broadcast_to_x2apics_only_where_they_are_no_ipi(logical: bool) -> None:
    # KVM: lapic.c kvm_apic_mda; the IOAPIC and MSIs have no more than eight bits.
    bus = x2apics()
    assert bus.send(BROADCAST, logical=logical) == (6, [0, 1, 2, 3, 4, 5])
    assert bus.send(BROADCAST, logical=logical, source=0) == ((2, [0, 1]) if logical else (0, []))


@pytest.mark.parametrize(
    ("destination", "answer"),
    [
        (0x0000_0001, (1, [0])),
        (0x0000_0003, (2, [0, 1])),
        (0x0000_0004, (0, [])),
        (0x0000_FFFF, (2, [0, 1])),
        (0x0001_0001, (1, [2])),
        (0x0001_8003, (3, [2, 3, 4])),
        (0x0001_7FFC, (0, [])),
        (0x000F_4000, (1, [5])),
        (0x000F_FFFF, (1, [5])),
        (0x0002_FFFF, (0, [])),
        (0x0001_0000, (0, [])),
        (0x0010_FFFF, (0, [])),  # beyond the map
        (0xFFFF_0001, (0, [])),
    ],
)
@pytest.mark.parametrize("source", [None, 3], ids=["MSI", "IPI"])
def test_a_logical_destination_of_x2apics_is_a_cluster_of_16(
    destination: int, answer: tuple[int, list[int]], source: int | None
) -> None:
    assert x2apics().send(destination, logical=True, source=source) == answer


@pytest.mark.parametrize(("mode", "hint"), [(LOWEST, False), (FIXED, True)], ids=["mode", "hint"])
@pytest.mark.parametrize(("vector", "got"), [(0x40, [2]), (0x41, [3]), (0x42, []), (0x43, [4])])
def test_lowest_priority_chooses_among_the_bits_of_a_cluster(
    mode: int, hint: bool, vector: int, got: list[int]
) -> None:
    # 10h, 11h, 12h, which does not exist, and 1Fh: four bits.
    answer = (len(got), got)
    bus = x2apics()
    assert bus.send(0x0001_8007, logical=True, mode=mode, hint=hint, vector=vector) == answer


def test_lowest_priority_to_an_x2apics_broadcast_chooses_among_all() -> None:
    for physical in (True, False):
        bus = x2apics()
        got = [bus.send(X2APIC_BROADCAST, logical=not physical, mode=LOWEST, source=0, vector=v) for v in (0x42, 0x47)]
        assert got == [(1, [0]), (1, [5])]


def test_shorthands_of_an_x2apic() -> None:
    bus = x2apics([0, 1, 2])
    assert bus.send(0, shorthand=Shorthand.SELF, source=1) == (1, [1])
    assert bus.send(0, shorthand=Shorthand.ALL_INCLUDING_SELF, source=1) == (3, [0, 1, 2])
    assert bus.send(0, shorthand=Shorthand.ALL_EXCLUDING_SELF, source=1) == (2, [0, 2])


def test_a_software_disabled_x2apic_is_addressed_and_takes_no_interrupt() -> None:
    bus = x2apics([0, 1, 2])
    assert bus.bus.lapics[1].write_msr(0x80F, 0xFF) == 0
    assert bus.send(1) == (0, [])
    assert bus.send(0x7, logical=True) == (2, [0, 2])
    bus.send(0x7, logical=True, mode=DeliveryMode.NMI)
    assert bus.wires[1].signals == [DeliveryMode.NMI]


def test_the_ioapics_questions_about_x2apics() -> None:
    bus = x2apics([0, 1, 0x10])
    for addressing in (bus.bus.matching, bus.bus.addressed):
        assert addressing(0x10, logical=False) == 0b100
        assert addressing(0x03, logical=True) == 0b011
        assert addressing(BROADCAST, logical=False) == 0b111
        assert addressing(BROADCAST, logical=True) == 0b111


# xAPICs and x2APICs at once.


def mixed() -> Bus:
    """CPUs 0 and 1 are x2APICs; CPUs 2 and 3 are xAPICs with flat logical IDs 4 and 8."""
    bus = Bus([0, 0, 0x04, 0x08])
    bus.switch(0, X2APIC)
    bus.switch(1, X2APIC)
    return bus


@pytest.mark.parametrize("source", [None, 0, 2], ids=["MSI", "x2APIC", "xAPIC"])
def test_a_physical_destination_names_an_apic_of_either_mode(source: int | None) -> None:
    assert [mixed().send(cpu, source=source) for cpu in range(5)] == [
        (1, [0]),
        (1, [1]),
        (1, [2]),
        (1, [3]),
        (0, []),
    ]


@pytest.mark.parametrize(
    ("source", "destination", "answer"),
    [
        (None, BROADCAST, (4, [0, 1, 2, 3])),
        (0, BROADCAST, (0, [])),  # an x2APIC's ID
        (2, BROADCAST, (2, [2, 3])),
        (0, X2APIC_BROADCAST, (2, [0, 1])),
    ],
    ids=["MSI", "x2APIC, 8 ones", "xAPIC", "x2APIC"],
)
def test_an_ipis_broadcast_stays_within_its_mode(
    source: int | None, destination: int, answer: tuple[int, list[int]]
) -> None:
    assert mixed().send(destination, source=source) == answer


def test_a_shorthand_goes_to_both_modes() -> None:
    assert mixed().send(0, shorthand=Shorthand.ALL_EXCLUDING_SELF, source=0) == (3, [1, 2, 3])


@pytest.mark.parametrize(
    ("destination", "answer"),
    [
        (0x01, (1, [0])),
        (0x02, (1, [1])),
        (0x04, (1, [2])),
        (0x0F, (4, [0, 1, 2, 3])),
        (0x10, (-1, [])),
        (0x0001_0001, (-1, [])),  # another cluster
        (0x0001_000C, (2, [2, 3])),  # an xAPIC compares eight bits
    ],
)
def test_with_logical_ids_of_both_modes_every_cpu_is_checked(destination: int, answer: tuple[int, list[int]]) -> None:
    assert mixed().send(destination, logical=True, source=0) == answer


def test_an_xapic_without_a_logical_id_is_found_in_the_x2apics_map_by_its_physical_one() -> None:
    # KVM: lapic.c kvm_apic_map_get_logical_dest takes clusters from the physical map.
    bus = Bus([0, 0, 0])
    bus.switch(0, X2APIC)
    assert bus.send(0x3, logical=True) == (2, [0, 1])
    assert bus.bus.matching(0x3, logical=True) == 0b001
    bus.disable(1)  # in software: its physical ID stays in the map
    bus.send(0x3, logical=True, mode=DeliveryMode.NMI)
    assert [wires.signals for wires in bus.wires] == [[DeliveryMode.NMI], [DeliveryMode.NMI], []]


def test_an_xapic_that_took_an_x2apics_id_shares_its_messages() -> None:
    bus = mixed()
    bus.set(2, apic_id=1, ldr=0x04 << 24)
    assert bus.send(1) == (2, [1, 2])
    assert bus.send(9) == (-1, [])


def test_a_change_of_the_mode_rebuilds_the_map() -> None:
    bus = Bus(FLAT_IDS)
    assert bus.send(0x02, logical=True) == (1, [1])
    for cpu in range(4):
        bus.switch(cpu, X2APIC)
    assert bus.send(0x80, logical=True) == (0, [])
    assert bus.send(0x08, logical=True) == (1, [3])
    bus.switch(3, OFF, XAPIC)
    assert bus.send(0x08, logical=True) == (-1, [])  # flat, with an ID without bits, left over from the x2APIC
    assert bus.send(0x07, logical=True) == (3, [0, 1, 2])


# Disabled APICs receive nothing.


@pytest.mark.parametrize("mode", [FIXED, DeliveryMode.NMI, DeliveryMode.INIT])
@pytest.mark.parametrize("source", [None, 0], ids=["MSI", "IPI"])
def test_a_disabled_apic_receives_nothing(mode: int, source: int | None) -> None:
    bus = Bus(FLAT_IDS)
    bus.switch(2, OFF)
    assert bus.send(2, mode=mode, source=source)[0] == 0
    assert bus.send(0x04, logical=True, mode=mode, source=source)[0] == 0
    assert bus.send(BROADCAST, mode=mode, source=source)[0] == 3
    assert bus.send(0, shorthand=Shorthand.ALL_INCLUDING_SELF, mode=mode, source=0)[0] == 3
    assert bus.wires[2].signals == []
    bus.switch(2, XAPIC)
    assert bus.send(2, mode=mode, source=source)[0] == 1


def test_where_all_are_disabled_only_a_broadcast_is_minus_1() -> None:
    bus = Bus([0x01, 0x02])
    for cpu in range(2):
        bus.switch(cpu, OFF)
    assert bus.send(0) == (0, [])
    assert bus.send(0x01, logical=True) == (0, [])
    assert bus.send(BROADCAST) == (-1, [])
    assert bus.send(0, shorthand=Shorthand.ALL_INCLUDING_SELF, source=0) == (-1, [])


def test_lowest_priority_does_not_choose_a_disabled_apic() -> None:
    bus = Bus(FLAT_IDS)
    bus.switch(0, OFF)
    assert [bus.send(BROADCAST, logical=True, mode=LOWEST, vector=vector)[1] for vector in (0x42, 0x43, 0x44)] == [
        [1],
        [2],
        [3],
    ]


def test_a_disabled_apic_does_not_switch_the_map_off() -> None:
    bus = Bus(FLAT_IDS)
    bus.set(3, apic_id=2, ldr=0x04 << 24)
    assert bus.send(9) == (-1, [])
    bus.switch(3, OFF)
    assert bus.send(9) == (0, [])
    assert bus.send(2) == (1, [2])
    assert bus.send(0x04, logical=True) == (1, [2])


def test_a_disabled_apic_matches_and_is_not_addressed() -> None:
    bus = Bus(FLAT_IDS)
    bus.switch(2, OFF)
    for destination, logical in ((2, False), (0x04, True)):
        assert bus.bus.matching(destination, logical) == 0b0100
        assert bus.bus.addressed(destination, logical) == 0
    assert bus.bus.addressed(BROADCAST, logical=False) == 0b1011
    bus.set(3, apic_id=0)  # the map is off
    assert bus.bus.addressed(2, logical=False) == 0


# The cache is bounded, because a guest can use 2^32 destinations.


def test_the_cache_of_destinations_is_bounded() -> None:
    bus = x2apics([0, 1])
    for destination in range(3 * MAX_REMEMBERED):
        got = 2 if destination & 0x3 == 0x3 else 1 if destination & 0x3 else 0
        assert bus.send(destination, logical=True, source=0)[0] == got
        assert len(bus.bus._slots) <= MAX_REMEMBERED
    assert bus.send(1) == (1, [1])

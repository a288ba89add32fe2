"""The bus that carries messages to local APICs: which CPUs a message addresses, and which of them take it."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import replace
from typing import Final

from irqchipd.chips.ioapic import DESTINATION_SHIFT, LOGICAL, Ioapic
from irqchipd.chips.lapic import Lapic
from irqchipd.chips.lapic_registers import DFR_CLUSTER, DFR_FLAT, QUIRKS
from irqchipd.chips.message import BROADCAST, X2APIC_BROADCAST, DeliveryMode, Message, Shorthand, from_msi
from irqchipd.observe.observer import Observer
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.routing import MsiRoute, Route

MAX_PHYSICAL_ID: Final = 0xFF  # the least that the map has room for; a larger x2APIC ID extends the map
MAX_REMEMBERED: Final = 1024  # destinations; a guest with x2APICs can name 2^32
_BROADCASTS: Final = (BROADCAST, X2APIC_BROADCAST)
_X2APIC: Final = -1  # the logical model of x2APICs, besides DFR_FLAT and DFR_CLUSTER


class _LogicalMap:
    """Local APICs by logical ID, one bit each. KVM: lapic.c kvm_recalculate_logical_map."""

    __slots__ = ("members", "mode", "usable")

    def __init__(self) -> None:
        self.usable = True
        # DFR_FLAT, DFR_CLUSTER for any other, or _X2APIC; None while no APIC has a logical ID.
        self.mode: int | None = None
        # Flat: bit number of the logical ID; cluster: cluster << 4 | bit number.
        self.members: dict[int, int] = {}

    def add(self, cpu: int, lapic: Lapic) -> None:
        """Enter a software-enabled APIC; a mixture of models, or a bit that two APICs share, makes the map unusable."""
        logical_id = lapic.ldr >> 24
        if not lapic.ldr:
            return
        mode = DFR_FLAT if lapic.dfr == DFR_FLAT else DFR_CLUSTER
        if lapic.x2apic:
            mode = _X2APIC
        if self.mode is None:
            self.mode = mode
        elif self.mode != mode:
            self.usable = False
            return
        if lapic.x2apic:  # the logical ID, and its place in the map, follow from the physical ID
            return
        mask = logical_id if mode == DFR_FLAT else logical_id & 0xF
        cluster = 0 if mode == DFR_FLAT else logical_id & 0xF0
        if not mask:
            return
        key = cluster | mask.bit_length() - 1
        if mask & mask - 1 or key in self.members:
            self.usable = False
        else:
            self.members[key] = cpu

    def slots(self, destination: int, physical: dict[int, int], last: int) -> list[int | None]:
        """The CPUs that the set bits of a destination name, lowest bit first; None where no APIC has the bit.

        last is the physical ID that the map ends with.
        """
        if self.mode is None:
            return []
        if self.mode == _X2APIC:  # KVM: lapic.c kvm_apic_map_get_logical_dest
            first = (destination >> 16) * 16
            ids = range(first, min(first + 16, last + 1))
            return [physical.get(apic_id) for apic_id in ids if destination >> apic_id - first & 1]
        cluster = 0 if self.mode == DFR_FLAT else destination & 0xF0
        mask = destination if self.mode == DFR_FLAT else destination & 0xF
        return [self.members.get(cluster | bit) for bit in range(8) if mask >> bit & 1]


class _ByEntry(dict[int, int]):
    """CPUs, one bit each, by the bits of a redirection entry that address them; computed at the first use."""

    def __init__(self, work_out: Callable[[int, int], int]) -> None:
        super().__init__()
        self._work_out = work_out

    def __missing__(self, address: int) -> int:
        found = self[address] = self._work_out(address >> DESTINATION_SHIFT, address & LOGICAL)
        return found


class ApicBus:
    """Delivers messages to the local APICs of one VM. CPUs are named by index, 0 for the first created.

    KVM keeps a map from destinations to APICs. Where the map can't be used, KVM compares every APIC. The two do not
    always agree, so this class has both.
    """

    def __init__(self, agenda: Agenda) -> None:
        self.agenda = agenda
        self.observer: Observer | None = None
        self.lapics: list[Lapic] = []
        # The IOAPIC, which EOIs may concern; or, with a split irqchip, the number of GSIs, from 0, that lead to the
        # VMM's IOAPIC. KVM: kvm_host.h nr_reserved_ioapic_pins.
        self.ioapic: Ioapic | None = None
        self.split: int | None = None
        self.routes: Sequence[Route] = ()
        # Counts the requests to all CPUs to scan which EOIs concern the IOAPIC. KVM: kvm_make_scan_ioapic_request.
        self.scans = 0
        self.quirks = QUIRKS
        # KVM_CAP_X2APIC_API: APIC IDs have 32 bits, also in MSIs, and for xAPICs with IDs above FFh; and destination
        # FFh of an MSI or of the IOAPIC does not mean all x2APICs.
        self.x2apic_format = False
        self.no_broadcast_quirk = False
        # matching() and addressed(), remembered by redirection entries' addresses.
        self.matching_entry = _ByEntry(self.matching)
        self.addressed_by_entry = _ByEntry(self.addressed)
        # The results of _find_slots.
        self._slots: dict[tuple[int, int], list[int | None] | None] = {}
        self.invalidate()
        # How many of the APICs the map is made of; None while there is no map.
        self._known: int | None = None

    def add(self, lapic: Lapic) -> None:
        """Add an APIC. KVM: lapic.c kvm_lapic_reset makes the map anew before the vCPU belongs to the VM.

        So the map lacks the APIC until it is made anew.
        """
        self.invalidate()
        self.lapics.append(lapic)

    def admit(self) -> None:
        """Make the map anew though no address has changed. KVM: lapic.c kvm_apic_set_state."""
        if self._known != len(self.lapics):
            self.invalidate()
        else:
            self.scans += 1

    @property
    def mapped(self) -> int | None:
        """How many of the APICs the map is made of; None while there is no map."""
        return self._known

    @mapped.setter
    def mapped(self, count: int | None) -> None:
        self.invalidate()
        self._known = count

    def invalidate(self) -> None:
        """The addressing of some APIC has changed: make the map anew when next needed."""
        self._known = len(self.lapics)
        self.scans += 1
        self.forget()

    def forget(self) -> None:
        """Compute anew, when next needed, which CPUs an address names."""
        self._mapped = False
        self._physical: dict[int, int] | None = None
        self._last_id = MAX_PHYSICAL_ID
        self._logical = _LogicalMap()
        self.matching_entry.clear()
        self.addressed_by_entry.clear()
        self._slots.clear()

    def _map(self) -> None:
        """KVM: lapic.c kvm_recalculate_apic_map; two APICs of one physical ID switch the whole map off.

        With IDs of 32 bits they do not: an xAPIC whose vCPU id has more than 8 bits is also found by that id, and the
        8-bit ID names the first APIC that has it.
        """
        self._mapped = True
        if self._known is None:
            return
        physical: dict[int, int] = {}
        for cpu, lapic in enumerate(self.lapics[: self._known]):
            if not lapic.hardware_enabled:
                continue
            self._last_id = max(self._last_id, lapic.apic_id)
            if self.x2apic_format:
                if lapic.x2apic or lapic.apic_id > MAX_PHYSICAL_ID:
                    physical[lapic.apic_id] = cpu
                if not lapic.x2apic:
                    physical.setdefault(lapic.id >> 24, cpu)
            elif physical.setdefault(lapic.apic_id if lapic.x2apic else lapic.id >> 24, cpu) != cpu:
                self._physical = None
                return
            if lapic.enabled and self._logical.usable:
                self._logical.add(cpu, lapic)
        self._physical = physical

    # Addressing.

    def matching(self, destination: int, logical: int) -> int:
        """The CPUs that match a destination of the IOAPIC or an MSI, tried one by one; one bit each."""
        return self._matching(destination, logical, ipi=False)

    def _matching(self, destination: int, logical: int, *, ipi: bool) -> int:
        """KVM: lapic.c kvm_apic_match_dest. Only an IPI can name an x2APIC's broadcast: KVM translates FFh."""
        matches = _matches_logical if logical else _matches_physical
        found = 0
        for cpu, lapic in enumerate(self.lapics):
            rewritten = destination == BROADCAST and lapic.x2apic and not ipi and not self.no_broadcast_quirk
            if matches(lapic, X2APIC_BROADCAST if rewritten else destination):
                found |= 1 << cpu
        return found

    def _is_broadcast(self, destination: int, sender: int | None) -> bool:
        """Whether a destination means all CPUs; sender is the CPU that sent an IPI. KVM: kvm_apic_is_broadcast_dest."""
        if not self.no_broadcast_quirk:
            x2apic = sender is not None and self.lapics[sender].x2apic
            return destination == (X2APIC_BROADCAST if x2apic else BROADCAST)
        if destination != BROADCAST:
            return destination == X2APIC_BROADCAST
        if not self._mapped:
            self._map()
        return self._logical.mode != _X2APIC or not self._logical.usable

    def _present(self, cpus: int) -> int:
        """The CPUs among some whose APIC is enabled in hardware. KVM: lapic.h kvm_apic_present."""
        return sum(1 << cpu for cpu, lapic in enumerate(self.lapics) if cpus >> cpu & 1 and lapic.hardware_enabled)

    def _find_slots(self, destination: int, logical: int) -> list[int | None] | None:
        """The map's entries for a destination that is not a broadcast, or None where the map can't be used."""
        if not self._mapped:
            self._map()
        slots: list[int | None] | None
        if self._physical is None or (logical and not self._logical.usable):
            slots = None
        elif logical:
            slots = self._logical.slots(destination, self._physical, self._last_id)
        else:
            slots = [self._physical.get(destination)]
        if len(self._slots) >= MAX_REMEMBERED:
            self._slots.clear()
        self._slots[destination, logical] = slots
        return slots

    def addressed(self, destination: int, logical: int) -> int:
        """The CPUs that a fixed message would go to, one bit each. KVM: lapic.c kvm_bitmap_or_dest_vcpus."""
        slots = None if self._is_broadcast(destination, None) else self._find_slots(destination, logical)
        if slots is None:
            return self._present(self.matching(destination, logical))
        return sum(1 << cpu for cpu in slots if cpu is not None)

    # EOIs that concern the IOAPIC.

    def handled_vectors(self, cpu: int) -> tuple[int, int]:
        """The vectors whose EOI a CPU has to report, one bit each, and the stale one: see Ioapic.handled_vectors."""
        pending = self.lapics[cpu].irr | self.lapics[cpu].isr
        if self.ioapic is not None:
            return self.ioapic.handled_vectors(cpu, pending)
        assert self.split is not None
        handled, stale = 0, -1
        for route in self.routes:  # KVM: irq_comm.c kvm_scan_ioapic_routes
            if route.gsi >= self.split or not isinstance(route, MsiRoute):
                continue
            message = self.msi(route.address, route.data)
            if not message.level_triggered:
                continue
            vector = message.vector
            if self.matching(message.destination, message.logical) >> cpu & 1:
                handled |= 1 << vector
            elif pending >> vector & 1:
                handled |= 1 << vector
                stale = max(stale, vector)
        return handled, stale

    def pending(self, vector: int) -> int:
        """The CPUs that have a vector requested or in service, one bit each."""
        return sum(1 << cpu for cpu, lapic in enumerate(self.lapics) if (lapic.irr | lapic.isr) >> vector & 1)

    # Delivery.

    def msi(self, address: int, data: int) -> Message:
        """The message of an MSI."""
        return from_msi(address if self.x2apic_format else address & 0xFFFF_FFFF, data)

    def can_send(self, address: int) -> bool:
        """Whether an MSI can have an address. KVM: irq_comm.c kvm_msi_route_invalid."""
        return not (self.x2apic_format and address >> 32 & 0xFF)

    def deliver(
        self, message: Message, accepted: MutableMapping[int, int] | None = None, sender: int | None = None
    ) -> int:
        """Deliver a message and return how many CPUs took it, or -1 if the message addresses no CPU.

        accepted collects the CPUs that took it, with the vector; sender is an IPI's CPU. KVM: kvm_irq_delivery_to_apic.
        """
        if message.shorthand == Shorthand.NONE:
            to = message.destination, message.logical
            if message.destination in _BROADCASTS and self._is_broadcast(message.destination, sender):
                slots = None
            else:
                slots = self._slots[to] if to in self._slots else self._find_slots(*to)
            if slots is not None:
                if message.logical and message.lowest_priority and slots:
                    # KVM: lapic.c kvm_vector_to_index; the chosen bit may be no CPU's, which loses the message.
                    slots = [slots[message.vector % len(slots)]]
                status = 0
                for cpu in slots:
                    if cpu is not None:
                        status += self.offer(cpu, message, accepted)
                return status
        elif message.shorthand == Shorthand.SELF and sender is not None:
            return self.offer(sender, message, accepted)
        if message.lowest_priority and message.destination == BROADCAST and not message.logical:
            # KVM: in any delivery mode; with a redirection hint it still goes to one CPU.
            message = replace(message, delivery_mode=DeliveryMode.FIXED)
        cpus = self._unmapped(message, sender)
        return sum([self.offer(cpu, message, accepted) for cpu in cpus]) if cpus else -1

    def _unmapped(self, message: Message, sender: int | None) -> list[int]:
        """The CPUs that get a message without the map's help: a broadcast, a shorthand, or ambiguous addresses."""
        if message.shorthand == Shorthand.NONE:
            matching = self._matching(message.destination, message.logical, ipi=sender is not None)
        else:
            matching = (1 << len(self.lapics)) - 1
            if message.shorthand == Shorthand.ALL_EXCLUDING_SELF and sender is not None:
                matching &= ~(1 << sender)
        cpus = [cpu for cpu, lapic in enumerate(self.lapics) if matching >> cpu & 1 and lapic.hardware_enabled]
        if message.lowest_priority:
            cpus = [cpu for cpu in cpus if self.lapics[cpu].enabled]
            return [cpus[message.vector % len(cpus)]] if cpus else []
        return cpus

    def offer(self, cpu: int, message: Message, accepted: MutableMapping[int, int] | None = None) -> int:
        """Hand a message to one CPU; 1 if the CPU took the message, 0 if not."""
        self.agenda.work += 1
        lapic = self.lapics[cpu]
        if self.observer is not None:
            level, vector = message.level_triggered, message.vector
            self.observer.kvm_apic_accept_irq(lapic.apic_id, message.delivery_mode, level, vector)
        status = lapic.accept(message)
        if accepted is not None and status and message.delivery_mode <= DeliveryMode.LOWEST_PRIORITY:
            accepted[cpu] = message.vector
        return status


def _matches_physical(lapic: Lapic, destination: int) -> bool:
    """KVM: lapic.c kvm_apic_match_physical_addr."""
    if destination == (X2APIC_BROADCAST if lapic.x2apic else BROADCAST):
        return True
    return destination == (lapic.apic_id if lapic.x2apic or destination > 0xFF else lapic.id >> 24)


def _matches_logical(lapic: Lapic, destination: int) -> bool:
    """KVM: lapic.c kvm_apic_match_logical_addr; an invalid DFR matches nothing."""
    if destination == (X2APIC_BROADCAST if lapic.x2apic else BROADCAST):
        return True
    if lapic.x2apic:
        return lapic.ldr >> 16 == destination >> 16 and bool(lapic.ldr & destination & 0xFFFF)
    logical_id = lapic.ldr >> 24
    if lapic.dfr == DFR_FLAT:
        return bool(logical_id & destination)
    if lapic.dfr == DFR_CLUSTER:
        return logical_id >> 4 == destination >> 4 and bool(logical_id & destination & 0xF)
    return False

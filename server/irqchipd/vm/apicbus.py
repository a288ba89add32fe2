"""The bus between message sources and local APICs: who is addressed, and who of them takes it."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

from irqchipd.chips.lapic import DFR_CLUSTER, DFR_FLAT, Lapic
from irqchipd.chips.message import BROADCAST, DeliveryMode, Message, Shorthand


class _LogicalMap:
    """Local APICs by logical ID, one bit each. KVM: lapic.c kvm_recalculate_logical_map."""

    __slots__ = ("members", "mode", "usable")

    def __init__(self) -> None:
        self.usable = True
        self.mode: int | None = None  # DFR_FLAT, or DFR_CLUSTER for any other; None while nobody has a logical ID
        # Flat: bit number of the logical ID; cluster: cluster << 4 | bit number.
        self.members: dict[int, int] = {}

    def add(self, cpu: int, lapic: Lapic) -> None:
        """Enter a software-enabled APIC; a mixture of models, or a bit that is not one's own, makes it unusable."""
        logical_id = lapic.ldr >> 24
        if not lapic.ldr:
            return
        mode = DFR_FLAT if lapic.dfr == DFR_FLAT else DFR_CLUSTER
        if self.mode is None:
            self.mode = mode
        elif self.mode != mode:
            self.usable = False
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

    def slots(self, destination: int) -> list[int | None]:
        """What the set bits of a destination name, lowest first; None where nobody has the bit."""
        if self.mode is None:
            return []
        cluster = 0 if self.mode == DFR_FLAT else destination & 0xF0
        mask = destination if self.mode == DFR_FLAT else destination & 0xF
        return [self.members.get(cluster | bit) for bit in range(8) if mask >> bit & 1]


class ApicBus:
    """Delivers messages to the local APICs of one VM. CPUs are named by index, 0 for the first created.

    KVM keeps a map from destinations to APICs and falls back on asking every APIC where the map can't be used; the two
    do not always agree, and both are here.
    """

    __slots__ = ("_accept_cache", "_logical", "_mapped", "_match_cache", "_physical", "lapics", "on_offer")

    def __init__(self) -> None:
        self.lapics: list[Lapic] = []
        # Told, where set, of every message a CPU is offered.
        self.on_offer: Callable[[int, Message], None] | None = None
        self.invalidate()

    def invalidate(self) -> None:
        """The addressing of some APIC has changed: the map is made anew when next needed."""
        self._mapped = False
        self._physical: dict[int, int] | None = None
        self._logical = _LogicalMap()
        self._match_cache: dict[tuple[int, int], int] = {}
        self._accept_cache: dict[tuple[int, int], list[int | None] | None] = {}

    def _map(self) -> None:
        """KVM: lapic.c kvm_recalculate_apic_map; two APICs of one physical ID switch the whole map off."""
        self._mapped = True
        physical: dict[int, int] = {}
        for cpu, lapic in enumerate(self.lapics):
            if physical.setdefault(lapic.id >> 24, cpu) != cpu:
                self._physical = None
                return
            if lapic.enabled and self._logical.usable:
                self._logical.add(cpu, lapic)
        self._physical = physical

    # Addressing.

    def matching(self, destination: int, logical: int) -> int:
        """The CPUs that match a destination, asked one by one; one bit each. KVM: lapic.c kvm_apic_match_dest."""
        key = (destination, logical)
        found = self._match_cache.get(key)
        if found is None:
            matches = _matches_logical if logical else _matches_physical
            found = sum(1 << cpu for cpu, lapic in enumerate(self.lapics) if matches(lapic, destination))
            self._match_cache[key] = found
        return found

    def _mapped_slots(self, destination: int, logical: int) -> list[int | None] | None:
        """What the map has for a destination, or None where the map can't be used."""
        key = (destination, logical)
        try:
            return self._accept_cache[key]
        except KeyError:
            pass
        if not self._mapped:
            self._map()
        slots: list[int | None] | None
        if self._physical is None or destination == BROADCAST or (logical and not self._logical.usable):
            slots = None
        elif logical:
            slots = self._logical.slots(destination)
        else:
            slots = [self._physical.get(destination)]
        self._accept_cache[key] = slots
        return slots

    def addressed(self, destination: int, logical: int) -> int:
        """The CPUs that a fixed message would go to, one bit each. KVM: lapic.c kvm_bitmap_or_dest_vcpus."""
        slots = self._mapped_slots(destination, logical)
        if slots is None:
            return self.matching(destination, logical)
        return sum(1 << cpu for cpu in slots if cpu is not None)

    # Delivery.

    def deliver(
        self, message: Message, accepted: MutableMapping[int, int] | None = None, source: Lapic | None = None
    ) -> int:
        """Deliver a message and return how many took it, or -1 where nobody was addressed.

        accepted notes, CPU to vector, who took it; source is the APIC of an IPI. KVM: lapic.c kvm_irq_delivery_to_apic.
        """
        if message.shorthand == Shorthand.NONE:
            slots = self._mapped_slots(message.destination, message.logical)
            if slots is not None:
                if message.logical and message.lowest_priority and slots:
                    # KVM: lapic.c kvm_vector_to_index; a bit that nobody has can be chosen, and then nobody gets it.
                    slots = [slots[message.vector % len(slots)]]
                return sum([self._offer(cpu, message, accepted) for cpu in slots if cpu is not None])
        elif message.shorthand == Shorthand.SELF:
            return source.accept(message) if source is not None else 0
        cpus = self._unmapped(message, source)
        return sum([self._offer(cpu, message, accepted) for cpu in cpus]) if cpus else -1

    def _unmapped(self, message: Message, source: Lapic | None) -> list[int]:
        """Who gets a message that the map is no help with: a broadcast, a shorthand, or ambiguous addresses."""
        if message.shorthand == Shorthand.NONE:
            matching = self.matching(message.destination, message.logical)
            cpus = [cpu for cpu in range(len(self.lapics)) if matching >> cpu & 1]
        else:
            excluded = source if message.shorthand == Shorthand.ALL_EXCLUDING_SELF else None
            cpus = [cpu for cpu, lapic in enumerate(self.lapics) if lapic is not excluded]
        # KVM: a physical broadcast turns lowest priority into fixed; a redirection hint stays what it is.
        physical_broadcast = message.destination == BROADCAST and not message.logical
        if message.redirection_hint or (message.lowest_priority and not physical_broadcast):
            cpus = [cpu for cpu in cpus if self.lapics[cpu].enabled]
            return [cpus[message.vector % len(cpus)]] if cpus else []
        return cpus

    def _offer(self, cpu: int, message: Message, accepted: MutableMapping[int, int] | None) -> int:
        if self.on_offer is not None:
            self.on_offer(cpu, message)
        status = self.lapics[cpu].accept(message)
        if accepted is not None and status and message.delivery_mode <= DeliveryMode.LOWEST_PRIORITY:
            accepted[cpu] = message.vector
        return status


def _matches_physical(lapic: Lapic, destination: int) -> bool:
    """KVM: lapic.c kvm_apic_match_physical_addr."""
    return destination == BROADCAST or destination == lapic.id >> 24


def _matches_logical(lapic: Lapic, destination: int) -> bool:
    """KVM: lapic.c kvm_apic_match_logical_addr; a DFR that is neither model matches nothing."""
    if destination == BROADCAST:
        return True
    logical_id = lapic.ldr >> 24
    if lapic.dfr == DFR_FLAT:
        return bool(logical_id & destination)
    if lapic.dfr == DFR_CLUSTER:
        return logical_id >> 4 == destination >> 4 and bool(logical_id & destination & 0xF)
    return False

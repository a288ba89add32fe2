"""The board of an s390 VM: the FLIC, the guest's memory that holds indicators, and routes to adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from irqchipd.chips.s390.adapters import Adapter, AdapterRoute, Indicator
from irqchipd.chips.s390.flic import Flic, SavedFlic
from irqchipd.chips.s390.irq import Kind
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.board import Board
from irqchipd.vm.errors import VmError
from irqchipd.vm.notices import Notices
from irqchipd.vm.regions import Access, RegionDevice
from irqchipd.vm.routing import Route, S390Route
from irqchipd.vm.s390.cpu import S390Cpu


class S390Board(Board):
    """A FLIC and vCPUs. The board implements FlicWires."""

    def __init__(self, agenda: Agenda) -> None:
        super().__init__(agenda, has_indicators=True)
        self.flic = Flic(self)
        self.has_irqchip = True  # KVM: arch/s390/kvm/irq.h irqchip_in_kernel
        # KVM accepts irqfds that resample, but knows no interrupt's end: they never resample. An adapter's are edges.
        self.can_resample = True
        self.notices = Notices(agenda, self.lower_resampled)
        # In the order of creation, and by id.
        self.cpus: list[S390Cpu] = []
        self.cpu_of: dict[int, S390Cpu] = {}
        self.can_create = False  # KVM: kvm_arch use_irqchip
        self.created = False
        self.user_controls = False  # KVM: kvm_arch user_cpu_state_ctrl
        self.has_device = False
        self._table: dict[int, S390Route] = {}
        # The number of each adapter's indicators that are on their way to the owner of the memory.
        self._on_their_way: dict[int, int] = {}

    def add_cpu(self, vcpu_id: int) -> S390Cpu:
        """Put in a vCPU."""
        cpu = S390Cpu(self.agenda, self.flic.floating, self.cpu_of, vcpu_id, len(self.cpus))
        self.cpus.append(cpu)
        self.cpu_of[vcpu_id] = cpu
        return cpu

    def reset(self) -> None:
        """As a VMM resets a machine: no interrupt is pending or suppressed, and vCPUs are as created.

        Adapters and routes stay: they are the VMM's.
        """
        self.flic.floating.clear()
        self.flic.simm = self.flic.nimm = 0
        for adapter in self.flic.adapters.save():
            self.flic.adapters.registered(adapter.id).masked = False
        self.user_controls = False
        for cpu in self.cpus:
            cpu.local.stopped = True
            cpu.initialise()

    def floating_changed(self) -> None:
        """A floating interrupt came or went. KVM: __floating_irq_kick; here all waiting vCPUs look, in order."""
        for cpu in self.cpus:
            cpu.priorities_changed()

    # Lines.

    def set_routes(self, routes: Sequence[Route]) -> None:
        self.routes = routes
        self._table = {route.gsi: route for route in routes if isinstance(route, S390Route)}

    def set_irq(self, gsi: int, level: int, source: int, line_status: bool = True) -> int:  # noqa: ARG002
        """Each high level from any source is an interrupt: an adapter has no line. KVM: set_adapter_int.

        1 also where a Session answers for the memory: only a later answer says whether the summary was set before.
        """
        if self.observer is not None:
            self.observer.kvm_set_irq(gsi, level, source.bit_length() - 1)
        found = self._table.get(gsi)
        if found is None:
            return -1
        route = adapter_route(found)
        adapter = self.flic.adapters.find(route.adapter)
        if level and adapter is not None and self._is_answered(adapter, route):
            self._send_indicator(route)
            return 1
        status = self.flic.set_adapter(route, level)
        if self.observer is not None and level and adapter is not None and status >= 0:
            self.observer.line_raised(status == 0, adapter.masked)
        if status > 0:
            self.floating_changed()
        return status

    def drop_source(self, source: int) -> None:
        """Do nothing: the board keeps no levels."""

    def adapter_injected(self, word: int) -> None:
        if self.observer is not None:
            self.observer.kvm_s390_inject_vm(Kind.IO_ADAPTER, 0, word)

    # Guest memory.

    def region_at(self, address: int) -> RegionDevice | None:
        """The region of a byte of the guest's memory."""
        device = self.memory.find(address, 1)
        return device if isinstance(device, RegionDevice) else None

    def set_bits(self, address: int, mask: int) -> int | None:
        """See FlicWires: in memory that a client shares."""
        device = self.region_at(address)
        if device is None:
            return None
        region = device.regions[0]
        return None if region.shared is None else region.shared.set_bits(address - region.start, mask)

    def _is_answered(self, adapter: Adapter, route: AdapterRoute) -> bool:
        """Whether there is memory, and a Session answers for a part of it."""
        devices = [self.region_at(bit.byte(adapter.swap)[0]) for bit in (route.indicator, route.summary)]
        return None not in devices and any(device.regions[0].shared is None for device in devices if device is not None)

    # An adapter's indicators in memory that a Session answers for. The Session sets the indicator, then the summary;
    # only its second answer says whether the summary was set before.

    def _send_indicator(self, route: AdapterRoute) -> None:
        number = route.adapter
        self._on_their_way[number] = self._on_their_way.get(number, 0) + 1
        self._set_bit(route.indicator, route, lambda was: self._indicated(route, was))

    def _indicated(self, route: AdapterRoute, was: bool | None) -> None:
        if was is None:
            self._arrived(route)
        else:
            self._set_bit(route.summary, route, lambda was: self._summarized(route, was))

    def _summarized(self, route: AdapterRoute, was: bool | None) -> None:
        self._arrived(route)
        adapter = self.flic.adapters.find(route.adapter)
        if was is None or adapter is None:
            return
        if self.observer is not None:
            self.observer.line_raised(was, adapter.masked)
        if not was:
            self.flic.summarized(adapter)
            self.floating_changed()

    def _arrived(self, route: AdapterRoute) -> None:
        left = self._on_their_way.pop(route.adapter) - 1
        if left:
            self._on_their_way[route.adapter] = left

    def _set_bit(self, bit: Indicator, route: AdapterRoute, then: Callable[[bool | None], None]) -> None:
        """Set a bit, and call then with the bit's old value, or with None if there is no memory or no answer."""
        adapter = self.flic.adapters.find(route.adapter)
        address, mask = bit.byte(adapter is not None and adapter.swap)
        device = self.region_at(address)
        if device is None or device.regions[0].shared is not None:
            before = self.set_bits(address, mask)
            then(None if before is None else bool(before & mask))
            return
        try:
            access = self.regions.set_bits(device, address, mask)
        except VmError:  # too many accesses wait for the owner
            then(None)
            return
        access.when_done(lambda: self._answered(access, mask, then))

    def _answered(self, access: Access, mask: int, then: Callable[[bool | None], None]) -> None:
        """The owner has answered, or will not; called without the lock."""
        with suppress(VmError), self.agenda:
            answer = access.answer
            then(bool(answer & mask) if isinstance(answer, int) else None)

    # Snapshots.

    def save_flic(self) -> SavedFlic:
        """The FLIC. Adapters whose indicators are on their way interrupt once too often rather than never."""
        if not self._on_their_way:
            return self.flic.save()
        copy = Flic(_NoWires())
        copy.resume(self.flic.save())
        for number in self._on_their_way:
            adapter = copy.adapters.find(number)
            if adapter is not None:
                copy.summarized(adapter)
        return copy.save()


class _NoWires:
    """The wires of a FLIC outside of a VM."""

    def set_bits(self, address: int, mask: int) -> int | None:  # noqa: ARG002
        return None

    def adapter_injected(self, word: int) -> None:
        """Do nothing."""


def adapter_route(route: S390Route) -> AdapterRoute:
    """A route in the FLIC's form."""
    indicator = Indicator(route.indicator_address, route.indicator_offset)
    return AdapterRoute(indicator, Indicator(route.summary_address, route.summary_offset), route.adapter)

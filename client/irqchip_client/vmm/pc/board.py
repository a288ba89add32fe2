"""A VM as firmware's tables describe it. It is read from the VM, so that tables and chips cannot differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from irqchip_client import Chip, PinRoute, RegionInfo, Space
from irqchip_client._sync.client import Vm
from irqchip_client.devices import power
from irqchip_client.devices.device import DeviceRegion

IOAPIC_VERSION = 0x11  # of an 82093AA. KVM: ioapic.h IOAPIC_VERSION_ID
ISA_IRQS = 16
# Polarity and trigger mode, MPS INTI flags: MultiProcessor Specification 1.4, 4.3.4; ACPI 6.5, 5.2.12.5.
AS_THE_BUS, LEVEL_ACTIVE_HIGH = 0, 3 << 2 | 1


@dataclass(frozen=True, slots=True)
class Board:
    """A machine, as far as firmware describes it.

    apic_ids      of the vCPUs, the boot processor's first
    apic_version  of the local APICs, as in bits 7:0 of their version register
    ioapic_id, ioapic_address
    pins          the IOAPIC's pin of each GSI that leads to one
    pit           whether there is a PIT
    regions       the ports and addresses at which a device answers
    """

    apic_ids: tuple[int, ...]
    apic_version: int
    ioapic_id: int
    ioapic_address: int
    pins: Mapping[int, int]
    pit: bool = True
    regions: tuple[RegionInfo, ...] = field(default=(), repr=False)

    def has(self, space: Space, address: int) -> bool:
        """Whether a device answers at a port or an address."""
        return any(each.space == space and 0 <= address - each.address < each.length for each in self.regions)

    @property
    def isa_pins(self) -> dict[int, int]:
        """The pin of each ISA interrupt that has one: ISA interrupts are GSI 0 to 15."""
        return {irq: self.pins[irq] for irq in range(ISA_IRQS) if irq in self.pins}

    def inti_flags(self, irq: int) -> int:
        """An ISA interrupt's flags. ACPI's SCI is level-triggered and active high; the others are as ISA has them."""
        return LEVEL_ACTIVE_HIGH if irq == power.SCI and self.has(Space.PIO, power.BASE) else AS_THE_BUS


def read_board(vm: Vm, local: Iterable[DeviceRegion] = ()) -> Board:
    """Reads the VM that the tables describe. NotFound without an irqchip of the daemon's, or without a vCPU.

    local  the regions of devices in this process, which the daemon does not know
    """
    info = vm.info()
    ioapic = vm.get_irqchip(Chip.IOAPIC)
    boot = vm.vcpu(0).lapic()
    routes = [route for route in vm.routing() if isinstance(route, PinRoute) and route.chip == Chip.IOAPIC]
    claimed = [each for session in info.sessions for each in session.regions]
    claimed += [RegionInfo(each.space, each.start, each.length) for each in local]
    return Board(
        apic_ids=info.vcpus,  # KVM: a vCPU's number is its APIC id
        apic_version=boot.version & 0xFF,
        ioapic_id=ioapic.id,
        ioapic_address=ioapic.base_address,
        pins={route.gsi: route.pin for route in routes},
        pit=info.pit,
        regions=tuple(claimed),
    )

"""A Watch's filter of events: by tracepoint, GSI and vCPU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Final

from irqchipd.observe.observer import FIELDS, TRACEPOINTS
from irqchipd.vm.arm64.line_numbers import parts_of
from irqchipd.vm.arm64.numbers import LineType
from irqchipd.vm.errors import invalid, quoted
from irqchipd.vm.routing import MAX_GSIS, MsiRoute, PinRoute, Route

_IOAPIC, _SECONDARY = 2, 1  # KVM_IRQCHIP_*
_FIRST_SPI = 32  # the INTID of SPI 0
_MSI, _LINE = "msi", "line"


def _line(kind: int, vcpu: int, number: int, *_: int) -> Hashable:
    """A line of an arm64 VM: an SPI is a pin of the GIC, for any vCPU in KVM_IRQ_LINE's number."""
    return (0, number - _FIRST_SPI) if kind == LineType.SPI else (_LINE, kind, vcpu, number)


def _intid(vcpu: int, intid: int, _level: int) -> Hashable:
    return _line(LineType.SPI if intid >= _FIRST_SPI else LineType.PPI, vcpu, intid)


# The subject of an event, in the form of _ends_of: a GSI's number, a chip and a pin, a line of an arm64 vCPU, or an
# MSI. A GIC is chip 0, and an SPI's number its pin. PICs acknowledge lines 0 to 15.
_ABOUT: Final[dict[str, Callable[..., Hashable]]] = {
    "kvm_set_irq": lambda gsi, *_: gsi,
    "kvm_pic_set_irq": lambda chip, pin, *_: (chip, pin),
    "kvm_ioapic_set_irq": lambda _entry, pin, _coalesced: (_IOAPIC, pin),
    "kvm_msi_set_irq": lambda address, data: (_MSI, address, data),
    "kvm_ack_irq": lambda chip, pin: (chip, pin & 7 if chip == _SECONDARY else pin),
    "kvm_irq_line": _line,
    "kvm_timer_update_irq": _intid,
    "vgic_update_irq_pending": _intid,
}
_VCPU: Final = {name: fields.index("vcpu") for name, fields in FIELDS.items() if "vcpu" in fields}


class Filter:
    """The events of some tracepoints; with GSIs or vCPUs, only events about one of them.

    probes: changes of probes are wanted, too. Equal filters choose the same events.
    """

    __slots__ = ("_ends", "_routes", "gsis", "probes", "tracepoints", "vcpus")

    def __init__(
        self,
        tracepoints: Iterable[str] = (),
        gsis: Collection[int] = (),
        vcpus: Collection[int] = (),
        probes: bool = False,
    ) -> None:
        """EINVAL for an unknown tracepoint, and for more GSIs or vCPUs than a VM can have."""
        self.tracepoints = frozenset(tracepoints) or frozenset(TRACEPOINTS)
        for name in self.tracepoints:
            if name not in FIELDS:
                raise invalid(f"{quoted(name)} is not a tracepoint: use one of {', '.join(TRACEPOINTS)}")
        if max(len(gsis), len(vcpus)) > MAX_GSIS:
            raise invalid(f"a Watch of {len(gsis)} GSIs and {len(vcpus)} vCPUs: name at most {MAX_GSIS} of each")
        self.gsis = frozenset(gsis)
        self.vcpus = frozenset(vcpus)
        self.probes = probes
        self._routes: Sequence[Route] | None = None
        self._ends: frozenset[Hashable] = frozenset()

    def _key(self) -> tuple[object, ...]:
        return self.tracepoints, self.gsis, self.vcpus, self.probes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def takes(self, name: str, values: Sequence[int], routes: Sequence[Route]) -> bool:
        """Whether an event of one of the tracepoints is chosen; routes is the VM's routing at the time."""
        if not self.gsis and not self.vcpus:
            return True
        if self.vcpus and name in _VCPU and values[_VCPU[name]] in self.vcpus:
            return True
        if not self.gsis or name not in _ABOUT:
            return False
        if routes is not self._routes:
            self._routes, self._ends = routes, _ends_of(self.gsis, routes)
        return _ABOUT[name](*values) in self._ends


def _ends_of(gsis: frozenset[int], routes: Sequence[Route]) -> frozenset[Hashable]:
    """GSIs, and their targets; and the lines of an arm64 VM with these numbers in KVM_IRQ_LINE."""
    ends: set[Hashable] = {*gsis, *(_line(*parts_of(gsi)) for gsi in gsis)}
    for route in routes:
        if route.gsi in gsis and isinstance(route, MsiRoute):
            ends.add((_MSI, route.address, route.data))
        elif route.gsi in gsis and isinstance(route, PinRoute):
            ends.add((int(route.chip), route.pin))
    return frozenset(ends)

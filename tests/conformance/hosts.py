"""How this host's KVM departs from the KVM that irqchipd reproduces: one table, explained in docs/exactness.md.

A departure is imitated: irqchipd with one changed method has to give this host's answers. The exception is the effect
of a guest entry on TPR, which is filtered from irqchipd's answers, because a comparison does not see every entry.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from irqchipd.chips.lapic import Lapic, Msr
from irqchipd.chips.lapic_registers import LapicRegisters, Reg
from irqchipd.vm.x86.cpu import Cpu
from tests.conformance.machines import Answer, Op

PAGE_HEX = 2048
TPR_KEPT = 0xF0
PRIORITIES = (Reg.TPR, Reg.PPR)
X2APIC_PRIORITIES = tuple(Msr.X2APIC + (register >> 4) for register in PRIORITIES)

KVM_AMD = Path("/sys/module/kvm_amd")
SVM, SVM_WITHOUT_VNMI = "SVM", "SVM without virtual NMIs"

Filter = Callable[[Op, Answer], Answer]


class SplitIcr(Lapic):
    """An x2APIC whose ICR consists of an xAPIC's two registers."""

    __slots__ = ()

    def _read_x2apic(self, offset: int) -> int:
        return self.icr2 << 32 | self.icr if offset == Reg.ICR else super()._read_x2apic(offset)

    def _write_x2apic_icr(self, value: int) -> int:
        high = self.icr_high
        answer = super()._write_x2apic_icr(value)
        if not answer:
            self.icr2, self.icr_high = self.icr_high, high
        return answer

    def registers(self) -> LapicRegisters:
        registers = super().registers()
        registers.icr2 = self.icr2
        return registers

    def restore(self, registers: LapicRegisters) -> None:
        super().restore(registers)
        self.icr_high = registers.icr_high


class KeepsNmiMask(Cpu):
    """A vCPU whose NMIs stay masked over INIT."""

    __slots__ = ()

    def _initialise(self) -> None:
        masked = self.nmi_masked
        super()._initialise()
        self.nmi_masked = masked


class KeepsRemoteRead(Cpu):
    """A vCPU that forgets a remote read only at the end of a halt."""

    __slots__ = ()

    def run(self) -> None:
        unhalted = self.unhalted
        super().run()
        self.unhalted = unhalted

    def _unhalt(self) -> None:
        if self.is_halted:
            self.unhalted = False
        super()._unhalt()


class KeepsScan(Cpu):
    """A vCPU that still reports the EOIs of a vector after its entry was redirected."""

    __slots__ = ()

    def end_of_interrupt(self, vector: int, level_triggered: bool) -> None:
        self.stale = -1
        super().end_of_interrupt(vector, level_triggered)


def without_low_priority(op: Op, answer: Answer) -> Answer:
    """An answer without TPR, and the PPR derived from it, after an entry that kept CR8 alone."""
    match op:
        case ["get_lapic_page", _] if isinstance(answer, str) and len(answer) == PAGE_HEX:
            page = bytearray.fromhex(answer)
            page[Reg.TPR : Reg.TPR + 4] = bytes((page[Reg.TPR] & TPR_KEPT, 0, 0, 0))
            return page.hex()
        case ["mmio_read", _, address, _] if isinstance(answer, int) and address & 0xFF0 in PRIORITIES:
            return answer & TPR_KEPT if not address & 0xF else 0
        case ["msr_read", _, register] if isinstance(answer, int) and register in X2APIC_PRIORITIES:
            return answer & TPR_KEPT
        case _:
            return answer


@dataclass(frozen=True, slots=True)
class Departure:
    """One departure: the kernel code, the reason, and the imitation or filter."""

    about: str
    kernel: str  # the file and function
    imitation: type[Cpu] | type[Lapic] | None = None
    filter: Filter | None = None
    trait: str | None = None  # the trait of hosts that depart
    before: tuple[int, int] | None = None  # or the first kernel without the departure

    def __str__(self) -> str:
        return f"{self.about} ({self.kernel})"


DEPARTURES = (
    Departure(
        "an entry into the guest leaves the low four bits of TPR 0: SVM keeps CR8",
        "svm.c sync_cr8_to_lapic",
        filter=without_low_priority,
        trait=SVM,
    ),
    Departure(
        "an x2APIC's ICR is two registers: its upper half is at 310h, and an xAPIC finds it there",
        "lapic.c __kvm_x2apic_icr_write, kvm_apic_state_fixup (x2apic_icr_is_split)",
        SplitIcr,
        trait=SVM,
    ),
    Departure(
        "INIT leaves NMIs masked that were",
        "svm.c svm_vcpu_reset, which leaves nmi_masked",
        KeepsNmiMask,
        trait=SVM_WITHOUT_VNMI,
    ),
    Departure(
        "a remote read that came to a vCPU which ran ends its next halt, though it was made runnable since",
        "x86.h kvm_set_mp_state, which forgets the remote read since 6.15",
        KeepsRemoteRead,
        before=(6, 15),
    ),
    Departure(
        "a vector whose entry was pointed elsewhere while it was in service: its EOIs go to the IOAPIC ever after",
        "lapic.c kvm_ioapic_send_eoi, which looks anew since 6.16 (highest_stale_pending_ioapic_eoi)",
        KeepsScan,
        before=(6, 16),
    ),
)


class Host:
    """The behaviour of a KVM, given its departures."""

    def __init__(self, departures: Iterable[Departure] = ()) -> None:
        self.departures = tuple(departures)
        imitations = [departure.imitation for departure in self.departures if departure.imitation]
        self.cpu = cast(type[Cpu], _imitating(Cpu, imitations))
        self.lapic = cast(type[Lapic], _imitating(Lapic, imitations))
        self._filters = [departure.filter for departure in self.departures if departure.filter]

    def filtered(self, op: Op, answer: Answer) -> Answer:
        """irqchipd's answer without the parts that the host does not show."""
        for one in self._filters:
            answer = one(op, answer)
        return answer


def _imitating(base: type, imitations: Iterable[type]) -> type:
    chosen = tuple(one for one in imitations if issubclass(one, base))
    return type(base.__name__, (*chosen, base), {"__slots__": ()}) if chosen else base


def departures(release: str, traits: Collection[str] = ()) -> tuple[Departure, ...]:
    """The departures of a kernel's KVM on a host."""
    major, minor = map(int, re.findall(r"\d+", release)[:2])
    return tuple(one for one in DEPARTURES if one.trait in traits or (one.before and (major, minor) < one.before))


PLAIN = Host()
STANDARD = Host(departures("6.12", (SVM, SVM_WITHOUT_VNMI)))  # the KVM that tests/nested boots


def this_host() -> Host:
    """This host, by the kernel's release, its KVM module, and whether the processor handles NMIs."""
    traits, vnmi = [], KVM_AMD / "parameters/vnmi"
    if KVM_AMD.exists():
        has_vnmi = vnmi.exists() and vnmi.read_text().strip() == "Y"
        traits = [SVM] if has_vnmi else [SVM, SVM_WITHOUT_VNMI]
    return Host(departures(platform.release(), traits))

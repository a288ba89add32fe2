"""An s390 vCPU: its own interrupts, and the masks of the interrupts that it takes."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from irqchipd.chips.s390.delivery import deliverable_of, has_interrupt, take
from irqchipd.chips.s390.errors import RefusedError
from irqchipd.chips.s390.floating import FloatingInterrupts
from irqchipd.chips.s390.irq import IRQ_SIZE, Irq, Kind, pack, unpack
from irqchipd.chips.s390.local import LocalInterrupts, SavedLocal
from irqchipd.chips.s390.pending import PSW_EXTERNAL, PSW_IO, PSW_MACHINE_CHECK, Masks
from irqchipd.chips.saved import StateError, check, in_range
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.cpu import Vcpu
from irqchipd.vm.vcpu_state import Outcome

# A halt ends with this controller, an index of CONTROLLERS in edge/convert.py; take() then returns the interrupt.
FLIC: Final = 4
MAX_ACCEPTED: Final = 1  # a halt accepts nothing while an accepted interrupt waits
_ENABLED: Final = PSW_EXTERNAL | PSW_IO | PSW_MACHINE_CHECK
_WORD: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedS390Vcpu:
    """A vCPU as a snapshot holds it."""

    vcpu: int
    psw_mask: int = 0
    cr0: int = 0
    cr6: int = 0
    cr14: int = 0
    local: SavedLocal
    accepted: tuple[bytes, ...] = ()


class S390Cpu(Vcpu):
    """A vCPU. cpus holds the ids that a signal may come from."""

    def __init__(
        self, agenda: Agenda, floating: FloatingInterrupts, cpus: Container[int], vcpu_id: int, index: int
    ) -> None:
        super().__init__(agenda, vcpu_id, index)
        self.floating = floating
        self.local = LocalInterrupts(cpus)
        self.local.stopped = True  # KVM: kvm_arch_vcpu_create
        self.masks = Masks()
        # Interrupts that ended halts, and are taken next: they ended the guest's wait.
        self.accepted: list[Irq] = []

    @property
    def waits_for_ever(self) -> bool:
        """Whether no interrupt can end a wait: a disabled wait. KVM: interrupt.c kvm_s390_handle_wait."""
        return not self.masks.psw & _ENABLED and not self.has_interrupt()

    def has_interrupt(self) -> bool:
        return bool(self.accepted) or has_interrupt(self.floating, self.local, self.masks)

    def wake(self, interrupts_masked: bool) -> Outcome:  # noqa: ARG002 - the masks decide
        if not self.has_interrupt():
            return None
        if not self.accepted and deliverable_of(self.floating, self.local, self.masks):
            irq = take(self.floating, self.local, self.masks)
            assert irq is not None
            self.accepted.append(irq)
        return 0, FLIC  # take() returns the interrupt, which may be a stop

    def take(self) -> Irq | None:
        """Take the next interrupt."""
        if self.accepted:
            return self.accepted.pop(0)
        return take(self.floating, self.local, self.masks)

    def clear(self) -> None:
        """A normal reset: drop the vCPU's own interrupts. KVM: kvm_arch_vcpu_ioctl_normal_reset."""
        self.local.clear()
        self.accepted.clear()
        self.reset_count += 1
        self.priorities_changed()

    def initialise(self) -> None:
        """An initial reset or a clear reset: reset the masks, too. KVM: kvm_arch_vcpu_ioctl_initial_reset."""
        self.masks = Masks()
        self.clear()

    # Snapshots.

    def save(self) -> SavedS390Vcpu:
        """The state, for resume()."""
        masks = self.masks
        return SavedS390Vcpu(
            vcpu=self.id,
            psw_mask=masks.psw,
            cr0=masks.cr0,
            cr6=masks.cr6,
            cr14=masks.cr14,
            local=self.local.save(),
            accepted=tuple(map(pack, self.accepted)),
        )

    def resume(self, saved: SavedS390Vcpu) -> None:
        """Take a saved state, which check_vcpu has accepted."""
        self.masks = Masks(saved.psw_mask, saved.cr0, saved.cr6, saved.cr14)
        self.local.resume(saved.local)
        self.accepted = [unpack(irq) for irq in saved.accepted]


def check_vcpu(saved: SavedS390Vcpu) -> None:
    """Refuse a state that no vCPU can have."""
    for value in (saved.psw_mask, saved.cr0, saved.cr6, saved.cr14):
        in_range(value, 0, _WORD, "a mask of interrupts")
    LocalInterrupts(()).check(saved.local)
    check(len(saved.accepted) <= MAX_ACCEPTED, f"a vCPU has accepted {len(saved.accepted)} interrupts")
    for irq in saved.accepted:
        check(len(irq) == IRQ_SIZE, f"an accepted interrupt has {len(irq)} bytes, not {IRQ_SIZE}")
        try:
            check(unpack(irq).kind != Kind.SIGP_STOP, "an accepted interrupt is a stop, which stays pending")
        except RefusedError as error:
            raise StateError(error.message) from None

"""A vCPU as the board knows it: its local APIC, its run state, and what waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from irqchipd.chips.lapic import Lapic
from irqchipd.chips.lapic_registers import BASE_BOOT_CPU
from irqchipd.chips.message import DeliveryMode, Message
from irqchipd.vm.clock import SCHEDULER, Alarm
from irqchipd.vm.events import IoapicEoi, VcpuSignal
from irqchipd.vm.vcpu_state import (
    HANDLED_BYTES,
    MAX_NMIS,
    MAX_QUEUED,
    MP_STATE_OFFSET,
    NO_LAPIC,
    MpState,
    Outcome,
    SavedVcpu,
    Signal,
    Taken,
    VcpuEvents,
)

if TYPE_CHECKING:
    from irqchipd.vm.board import Board


class Halt:
    """A HLT under way."""

    __slots__ = ("alarm", "cpu", "done", "finished", "interrupts_masked", "life", "outcome")

    def __init__(self, cpu: Cpu, done: Callable[[Outcome], None], interrupts_masked: bool) -> None:
        self.cpu = cpu
        self.done = done
        self.interrupts_masked = interrupts_masked
        # Of its timeout, in the machine's time.
        self.alarm: Alarm | None = None
        self.finished = False
        self.outcome: Outcome = None
        # Which of the CPU's lives what it took belongs to.
        self.life = 0
        cpu.watchers += 1

    def finish(self, outcome: Outcome) -> None:
        """It is over."""
        self.cpu.halt = None
        self.cpu.watchers -= 1
        self.finished = True
        self.outcome = outcome
        self.life = self.cpu.lives
        if self.alarm is not None:
            SCHEDULER.set(self.alarm, None)
            self.alarm.forget()


class Cpu:
    """A vCPU: its local APIC, where the VM has an irqchip, and what the board keeps of it.

    It is its local APIC's wires.
    """

    __slots__ = (
        "alarm",
        "board",
        "external_vector",
        "halt",
        "handled",
        "has_init",
        "has_startup",
        "id",
        "index",
        "init",
        "lapic",
        "last_sipi",
        "lives",
        "mp_state",
        "nmi_injected",
        "nmi_masked",
        "nmis",
        "queued",
        "ready",
        "scanned",
        "sipi_vector",
        "smi",
        "stale",
        "unhalted",
        "watchers",
    )

    def __init__(self, board: Board, vcpu_id: int, index: int) -> None:
        self.board = board
        self.id = vcpu_id
        self.index = index
        self.lapic: Lapic | None = None
        self.alarm = Alarm(board.FIRST_CPU_RANK + index, self._ring)
        # The vectors whose EOI goes to the IOAPIC, one bit each, as of the last entry into the guest that scanned;
        # the highest of them that no entry sends here any more; and the board's generation of that scan.
        self.handled = 0
        self.stale = -1
        self.scanned = -1
        # How many want to know when there is something to take, and whether they have been told.
        self.watchers = 0
        self.ready = False
        # Run state: the HLT under way, and what waits to be taken beside what the chips have.
        self.mp_state = MpState.RUNNABLE
        self.halt: Halt | None = None
        self.lives = 0  # how often it was told to forget
        self.init = False
        self.sipi_vector: int | None = None
        self.last_sipi = 0  # also one that was ignored
        # What an operation has sent it that is not done.
        self.has_init = self.has_startup = False
        self.smi = False
        self.nmis = 0
        # As the process says that executes the vCPU: it is in an NMI's handler; an NMI is on its way.
        self.nmi_masked = False
        self.nmi_injected = False
        # KVM: kvm_host.h pv_unhalted; a remote read came, and no HLT has ended since.
        self.unhalted = False
        # KVM: kvm_host.h interrupt.injected; they were acknowledged, and who asked was gone.
        self.queued: list[Taken] = []
        # KVM: kvm_host.h pending_external_vector; with a split irqchip, from the VMM's PIC.
        self.external_vector: int | None = None

    # Wires of the local APIC.

    def send_ipi(self, icr: int, message: Message) -> None:
        """See LapicWires."""
        board = self.board
        if board.observer is not None:
            board.observer.kvm_apic_ipi(icr, message.destination)
        board.apics.deliver(message, source=self.index)

    def local_interrupt(self, message: Message) -> None:
        """See LapicWires."""
        self.board.apics.offer(self.index, message)

    def end_of_interrupt(self, vector: int, level_triggered: bool) -> None:
        """See LapicWires. KVM: lapic.c kvm_ioapic_send_eoi; only what the last scan found concerns the IOAPIC."""
        board = self.board
        if board.observer is not None:
            board.observer.kvm_eoi(self.id, vector)
        if not self.handled >> vector & 1:
            return
        if vector == self.stale:
            self.scanned = -1
        if board.ioapic is not None and self.lapic is not None:
            # KVM does not let a guest set SVR's bit while its IOAPIC is there, but a restored one counts.
            board.ioapic.end_of_interrupt(self.index, vector, level_triggered, self.lapic.directed_eoi)
        elif self.watchers:
            board.tell(self.id, IoapicEoi(self.id, vector))

    def addressing_changed(self) -> None:
        """See LapicWires."""
        self.board.apics.invalidate()
        self.board.generation += 1

    def scan_needed(self) -> None:
        """See LapicWires."""
        self.board.apics.admit()
        self.board.generation += 1

    def priorities_changed(self) -> None:
        """See LapicWires."""
        if self.watchers:
            self.board.touch(self)

    @property
    def quirks(self) -> int:
        """See LapicWires."""
        return self.board.quirks

    def now(self) -> int:
        """See TimerWires."""
        return self.board.clock.now()

    def set_timer(self, expires: int | None) -> None:
        """See TimerWires."""
        self.board.set_alarm(self.alarm, expires)

    @property
    def lazy(self) -> bool:
        """See TimerWires."""
        return not self.board.clock.virtual and self.board.observer is None

    def timer_expired(self) -> int:
        """See TimerWires."""
        assert self.lapic is not None
        return self.lapic.deliver_timer()

    def _ring(self) -> None:
        assert self.lapic is not None
        self.lapic.timer.expired()

    def signal(self, delivery_mode: int, vector: int) -> None:
        """See LapicWires. KVM: lapic.c __apic_accept_irq."""
        match delivery_mode:
            case DeliveryMode.NMI:
                self.nmis = min(self.nmis + 1, self.nmi_limit)
                self._tell_signal(delivery_mode)
            case DeliveryMode.REMOTE_READ:
                self.unhalted = True
                self.board.touch(self)
            case DeliveryMode.SMI:
                self.smi = True
                self._tell_signal(delivery_mode)
            case DeliveryMode.INIT:
                self._arrive()
                self.has_init, self.has_startup = True, False
            case _:
                self._arrive()
                self.has_startup, self.last_sipi = True, vector

    def _arrive(self) -> None:
        """An INIT or start-up is to be accepted, when the instruction that sent it is done: it may be this CPU's."""
        if not self.has_init and not self.has_startup:
            self.board.defer(self._accept_events)

    def _accept_events(self) -> None:
        """KVM: lapic.c kvm_apic_accept_events; of what came together, INIT is first, and a start-up before it lost."""
        if self.has_init:
            self.has_init = False
            self._initialise()
        if self.has_startup:
            self.has_startup = False
            self._start_up(self.last_sipi)

    @property
    def nmi_limit(self) -> int:
        """How many NMIs wait at the most. KVM: x86.c process_nmi."""
        return 1 if self.nmi_masked or self.nmi_injected else MAX_NMIS

    def _tell_signal(self, delivery_mode: int, vector: int = 0, ignored: bool = False) -> None:
        if self.watchers:
            self.board.tell(self.id, VcpuSignal(self.id, delivery_mode, vector, ignored))
            self.board.touch(self)

    def _start_up(self, vector: int) -> None:
        """SIPI."""
        ignored = self.mp_state != MpState.INIT_RECEIVED
        if not ignored:
            self.sipi_vector = vector
            self.run()
        self._tell_signal(DeliveryMode.STARTUP, vector, ignored)

    def _initialise(self) -> None:
        """INIT. KVM: x86.c kvm_vcpu_reset; what waited is lost, and all but the boot CPU wait for SIPI."""
        self.forget()
        self.init = True
        assert self.lapic is not None
        # KVM: lapic.h kvm_vcpu_is_bsp; it is as a guest or VMM says.
        if self.lapic.base & BASE_BOOT_CPU:
            self.run()
        else:
            self.mp_state = MpState.INIT_RECEIVED
        self.lapic.reset(init=True)
        self._tell_signal(DeliveryMode.INIT)

    def reset(self) -> None:
        """RESET: as it was made. A HLT that is under way is over only when something ends it."""
        self.forget()
        self.init = False
        self.external_vector = None
        self.last_sipi, self.unhalted = 0, False
        self.handled, self.stale, self.scanned = 0, -1, -1
        if self.lapic is not None:
            self.mp_state = MpState.RUNNABLE if self.lapic.boot_cpu else MpState.UNINITIALIZED
            self.lapic.reset(init=False)

    def forget(self) -> None:
        """Nothing waits any more, but for what the chips have."""
        self.lives += 1
        self.sipi_vector = None
        self.smi = False
        self.nmis = 0
        self.nmi_masked = self.nmi_injected = False
        self.queued.clear()

    # What there is to take.

    def has_interrupt(self) -> bool:
        """Whether there is an interrupt to acknowledge. KVM: irq.c kvm_cpu_has_interrupt."""
        return bool(self.queued) or self.has_extint() or (self.lapic is not None and self.lapic.interrupt() >= 0)

    def has_extint(self) -> bool:
        """Whether a PIC asks this CPU. KVM: irq.c kvm_cpu_has_extint."""
        if self.lapic is None or not self.lapic.passes_extint:
            return False
        pic = self.board.pic
        return pic.output if pic is not None else self.external_vector is not None

    def take_interrupt(self, pic: bool = True, lapic: bool = True) -> Taken | None:
        """INTA: accept what the CPU would take now; the PIC comes first. KVM: irq.c kvm_cpu_get_interrupt."""
        taken: Taken | None = None
        if self.queued and (pic if self.queued[0][1] else lapic):
            taken = self.queued.pop(0)
        elif pic and self.has_extint():
            if self.board.pic is not None:
                taken = self.board.pic.acknowledge(), True
            elif self.external_vector is not None:
                taken, self.external_vector = (self.external_vector, True), None
        elif lapic and self.lapic is not None and (vector := self.lapic.acknowledge()) >= 0:
            taken = vector, False
        if self.watchers:
            self.board.touch(self)
        if taken is not None:
            if self.halt is None:
                self._unhalt()
            if self.board.observer is not None:
                self.board.observer.kvm_inj_virq(self.id, taken[0])
        return taken

    def take_signal(self) -> Signal | None:
        """Take what waits beside interrupts; a CPU that waits for SIPI takes no NMI and SMI. KVM: x86.c order."""
        if self.init:
            self.init = False
            return Signal(DeliveryMode.INIT)
        if self.sipi_vector is not None:
            signal, self.sipi_vector = Signal(DeliveryMode.STARTUP, self.sipi_vector), None
            return signal
        if self.waits_for_startup:
            return None
        if self.nmi_injected:
            self.nmi_injected = False
            return self._take_nmi()
        if self.smi:
            self.smi = False
            self._unhalt()
            return Signal(DeliveryMode.SMI)
        if self.nmis and not self.nmi_masked:
            self.nmis -= 1
            return self._take_nmi()
        return None

    def _take_nmi(self) -> Signal:
        self._unhalt()
        return Signal(DeliveryMode.NMI)

    def _unhalt(self) -> None:
        if self.is_halted:
            self.run()

    def run(self) -> None:
        """It is runnable. KVM: x86.h kvm_set_mp_state."""
        self.mp_state = MpState.RUNNABLE
        self.unhalted = False

    @property
    def is_halted(self) -> bool:
        """Whether it waits for anything to take."""
        return self.mp_state in (MpState.HALTED, MpState.AP_RESET_HOLD)

    # What waits, as a VMM sees it.

    def events(self) -> VcpuEvents:
        """KVM: x86.c kvm_vcpu_ioctl_x86_get_vcpu_events; the vector of a SIPI is only set."""
        return VcpuEvents(
            nmi_injected=self.nmi_injected,
            nmi_pending=self.nmis,
            nmi_masked=self.nmi_masked,
            smi_pending=self.smi,
            interrupt_injected=bool(self.queued),
            interrupt_vector=self.queued[0][0] if self.queued else 0,
        )

    def set_events(self, events: VcpuEvents) -> None:
        """KVM: x86.c kvm_vcpu_ioctl_x86_set_vcpu_events."""
        if events.nmi_injected is not None:
            self.nmi_injected = events.nmi_injected
        if events.nmi_masked is not None:
            self.nmi_masked = events.nmi_masked
        pending = self.nmis if events.nmi_pending is None else events.nmi_pending
        self.nmis = min(pending, self.nmi_limit)
        if events.smi_pending is not None:
            self.smi = events.smi_pending
        if events.interrupt_injected is False:
            self.queued.clear()
        elif events.interrupt_injected and [vector for vector, _ in self.queued[:1]] != [events.interrupt_vector]:
            self.queued[:] = [(events.interrupt_vector, False)]
        if events.sipi_vector is not None:
            self.last_sipi = events.sipi_vector
        self.board.touch(self)

    @property
    def waits_for_startup(self) -> bool:
        """Whether it waits for INIT and SIPI, and takes nothing else."""
        return self.mp_state in (MpState.UNINITIALIZED, MpState.INIT_RECEIVED)

    # HLT.

    def start_halt(self, halt: Halt) -> bool:
        """HLT; whether there is nothing to take, so that it goes on."""
        self.halt = halt
        if self.mp_state is MpState.RUNNABLE:
            self.mp_state = MpState.HALTED
        return not self.try_wake()

    def try_wake(self) -> bool:
        """End the HLT under way if there is something to take. KVM: x86.c vcpu_block."""
        halt = self.halt
        assert halt is not None
        outcome: Outcome = self.take_signal()
        if outcome is None and not halt.interrupts_masked and not self.waits_for_startup and self.has_interrupt():
            self.board.enter(self)
            outcome = self.take_interrupt()
        if outcome is None and self.unhalted and not self.waits_for_startup:
            outcome = Signal(DeliveryMode.REMOTE_READ)
        if outcome is None:
            return False
        self._unhalt()
        self.board.finish_halt(halt, outcome)
        return True

    def give_back(self, outcome: Taken | Signal, life: int) -> None:
        """What a HLT took did not reach its CPU: it is the next to be taken, if nothing made the CPU forget since."""
        if life != self.lives:
            return
        if isinstance(outcome, Signal):
            match outcome.delivery_mode:
                case DeliveryMode.INIT:
                    self.init = True
                case DeliveryMode.STARTUP:
                    self.sipi_vector = outcome.vector
                case DeliveryMode.SMI:
                    self.smi = True
                case DeliveryMode.REMOTE_READ:
                    self.unhalted = True
                case _:
                    self.nmis = min(self.nmis + 1, MAX_NMIS)
        elif len(self.queued) < MAX_QUEUED:
            self.queued.append(outcome)
        self.board.touch(self)

    # State.

    def save(self) -> SavedVcpu:
        """The vCPU and its local APIC, for a snapshot."""
        return SavedVcpu(
            vcpu=self.id,
            mp_state=self.mp_state + MP_STATE_OFFSET,
            timer_expires_ns=self.alarm.deadline,
            handled=self.handled.to_bytes(HANDLED_BYTES, "little"),
            stale=self.stale,
            scan=self.scanned != self.board.generation,
            queued=tuple(self.queued),
            external_vector=self.external_vector,
            nmis=self.nmis,
            smi=self.smi,
            init=self.init,
            sipi_vector=self.sipi_vector,
            last_sipi=self.last_sipi,
            nmi_masked=self.nmi_masked,
            nmi_injected=self.nmi_injected,
            unhalted=self.unhalted,
            **(self.lapic.save() if self.lapic is not None else NO_LAPIC),
        )

    def resume(self, saved: SavedVcpu) -> None:
        """Go on from a snapshot, which has been checked. The board says later whether it must scan."""
        self.mp_state = MpState(saved.mp_state - MP_STATE_OFFSET)
        self.handled, self.stale = int.from_bytes(saved.handled, "little"), saved.stale
        self.queued, self.external_vector = list(saved.queued), saved.external_vector
        self.nmis, self.smi, self.init, self.sipi_vector = saved.nmis, saved.smi, saved.init, saved.sipi_vector
        self.nmi_masked, self.nmi_injected, self.unhalted = saved.nmi_masked, saved.nmi_injected, saved.unhalted
        self.last_sipi = saved.last_sipi
        if self.lapic is not None:
            self.lapic.resume(saved, ioapic=self.board.ioapic is not None)

"""An x86 vCPU: its local APIC, its run state, and its pending events."""

from __future__ import annotations

from typing import Final

from irqchipd.chips.i8259 import PicPair
from irqchipd.chips.lapic import Lapic
from irqchipd.chips.lapic_registers import BASE_BOOT_CPU, WINDOW, Reg
from irqchipd.chips.message import DeliveryMode, Message
from irqchipd.vm.agenda import Agenda
from irqchipd.vm.clock import Alarm
from irqchipd.vm.cpu import Vcpu
from irqchipd.vm.events import IoapicEoi, VcpuSignal
from irqchipd.vm.vcpu_state import MP_STATE_OFFSET, MpState, Outcome, Signal, Taken
from irqchipd.vm.x86.apicbus import ApicBus
from irqchipd.vm.x86.lapic_copy import LapicCopy
from irqchipd.vm.x86.vcpu_state import HANDLED_BYTES, MAX_NMIS, MAX_QUEUED, SavedVcpu, VcpuEvents

# An alarm of a local APIC's timer rings after the PIT's and the IOAPIC's alarms of the same time.
_FIRST_RANK: Final = 2
_OFFSET: Final = WINDOW - 1  # in a register page
# Names for an enumeration's members, which are slow to look up.
_RUNNABLE: Final = MpState.RUNNABLE
_UNINITIALIZED: Final = MpState.UNINITIALIZED
_INIT_RECEIVED: Final = MpState.INIT_RECEIVED
_HALTED: Final = MpState.HALTED
_AP_RESET_HOLD: Final = MpState.AP_RESET_HOLD
_HALTS: Final = (_HALTED, _AP_RESET_HOLD)


class Cpu(Vcpu):
    """A vCPU, and its local APIC if the VM has an irqchip. This class implements LapicWires."""

    def __init__(self, agenda: Agenda, apics: ApicBus, pic: PicPair | None, vcpu_id: int, index: int) -> None:
        super().__init__(agenda, vcpu_id, index)
        self.apics = apics
        self.pic = pic
        self.lapic: Lapic | None = None
        # The copy of the local APIC's registers, for the process that executes the vCPU.
        self.copy: LapicCopy | None = None
        self.alarm = Alarm(_FIRST_RANK + index, self._ring)
        # From the last scan at an entry into the guest: the vectors whose EOI goes to the IOAPIC, one bit each; the
        # highest of them that no redirection entry sends here now; and the bus's count of scans.
        self.handled = 0
        self.stale = -1
        self.scanned = -1
        # Run state, and pending events outside the chips.
        self.mp_state: MpState = _RUNNABLE
        self.init = False
        self.sipi_vector: int | None = None
        self.last_sipi = 0  # also of an ignored SIPI
        # INIT and start-up that the current operation sends to this vCPU.
        self.has_init = self.has_startup = False
        self.smi = False
        self.nmis = 0
        # Reported by the process that executes the vCPU: the guest is in its NMI handler; an NMI is being injected.
        self.nmi_masked = False
        self.nmi_injected = False
        # KVM: kvm_host.h pv_unhalted; a remote read has arrived since the last HLT ended.
        self.unhalted = False
        # KVM: kvm_host.h interrupt.injected; interrupts acknowledged by Halts whose callers gave up.
        self.queued: list[Taken] = []
        # KVM: kvm_host.h pending_external_vector; with a split irqchip, from the VMM's PIC.
        self.external_vector: int | None = None

    def publish(self) -> None:
        """The local APIC's registers may have changed: copy them, unless an observer has to see each access."""
        if self.copy is not None:
            assert self.lapic is not None
            observer = self.apics.observer
            if observer is None or not observer.sees_everything:
                self.copy.publish(self.lapic)
            else:
                self.copy.withdraw()

    def wrote(self, device: object, address: int) -> None:
        """Copy the registers after a store."""
        if device is self.lapic and address & _OFFSET != Reg.EOI:
            self.publish()

    def keep_copy(self, copy: LapicCopy | None) -> None:
        """Begin to keep a copy of the local APIC's registers, or end it with None."""
        self.copy = copy
        self.is_copied = copy is not None

    def forget_copy(self) -> None:
        if self.copy is not None:
            self.copy.withdraw()
            self.keep_copy(None)

    # Wires of the local APIC, as its LapicWires and TimerWires describe them.

    def send_ipi(self, icr: int, message: Message) -> None:
        if self.apics.observer is not None:
            self.apics.observer.kvm_apic_ipi(icr, message.destination, self.id)
        self.apics.deliver(message, sender=self.index)

    def local_interrupt(self, message: Message) -> None:
        self.apics.offer(self.index, message)

    def end_of_interrupt(self, vector: int, level_triggered: bool) -> None:
        """KVM: lapic.c kvm_ioapic_send_eoi; only vectors from the last scan concern the IOAPIC."""
        apics = self.apics
        if apics.observer is not None:
            apics.observer.kvm_eoi(self.id, vector)
        if vector < 0 or not self.handled >> vector & 1:
            return
        if vector == self.stale:
            self.scanned = -1
        if apics.ioapic is not None and self.lapic is not None:
            # KVM does not let a guest set SVR's bit with an in-kernel IOAPIC, but obeys a restored bit.
            apics.ioapic.end_of_interrupt(self.index, vector, level_triggered, self.lapic.directed_eoi)
        else:
            self.notify(IoapicEoi(self.id, vector))

    def addressing_changed(self) -> None:
        self.apics.invalidate()

    def scan_needed(self) -> None:
        self.apics.admit()

    @property
    def quirks(self) -> int:
        return self.apics.quirks

    def now(self) -> int:
        return self.agenda.clock.now()

    def set_timer(self, expires: int | None) -> None:
        self.agenda.set_alarm(self.alarm, expires)

    @property
    def lazy(self) -> bool:
        observer = self.apics.observer
        return not self.agenda.clock.virtual and (observer is None or not observer.sees_everything)

    def timer_expired(self) -> int:
        assert self.lapic is not None
        return self.lapic.deliver_timer()

    def _ring(self) -> None:
        assert self.lapic is not None
        self.lapic.timer.expired()

    def signal(self, delivery_mode: int, vector: int) -> None:
        """KVM: lapic.c __apic_accept_irq."""
        match delivery_mode:
            case DeliveryMode.NMI:
                self.nmis = min(self.nmis + 1, self.nmi_limit)
                self._report_signal(delivery_mode)
            case DeliveryMode.REMOTE_READ:
                self.unhalted = True
                self.priorities_changed()
            case DeliveryMode.SMI:
                self.smi = True
                self._report_signal(delivery_mode)
            case DeliveryMode.INIT:
                self._arrive()
                self.has_init, self.has_startup = True, False
            case _:
                self._arrive()
                self.has_startup, self.last_sipi = True, vector

    def _arrive(self) -> None:
        """Accept an INIT or start-up after the instruction that sent it: this vCPU may be the sender."""
        if not self.has_init and not self.has_startup:
            self.agenda.defer(self._accept_events)

    def _accept_events(self) -> None:
        """KVM: lapic.c kvm_apic_accept_events; INIT comes first, and a start-up before it is lost."""
        if self.has_init:
            self.has_init = False
            self._initialise()
        if self.has_startup:
            self.has_startup = False
            self._start_up(self.last_sipi)

    @property
    def nmi_limit(self) -> int:
        """The most NMIs that can be pending. KVM: x86.c process_nmi."""
        return 1 if self.nmi_masked or self.nmi_injected else MAX_NMIS

    def _report_signal(self, delivery_mode: int, vector: int = 0, ignored: bool = False) -> None:
        self.notify(VcpuSignal(self.id, delivery_mode, vector, ignored))
        self.priorities_changed()

    def _start_up(self, vector: int) -> None:
        """SIPI."""
        ignored = self.mp_state is not _INIT_RECEIVED
        if not ignored:
            self.sipi_vector = vector
            self.run()
        self._report_signal(DeliveryMode.STARTUP, vector, ignored)

    def _initialise(self) -> None:
        """INIT. KVM: x86.c kvm_vcpu_reset; pending events are lost, and all but the boot CPU wait for SIPI."""
        self._forget()
        self.init = True
        assert self.lapic is not None
        # KVM: lapic.h kvm_vcpu_is_bsp; a guest or VMM can change the bit.
        if self.lapic.base & BASE_BOOT_CPU:
            self.run()
        else:
            self.mp_state = _INIT_RECEIVED
        self.lapic.reset(init=True)
        self.publish()
        self._report_signal(DeliveryMode.INIT)

    def reset(self) -> None:
        """RESET: the state at creation. RESET does not end a HLT that is under way."""
        self._forget()
        self.init = False
        self.external_vector = None
        self.last_sipi, self.unhalted = 0, False
        self.handled, self.stale, self.scanned = 0, -1, -1
        if self.lapic is not None:
            self.mp_state = _RUNNABLE if self.lapic.boot_cpu else _UNINITIALIZED
            self.lapic.reset(init=False)
            self.publish()
        self.priorities_changed()

    def _forget(self) -> None:
        """Drop the pending events outside the chips."""
        self.reset_count += 1
        self.sipi_vector = None
        self.smi = False
        self.nmis = 0
        self.nmi_masked = self.nmi_injected = False
        self.queued.clear()

    # Taking interrupts and signals.

    def enter(self) -> None:
        """Enter the guest, and learn which EOIs concern the IOAPIC. KVM: x86.c vcpu_scan_ioapic."""
        if self.scanned != self.apics.scans:
            self.scanned = self.apics.scans
            if self.lapic is not None and self.lapic.hardware_enabled:
                self.handled, self.stale = self.apics.handled_vectors(self.index)

    def has_interrupt(self) -> bool:
        """KVM: irq.c kvm_cpu_has_interrupt."""
        return bool(self.queued) or (self.lapic is not None and self.lapic.interrupt() >= 0) or self.has_extint()

    def has_extint(self) -> bool:
        """Whether a PIC interrupts this CPU. KVM: irq.c kvm_cpu_has_extint."""
        asks = self.pic.output if self.pic is not None else self.external_vector is not None
        return asks and self.lapic is not None and self.lapic.passes_extint

    def take_interrupt(self, pic: bool = True, lapic: bool = True) -> Taken | None:
        """INTA: accept what the CPU would take now; the PIC comes first. KVM: irq.c kvm_cpu_get_interrupt."""
        if self.queued and (pic if self.queued[0][1] else lapic):
            taken = self.queued.pop(0)
            self.priorities_changed()
        elif pic and (self.pic is None or self.pic.output) and self.has_extint():
            if self.pic is not None:
                taken = self.pic.acknowledge(), True
            else:
                assert self.external_vector is not None
                taken, self.external_vector = (self.external_vector, True), None
            self.priorities_changed()
        elif lapic and self.lapic is not None and (vector := self.lapic.acknowledge()) >= 0:
            taken = vector, False
        else:
            return None
        self.ready = False  # Listeners are notified of what is left.
        if self.halt is None:
            self._unhalt()
        if self.apics.observer is not None:
            if taken[1] and self.pic is not None and self.pic.was_spurious:
                self.apics.observer.pic_spurious(self.id)
            self.apics.observer.kvm_inj_virq(self.id, taken[0])
        return taken

    def take_signal(self) -> Signal | None:
        """Take a pending signal, in x86.c's order; a CPU that waits for SIPI takes no NMI and no SMI."""
        if self.init:
            self.init = False
            return Signal(DeliveryMode.INIT)
        if self.sipi_vector is not None:
            signal, self.sipi_vector = Signal(DeliveryMode.STARTUP, self.sipi_vector), None
            return signal
        if not (self.nmis or self.smi or self.nmi_injected) or self.waits_for_startup:
            return None
        if self.nmi_injected:
            self.nmi_injected = False
        elif self.smi:
            self.smi = False
            self._unhalt()
            return Signal(DeliveryMode.SMI)
        elif self.nmis and not self.nmi_masked:
            self.nmis -= 1
        else:
            return None
        self._unhalt()
        return Signal(DeliveryMode.NMI)

    def _unhalt(self) -> None:
        if self.mp_state in _HALTS:
            self.run()

    def run(self) -> None:
        """Be runnable. KVM: x86.h kvm_set_mp_state."""
        self.mp_state = _RUNNABLE
        self.unhalted = False

    @property
    def is_halted(self) -> bool:
        """Whether the vCPU waits for any interrupt or signal."""
        return self.mp_state in _HALTS

    @property
    def waits_for_startup(self) -> bool:
        """Whether the vCPU waits for INIT and SIPI, and takes nothing else."""
        return self.mp_state is _UNINITIALIZED or self.mp_state is _INIT_RECEIVED

    # Pending events, for the VMM.

    def events(self) -> VcpuEvents:
        """KVM: x86.c kvm_vcpu_ioctl_x86_get_vcpu_events; KVM never reports a SIPI's vector."""
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
        self.priorities_changed()

    # HLT.

    def sleep(self) -> None:
        if self.mp_state is _RUNNABLE:
            self.mp_state = _HALTED

    def wake(self, interrupts_masked: bool) -> Outcome:
        outcome: Outcome = self.take_signal()
        if outcome is None and not self.waits_for_startup:
            if not interrupts_masked:
                if self.scanned != self.apics.scans and self.has_interrupt():
                    self.enter()
                outcome = self.take_interrupt()
            if outcome is None and self.unhalted:
                outcome = Signal(DeliveryMode.REMOTE_READ)
        if outcome is not None and self.mp_state in _HALTS:
            self.run()
        return outcome

    def give_back(self, outcome: Taken | Signal, reset_count: int) -> None:
        if reset_count != self.reset_count:
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
        self.priorities_changed()

    # State.

    def save(self) -> SavedVcpu:
        """The vCPU and its local APIC, for a snapshot."""
        return SavedVcpu(
            vcpu=self.id,
            mp_state=self.mp_state + MP_STATE_OFFSET,
            timer_expires_ns=self.alarm.deadline,
            handled=self.handled.to_bytes(HANDLED_BYTES, "little"),
            stale=self.stale,
            scan=self.scanned != self.apics.scans,
            queued=tuple((vector, bool(from_pic)) for vector, from_pic in self.queued),
            external_vector=self.external_vector,
            nmis=self.nmis,
            smi=self.smi,
            init=self.init,
            sipi_vector=self.sipi_vector,
            last_sipi=self.last_sipi,
            nmi_masked=self.nmi_masked,
            nmi_injected=self.nmi_injected,
            unhalted=self.unhalted,
            **(self.lapic.save() if self.lapic is not None else {}),
        )

    def resume(self, saved: SavedVcpu) -> None:
        """Resume from a checked snapshot. finish_board resumes the scan state with the whole VM."""
        self.mp_state = MpState(saved.mp_state - MP_STATE_OFFSET)
        self.handled, self.stale = int.from_bytes(saved.handled, "little"), saved.stale
        self.queued, self.external_vector = list(saved.queued), saved.external_vector
        self.nmis, self.smi, self.init, self.sipi_vector = saved.nmis, saved.smi, saved.init, saved.sipi_vector
        self.nmi_masked, self.nmi_injected, self.unhalted = saved.nmi_masked, saved.nmi_injected, saved.unhalted
        self.last_sipi = saved.last_sipi
        if self.lapic is not None:
            self.lapic.resume(saved, ioapic=self.apics.ioapic is not None)
